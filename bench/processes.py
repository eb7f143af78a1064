"""What sharing a batch among processes costs: `python bench/processes.py` prints a table and writes
results/bench/processes.json.

Three forms of the same work take turns: one process; two that share it, over gloo, as torchrun starts them;
and two that do half each and know nothing of each other, which says what of the loss is the machine's (two
cores on one memory, smaller batches) and what the exchange's. Each process has one thread and runs the
stage's own code (`_worker.py`) again and again: its start is not counted, nor its first steps.

Rows, "ours" two processes, "baseline" one, wall clock: processes/<stage>: samples/s; processor_time/<stage>:
of all processes together; exponent/<stage>/processes: c in seconds = a n^c through the two points, -1 being
perfect; exchanged/<stage>: what a process sent a step, counted at the loopback device; calculated/...: see
`_exchange.py`. Two cores of one machine say what splitting itself costs, nothing of a cluster's network.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _exchange import exchange_rows, exponent
from _jobs import STEPS, Job, make_inputs, make_jobs
from _table import Row, make_row, publish

from encoder.runtime.config import dump

TURNS, SKIPPED = 2, 1  # turns of each form; first steps of a turn, which are not counted
ENDING = 20.0  # seconds that a worker has to end in


@dataclass(frozen=True)
class Spent:
    """Medians of a step: seconds, processor seconds of all processes together, bytes sent by each."""

    wall: float
    cpu: float
    sent: float


class Worker:
    """A process that runs stages when told to; `place`: its variables of a launch, none if it is alone."""

    def __init__(self, place: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("_worker.py"))],
                env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | place,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def tell(self, **line: Any) -> None:
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """Raises: RuntimeError with the last line of its log if it ended instead."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended: {self.log.read_text().strip().splitlines()[-1]}")
        return line

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def launch_places(n: int) -> list[dict[str, str]]:
    """What torchrun tells each of n processes of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
    }
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]


class Team:
    """The processes that take turns: one (`first`), one more that knows nothing of it, and two together."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.turn = folder, 0
        workers = [Worker(place, folder / "log.txt") for place in [{}, {}, *launch_places(2)]]
        for worker in workers:
            stack.enter_context(worker)
        for worker in workers:
            worker.answer()
        first, other, *pair = workers
        self.forms = {"one": [first], "two": pair, "apart": [first, other]}

    def run(self, job: Job, form: str) -> list[dict]:
        """One turn: what each process answers."""
        config = {"one": job.alone, "two": job.shared, "apart": job.halved}[form]
        path = self.folder / f"{job.name}-{form}.yaml"
        dump(config, path)
        self.turn += 1
        workers = self.forms[form]
        out_dirs = [self.folder / f"{self.turn}-{0 if form == 'two' else i}" for i in range(len(workers))]
        for worker, out_dir in zip(workers, out_dirs, strict=True):
            worker.tell(stage=job.name, config=str(path), out_dir=str(out_dir), steps=STEPS)
        answers = [json.loads(worker.answer()) for worker in workers]
        for out_dir in set(out_dirs):
            shutil.rmtree(out_dir)
        return answers


def spent(turns: Sequence[Sequence[dict]]) -> Spent:
    """Medians over the steps of all turns, the first of each turn left out; of processes, the mean of the
    seconds and of the bytes, which the device counts for all, and the sum of the processor time."""

    def steps(name: str) -> np.ndarray:
        return np.concatenate([np.diff([each[name] for each in turn])[:, SKIPPED:] for turn in turns], axis=1)

    wall, cpu, sent = steps("wall"), steps("cpu"), steps("sent")  # processes x steps
    return Spent(
        wall=float(np.median(wall.mean(axis=0))),
        cpu=float(np.median(cpu.sum(axis=0))),
        sent=float(np.median(sent.mean(axis=0)) / len(sent)),
    )


def measure(team: Team, job: Job) -> dict[str, Spent]:
    turns: dict[str, list[list[dict]]] = {form: [] for form in team.forms}
    for _ in range(TURNS):
        for form, answers in turns.items():
            answers.append(team.run(job, form))
    return {form: spent(answers) for form, answers in turns.items()}


def job_rows(job: Job, of: dict[str, Spent]) -> list[Row]:
    """The measured rows of a stage."""
    one, two, apart = of["one"], of["two"], of["apart"]
    held = (one.cpu / one.wall, apart.cpu / (2 * apart.wall))  # less than 100 %: others were at work
    busy = f"; one had {held[0]:.0%} of its core, two that exchange nothing {held[1]:.0%} of theirs"
    ms = {form: f"{1e3 * each.wall:.4g} ms" for form, each in of.items()}
    note = f"{job.about}; a step of {job.batch_size} samples: one process {ms['one']}, two {ms['two']}, "
    note += f"two that exchange nothing {ms['apart']}: speed-up {one.wall / apart.wall:.2f} so{busy}"
    rates = (job.batch_size / two.wall, job.batch_size / one.wall)
    slope = exponent({1: one.wall, 2: two.wall})
    without = exponent({1: one.wall, 2: apart.wall})
    through = f"through two points, no fit: 1: {ms['one']}, 2: {ms['two']}; -1 is perfect; "
    through += f"without exchange {without:.2f}{busy}"
    overhead = f"of all processes, a step; two that exchange nothing {1e3 * apart.cpu:.4g} ms"
    cpu = (1e3 * two.cpu, 1e3 * one.cpu)
    counted = (
        f"by each process, counted at the loopback device; {job.sent / 1e6:.4g} by formula ({job.about}); "
    )
    counted += "no baseline: one process sends nothing"
    return [
        make_row(f"processes/{job.name}", "samples/s", *rates, note),
        make_row(f"processor_time/{job.name}", "ms", *cpu, overhead, higher_is_better=False),
        make_row(f"exponent/{job.name}/processes", "", slope, None, f"{through}; no baseline"),
        make_row(f"exchanged/{job.name}", "MB a step", two.sent / 1e6, None, counted),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        jobs = make_jobs(folder, make_inputs(folder))
        team = Team(folder, stack)
        rows = [row for job in jobs for row in job_rows(job, measure(team, job))]
    publish("processes", [*rows, *exchange_rows()], setting="wall clock, one thread a process, gloo")


if __name__ == "__main__":
    sys.exit(main())
