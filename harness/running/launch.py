"""Run a graph: `jobs` stages at once, each a process with its log; a failure stops only what depends on
it.
"""

import contextlib
import datetime
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from encoder.runtime.config import ROOT, dump, resolve
from encoder.runtime.stage import (
    DATA_SETS,
    DONE,
    make_writable,
    read_data_sets,
    sha256_json,
    write_json,
)
from harness.running import engines, gpus, provenance
from harness.running.display import Display
from harness.running.engines import LAUNCH, Launch, Work
from harness.running.stages import Graph, Stage

_POLL_SECONDS = 0.1
_UNKNOWN_SECONDS = (
    600.0  # taken for a stage without an estimate, which may be long: it does not wait till last
)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_GRACE_SECONDS = 20.0  # from Ctrl-C to a stage's end before it is killed
_REASON_LETTERS = 300
_ATTEMPT = "=== attempt "  # opens each attempt in a stage's log
_TORCHRUN = "torch/distributed/elastic"  # in each line that torchrun itself has logged
_ENDED_BY = re.compile(r"rank +: (\d+) .*\n +exitcode +: -(\d+) ")  # in its summary: process, signal


@dataclass(frozen=True)
class Outcome:
    """How a stage ended; `reason` says why where it did not."""

    state: Literal["reused", "done", "failed", "not run"]
    reason: str = ""
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        return self.state in ("reused", "done")


@dataclass
class Launcher:
    """The state of one run over a graph: what ended how, what runs."""

    graph: Graph
    jobs: int
    threads: int
    lock: int  # file descriptor, inherited by the stages
    display: Display
    launch: Launch = "local"
    processes: int = 1  # of the stages that several can share; with torchrun and slurm
    slurm: Mapping[str, Any] = field(default_factory=dict)  # submitit's parameters
    device: str = "cpu"  # of the stages: on a GPU, Slurm is asked for some, and local jobs take turns on them
    gpus: list[str] = field(default_factory=list)  # of this machine, as CUDA_VISIBLE_DEVICES names them
    gpu_of: dict[Path, str] = field(default_factory=dict)  # of the running stages that have one to themselves
    outcomes: dict[Path, Outcome] = field(default_factory=dict)
    running: dict[Path, tuple[Stage, Work, float]] = field(default_factory=dict)

    def run(self) -> dict[Path, Outcome]:
        """Run what is not there yet; returns every stage's outcome by folder.

        Raises:
            KeyboardInterrupt: Ctrl-C or a polite kill, after the running stages were ended.
        """
        if self.launch == "slurm":
            self.jobs = len(self.graph)  # the cluster decides what runs at once
        elif self.device == "cuda":
            self.gpus = gpus.visible_gpus()
        reused = [stage for stage in self.graph if stage.whole() is not None]
        self.outcomes.update({stage.folder: Outcome("reused") for stage in reused})
        self.display.reused(reused)
        estimates = {stage.folder: stage.seconds or _UNKNOWN_SECONDS for stage in self.graph}
        urgency = self.graph.seconds_to_end(estimates)
        before = None  # how many had ended, how many ran: all that decides which are ready
        with _terminate_as_interrupt(), self.display:
            try:
                while len(self.outcomes) < len(self.graph):
                    if (now_there := (len(self.outcomes), len(self.running))) != before:
                        before = now_there
                        ready = sorted(self._ready(), key=lambda stage: -urgency[stage.folder])
                        for stage in ready[: self.jobs - len(self.running)]:
                            self._start(stage)
                    self._collect()
                    now = time.monotonic()
                    self.display.tick([(stage, now - started) for stage, _, started in self.running.values()])
                    if self.running:
                        time.sleep(_POLL_SECONDS)
            finally:
                self._stop_all()
        return self.outcomes

    def _ready(self) -> list[Stage]:
        """Stages whose inputs and guards are complete; those with one that cannot be are not run."""
        ready = []
        for stage in self.graph:
            if stage.folder in self.outcomes or stage.folder in self.running:
                continue
            needed = self.graph.waits_for(stage)
            ends = {source.label: self.outcomes.get(source.folder) for source in needed}
            lost = [(label, end) for label, end in ends.items() if end and not end.is_complete]
            if lost:
                label, end = lost[0]
                reason = end.reason if end.state == "not run" else f"{label} failed: {end.reason}"
                self._end(stage, Outcome("not run", reason))
            elif all(ends.values()):
                ready.append(stage)
        return ready

    def _start(self, stage: Stage) -> None:
        make_writable(stage.folder)
        (stage.folder / DONE).unlink(
            missing_ok=True
        )  # one that cannot be read, or says what could not be run
        config = stage.folder / "config.yaml"
        dump(stage.config, config)
        write_json(stage.folder / LAUNCH, launch_facts(stage, self.threads))
        if stage.data_sets:  # of one that is gone since, what was read before counts
            there = {name: digest for name, digest in stage.data_sets.items() if digest is not None}
            write_json(stage.folder / DATA_SETS, {**read_data_sets(stage.folder), **there})
        environment = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": _python_path()}
        environment |= dict.fromkeys(_THREAD_VARIABLES, str(self.threads))
        with stage.log.open("a") as log:
            log.write(f"{_ATTEMPT}{time.strftime('%F %T')} python -m {stage.module}\n")
            log.flush()
            if self.launch == "slurm":
                is_gpu = self.device == "cuda"
                work = engines.submit(stage, self.processes, environment, self.slurm, is_gpu=is_gpu)
            else:
                environment = {**os.environ, **environment, **self._take_gpu(stage)}
                work = engines.start_process(stage, self.processes, environment, log, self.lock)
        self.running[stage.folder] = (stage, work, time.monotonic())
        self.display.started(stage)

    def _take_gpu(self, stage: Stage) -> dict[str, str]:
        """The variable that gives a stage in one process the GPU on which the fewest others run; nothing
        where it uses none, there is none, or several processes share them all."""
        is_shared = self.processes > 1 and stage.module in engines.MULTI_PROCESS
        if not self.gpus or is_shared or not gpus.uses_gpu(stage.module):
            return {}
        self.gpu_of[stage.folder] = gpus.least_busy(self.gpus, self.gpu_of.values())
        return {gpus.VARIABLE: self.gpu_of[stage.folder]}

    def _collect(self) -> None:
        for stage, process, started in list(self.running.values()):
            code = process.poll()
            if code is None:
                continue
            del self.running[stage.folder]
            self.gpu_of.pop(stage.folder, None)
            seconds = time.monotonic() - started
            if code == 0 and stage.done() is not None:
                self._end(stage, Outcome("done", seconds=seconds))
            else:
                self._end(stage, Outcome("failed", failure_reason(stage.log, code), seconds))

    def _end(self, stage: Stage, outcome: Outcome) -> None:
        self.outcomes[stage.folder] = outcome
        self.display.ended(stage, outcome.state, outcome.reason, outcome.seconds)

    def _stop_all(self) -> None:
        processes = [process for _, process, _ in self.running.values()]
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in processes:
            engines.end(process, signal.SIGINT)
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C: at once
                deadline = 0.0
            engines.end(process, signal.SIGKILL)  # also whatever the stage itself had started
            process.wait()


def launch_facts(stage: Stage, threads: int) -> dict:
    """What a stage's result files say about how it was made."""
    return {
        "stage": stage.module,
        "label": stage.label,
        "fingerprint": stage.fingerprint,
        "config_hash": sha256_json(resolve(stage.config)),
        "inputs": [f"{source.name}/{source.fingerprint}" for source in stage.inputs],
        "commit": provenance.git_commit(),
        "packages": provenance.package_versions(),
        "hardware": {**provenance.hardware(), "threads": threads},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def failure_reason(log: Path, code: int) -> str:
    """One line that says why a stage failed: its last `error:` line, its last words, or the signal."""
    if code == 0:
        return f"ended without {DONE}; see {log}"
    if code < 0:
        return f"{_killed_by(-code)}; see {log}"
    latest = log.read_text(errors="replace").rpartition(_ATTEMPT)[2]
    own, _, summary = latest.partition("failed (exitcode: ")  # torchrun's summary of its processes
    words = [line.strip() for line in own.splitlines()[1:] if line.strip() and _TORCHRUN not in line]
    errors = [line.removeprefix("error: ") for line in words if line.startswith("error: ")]
    lost = [(rank, int(number)) for rank, number in _ENDED_BY.findall(summary)]
    lost = [(rank, number) for rank, number in lost if number != signal.SIGTERM]  # torchrun ended the others
    if lost and not errors:
        rank, number = lost[0]
        return f"process {rank} of several {_killed_by(number)}; see {log}"
    last = (errors or words or ["no output"])[-1]
    return f"{last[:_REASON_LETTERS]} (see {log})"


def _killed_by(number: int) -> str:
    name = signal.Signals(number).name
    return f"killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A polite `kill` or a closed terminal ends the run as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
