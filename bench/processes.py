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
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _exchange import (
    BF16_BYTES,
    FP32_BYTES,
    all_reduce_bytes,
    contrastive_bytes,
    exchange_rows,
    exponent,
    zero2_bytes,
)
from _table import ROOT, Row, make_row, publish

import rae_bridge.train
from encoder import tokens
from encoder.config import dump, load, read_yaml
from encoder.data.scenes import write
from encoder.flops import num_parameters
from encoder.options import ScenesConfig, TokensConfig, TrainConfig
from harness.config import CONFIGS
from llava_bridge.config import LlavaConfig
from llava_bridge.model import build, save
from rae_bridge.config import GenerateConfig, TrainDiTConfig

TURNS, STEPS, SKIPPED = 2, 5, 1  # turns of each form; steps of a turn, of which the first are not counted
NUM_PICTURES, GENERATED = 160, 32  # drawn for this; sampled at once
ENDING = 20.0  # seconds that a worker has to end in


@dataclass(frozen=True)
class Job:
    """A stage whose step is `batch_size` samples, however many processes do them."""

    name: str
    alone: Any  # the config of one process
    shared: Any  # of two together
    halved: Any  # of each of two that are apart
    batch_size: int
    sent: float  # bytes that each of two sends a step, by formula
    about: str


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


def make_inputs(folder: Path) -> dict[str, int]:
    """What the stages start from, by the stages before them: pictures, tokens, a DiT, a first LLaVA; returns
    how many parameters learn in the stages for which this is known only here."""
    for name in ("scenes", "ov3", "blind", "dit"):
        (folder / name).mkdir()
    number = {"num_train": NUM_PICTURES, "num_test": 32, "num_llava_images": NUM_PICTURES}
    nothing = dict.fromkeys(("num_val", "num_text", "num_seed_questions", "num_pope_pairs"), 0)
    write.run(ScenesConfig(image_size=64, **number, **nothing), folder / "scenes")
    tokens.run(TokensConfig(encoder="ov3-demo", data=str(folder / "scenes")), folder / "ov3")
    pictures = {"data": str(folder / "scenes" / "llava"), "records": [str(conversations(folder))]}
    tokens.run(TokensConfig(encoder="blind", **pictures), folder / "blind")
    trained = rae_bridge.train.train(dit_config(folder, batch_size=8, num_steps=1), folder / "dit")
    llava, processor = build("blind", None, ROOT / "weights" / "demo" / "llama", "sdpa", seed=0)
    save(llava, processor, folder / "init")
    llava.model.vision_tower.requires_grad_(False)
    learning = sum(each.numel() for each in llava.parameters() if each.requires_grad)
    return {"rae_bridge.train": trained["num_parameters"], "llava_bridge.train": learning}


def conversations(folder: Path) -> Path:
    return folder / "scenes" / "llava" / "instruct.json"


def demo() -> dict:
    return read_yaml(CONFIGS / "presets" / "demo.yaml")


def encoder_config(folder: Path, **own: Any) -> TrainConfig:
    own |= {
        "data": str(folder / "scenes"),
        "eval_limit": 8,
        "log_steps": 100,
        "snapshot_steps": [],
        "device": "cpu",
    }
    return load(TrainConfig, demo()["ablation"]["train"] | own)


def dit_config(folder: Path, **own: Any) -> TrainDiTConfig:
    return load(TrainDiTConfig, demo()["rae"]["train"] | own | {"tokens": str(folder / "ov3")})


def llava_config(folder: Path, **own: Any) -> LlavaConfig:
    own |= {"stage": 2, "encoder": "blind", "data": [str(conversations(folder))], "log_steps": 100}
    own |= {"tokens": str(folder / "blind"), "init": str(folder / "init")}
    return load(LlavaConfig, demo()["llava"]["instruct"] | own)


def generate_config(folder: Path, **own: Any) -> GenerateConfig:
    return GenerateConfig(model=str(folder / "dit" / "weights"), encoder="ov3-demo", num_steps=5, **own)


def make_jobs(folder: Path, num_learning: Mapping[str, int]) -> list[Job]:
    """The demo's stages at its sizes."""

    def job(name: str, batch_size: int, sent: float, about: str, make: Callable[[int], Any]) -> Job:
        return Job(name, make(batch_size), make(batch_size), make(batch_size // 2), batch_size, sent, about)

    def towers(n: int) -> TrainConfig:
        return encoder_config(folder, batch_size=n, num_steps=STEPS)

    def dit(n: int) -> TrainDiTConfig:
        return dit_config(folder, batch_size=n, num_steps=STEPS)

    def llava(n: int) -> LlavaConfig:
        return llava_config(folder, batch_size=n, num_epochs=STEPS * n / NUM_PICTURES)

    gradients = {name: all_reduce_bytes(values, FP32_BYTES, 2) for name, values in num_learning.items()}
    sent = all_reduce_bytes(sum(num_parameters(towers(32)).values()), FP32_BYTES, 2)
    sent += contrastive_bytes(towers(32), 2)
    zero = zero2_bytes(num_learning["llava_bridge.train"], BF16_BYTES, 2)
    shared = generate_config(folder, num_samples=GENERATED * STEPS, batch_size=GENERATED // 2)
    drawn = [
        replace(shared, batch_size=GENERATED),
        shared,
        replace(shared, num_samples=GENERATED * STEPS // 2),
    ]
    return [
        job("encoder.train", 32, sent, "DDP, fp32 gradients; features gathered", towers),
        job("rae_bridge.train", 64, gradients["rae_bridge.train"], "DDP, fp32 gradients", dit),
        Job("rae_bridge.generate", *drawn, GENERATED, 0.0, "25 steps in the demo, 5 here"),
        job("llava_bridge.train", 32, zero, "stage 2, ZeRO-2, bf16 gradients and weights", llava),
    ]


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
    through = f"through two points, no fit: 1: {ms['one']}, 2: {ms['two']}; -1 is perfect; without exchange "
    overhead = f"of all processes, a step; two that exchange nothing {1e3 * apart.cpu:.4g} ms"
    cpu = (1e3 * two.cpu, 1e3 * one.cpu)
    counted = (
        f"by each process, counted at the loopback device; {job.sent / 1e6:.4g} by formula ({job.about}); "
    )
    counted += "no baseline: one process sends nothing"
    return [
        make_row(f"processes/{job.name}", "samples/s", *rates, note),
        make_row(f"processor_time/{job.name}", "ms", *cpu, overhead, higher_is_better=False),
        make_row(f"exponent/{job.name}/processes", "", slope, None, f"{through}{without:.2f}; no baseline"),
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
