"""How a stage's command is started: in one process, in several by torchrun, or as a job of a Slurm cluster.

The launcher polls whatever `start` gives; a job is polled and ended as a process is. Slurm jobs go through
submitit: one for each stage, put into the queue as soon as those that it depends on are complete, put back
by submitit when the cluster preempts it or its time is up (the stage goes on from its last checkpoint).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from encoder.runtime.config import ROOT, ConfigError
from encoder.runtime.stage import DONE, write_json
from harness.running import attach, provenance
from harness.running.gpus import uses_gpu
from harness.running.stages import Stage

LAUNCH = "launch.json"  # beside DONE.json: what the stage ran with
Launch = Literal["local", "torchrun", "slurm"]
# The stages whose work several processes share; the others run in one, whatever `processes` says
MULTI_PROCESS = (
    "encoder.tokens",
    "encoder.train",
    "llava_bridge.any_resolution.cache",
    "llava_bridge.evaluate",
    "llava_bridge.train",
    "rae_bridge.cache",
    "rae_bridge.distill",
    "rae_bridge.generate",
    "rae_bridge.reconstruct",
    "rae_bridge.sweep",
    "rae_bridge.text.generate",
    "rae_bridge.text.train",
    "rae_bridge.train",
    "rae_bridge.train_decoder",
)
_FIRST_PORT, _NUM_PORTS = 29_500, 1000  # where the machines of one stage find each other
_MAX_TIMEOUTS = 20  # of one job: submitit's own 3 would end a long training after four days
_LOST_SECONDS = 60.0  # a job that ended without its DONE.json may still have it on its way (shared disks)


class Work(Protocol):
    """Something started: as much of `subprocess.Popen` as the launcher uses."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


def stage_words(stage: Stage, processes: int, machines: int = 1) -> list[str]:
    """What Python is called with to run a stage, on each of its machines; `RunStage` says which one it is."""
    words = ["-m", stage.module, str(stage.folder / "config.yaml"), str(stage.folder)]
    if processes * machines == 1 or stage.module not in MULTI_PROCESS:
        return words
    port = _FIRST_PORT + int(stage.fingerprint, 16) % _NUM_PORTS  # two stages may share their first machine
    together = [f"--nnodes={machines}", f"--master-port={port}"] if machines > 1 else ["--standalone"]
    launcher = ["-m", "torch.distributed.run", *together, f"--nproc-per-node={processes}"]
    return [*launcher, attach.__file__, attach.PARENT, *words]  # else they would outlive a killed torchrun


def start_process(
    stage: Stage, processes: int, environment: Mapping[str, str], log: IO[str], lock: int
) -> subprocess.Popen:
    """A stage in processes of this machine, which end with the harness."""
    return subprocess.Popen(
        [sys.executable, attach.__file__, str(os.getpid()), *stage_words(stage, processes)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(lock,),
    )


class RunStage:
    """What a job does; a class, so that submitit can put it back into the queue as it is."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], log: str) -> None:
        self.words, self.environment, self.log = list(words), dict(environment), log

    def __call__(self) -> int:
        """Run the stage to its end; its exit code. The hardware it had is noted here, where it runs (of
        several machines, the first)."""
        from submitit import JobEnvironment

        job = JobEnvironment()
        place = {"PET_NODE_RANK": str(job.global_rank), "PET_MASTER_ADDR": job.hostnames[0]}  # for torchrun
        launched = Path(self.log).with_name(LAUNCH)
        if job.global_rank == 0:
            facts = json.loads(launched.read_text())
            threads = facts["hardware"].get("threads")
            write_json(launched, {**facts, "hardware": {**provenance.hardware(), "threads": threads}})
        with Path(self.log).open("a") as log:
            return subprocess.call(
                [sys.executable, attach.__file__, str(os.getpid()), *self.words],
                cwd=ROOT,
                env={**os.environ, **place, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def checkpoint(self, *arguments: Any, **named: Any) -> Any:
        """Preempted, or out of time: the same again, which goes on from the stage's last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments, **named)


class SlurmJob:
    """A job of the cluster as a `Work`: polled, waited for and ended as a process is."""

    pid = 0  # none on this machine

    def __init__(self, job: Any, stage: Stage) -> None:
        self.job, self.stage = job, stage
        self.ended: float | None = None

    def poll(self) -> int | None:
        """None while it waits or runs; its exit code, or 1 where the cluster ended it."""
        if not self.job.done():
            return None
        self.ended = self.ended or time.monotonic()
        try:
            code = next(filter(None, self.job.results()), 0)  # of several machines, the first that failed
        except Exception as error:  # submitit raises many kinds, each with the job's last words
            with self.stage.log.open("a") as log:
                log.write(f"error: job {self.job.job_id}: {str(error).strip().splitlines()[-1]}\n")
            return 1
        is_late = not (self.stage.folder / DONE).is_file() and time.monotonic() - self.ended < _LOST_SECONDS
        return None if code == 0 and is_late else code

    def wait(self, timeout: float | None = None) -> int:
        """Poll until it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.job.job_id), timeout or 0.0)
            time.sleep(0.2)
        return code

    def cancel(self) -> None:
        """Take it out of the queue, or end it."""
        self.job.cancel(check=False)


def slurm_executor(folder: Path, parameters: Mapping[str, Any], name: str) -> Any:
    """submitit's executor with the preset's parameters (slurm_partition, timeout_min, mem_gb, ...).

    `cluster: local` in them runs the jobs on this machine, as submitit's own tests do; `max_num_timeout` is
    how often a job whose time is up is put back.

    Raises:
        ConfigError: submitit is not installed, or does not know a parameter.
    """
    try:
        import submitit
    except ImportError:
        raise ConfigError("launch=slurm needs submitit: pip install submitit (the extra `slurm`)") from None
    parameters = {"timeout_min": 24 * 60, "max_num_timeout": _MAX_TIMEOUTS, **parameters}
    cluster = parameters.pop("cluster", "slurm")
    try:
        retries = {f"{cluster}_max_num_timeout": int(parameters.pop("max_num_timeout"))}
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **retries)
        executor.update_parameters(name=name, **parameters)
    except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"launch=slurm: {str(error).strip().splitlines()[0]}") from None
    return executor


def check_slurm(parameters: Mapping[str, Any]) -> None:
    """Raises: ConfigError before anything is submitted, as `slurm_executor` does."""
    with tempfile.TemporaryDirectory() as folder:
        slurm_executor(Path(folder), parameters, "check")


def job_parameters(
    module: str, processes: int, parameters: Mapping[str, Any], *, is_gpu: bool = False
) -> dict[str, Any]:
    """What a job of this stage's module asks of submitit: `nodes` machines where several can share it, and as
    many GPUs on each as the stage uses: one a process (or `gpus_per_node`), one where it runs in one process,
    none where it computes on none.
    """
    wanted = {key: value for key, value in parameters.items() if key != "gpus_per_node"}
    is_shared = module in MULTI_PROCESS
    if not is_shared:
        wanted |= {"nodes": 1, "tasks_per_node": 1}
    gpus = parameters.get("gpus_per_node", processes if is_gpu else 0)
    if not gpus or not uses_gpu(module):
        return wanted
    return wanted | {"gpus_per_node": gpus if is_shared else 1}


def num_machines(wanted: Mapping[str, Any]) -> int:
    """Of a job; a task stands for a machine."""
    return wanted.get("nodes", 1) * wanted.get("tasks_per_node", 1)


def num_processes(module: str, launch: Launch, processes: int, parameters: Mapping[str, Any]) -> int:
    """Of a stage, on all of its machines."""
    if module not in MULTI_PROCESS:
        return 1
    return processes * (num_machines(parameters) if launch == "slurm" else 1)


def num_gpus(module: str, launch: Launch, processes: int, parameters: Mapping[str, Any]) -> int:
    """GPUs that a stage holds while it runs where the device is one: one a process, or what its job asks of
    each node."""
    if launch != "slurm":
        return num_processes(module, launch, processes, parameters) if uses_gpu(module) else 0
    wanted = job_parameters(module, processes, parameters, is_gpu=True)
    return wanted.get("gpus_per_node", 0) * wanted.get("nodes", 1)


def submit(
    stage: Stage, processes: int, environment: Mapping[str, str], parameters: Mapping, *, is_gpu: bool = False
) -> SlurmJob:
    """A stage as a job; its submission files lie in the stage's folder."""
    wanted = job_parameters(stage.module, processes, parameters, is_gpu=is_gpu)
    executor = slurm_executor(stage.folder / "slurm", wanted, stage.name)
    words = stage_words(stage, processes, num_machines(wanted))
    return SlurmJob(executor.submit(RunStage(words, environment, str(stage.log))), stage)


def end(work: Work, number: int) -> None:
    """Send a signal to a process and whatever it started; a job is taken out of the queue."""
    if isinstance(work, SlurmJob):
        work.cancel()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(work.pid, signal.Signals(number))
