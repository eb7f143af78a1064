"""One of the processes of bench/processes.py: for each line of JSON on its input it runs a training or
sampling stage of this project once, and answers with what passed until the end of each step.

Line: {"stage", "config", "out_dir", "steps"}. Answer: {"wall", "cpu", "sent"}: seconds, seconds of this
process's processor time, and bytes that all processes of this machine sent to each other, at the end of each
step, from any zero. Whatever a stage prints goes to the error output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from _table import ROOT  # noqa: F401 - makes the packages importable

from encoder.runtime.config import load

Mark = tuple[float, float, int]


def mark() -> Mark:
    """Now: seconds, this process's processor time, bytes over the loopback device."""
    devices = Path("/proc/net/dev").read_text().split("lo:")
    return time.perf_counter(), time.process_time(), int(devices[1].split()[8])


def marked(work: Callable, marks: list[Mark], *args: Any) -> Any:
    """`work` with a mark at its end."""
    result = work(*args)
    marks.append(mark())
    return result


def find_stages() -> dict[str, tuple[type, Callable[[Any, Path], dict]]]:
    """Configuration and function of each stage. Imported here: libraries print when they are."""
    import encoder.train
    import llava_bridge.train
    import rae_bridge.train
    from encoder.training.options import TrainConfig
    from llava_bridge.config import LlavaConfig
    from rae_bridge.config import GenerateConfig, TrainDiTConfig

    return {
        "encoder.train": (TrainConfig, encoder.train.train),
        "rae_bridge.train": (TrainDiTConfig, rae_bridge.train.train),
        "rae_bridge.generate": (GenerateConfig, rae_bridge.generate.run),
        "llava_bridge.train": (LlavaConfig, llava_bridge.train.train),
    }


def run(line: dict, kind: type, stage: Callable[[Any, Path], dict]) -> dict[str, list]:
    """Run the stage of a line in a new folder."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from rae_bridge import generate

    out_dir, marks = Path(line["out_dir"]), []
    out_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    hook = register_optimizer_step_post_hook(lambda *_: marks.append(mark()))
    draw = partial(marked, generate.draw_samples, marks)
    with mock.patch.object(generate, "draw_samples", draw):
        stage(load(kind, Path(line["config"])), out_dir)
    hook.remove()
    if torch.get_num_threads() != 1:
        raise ValueError(f"{line['stage']} set {torch.get_num_threads()} threads; this benchmark needs 1")
    groups, left = divmod(len(marks), line["steps"])  # DeepSpeed updates each group of parameters by itself
    if left:
        raise ValueError(f"{line['stage']} made {len(marks)} updates in {line['steps']} steps")
    wall, cpu, sent = zip(*marks[groups - 1 :: groups], strict=True)
    return {"wall": wall, "cpu": cpu, "sent": sent}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    stages = find_stages()
    print("ready", file=answers, flush=True)
    for line in map(json.loads, sys.stdin):
        print(json.dumps(run(line, *stages[line["stage"]])), file=answers, flush=True)


if __name__ == "__main__":
    main()
