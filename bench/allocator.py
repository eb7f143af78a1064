"""What the harness tells glibc's allocator is worth: `python bench/allocator.py` prints a table and writes
results/bench/allocator.json.

Rows: <stage>/<of what>, a stage of the demo in a process of its own, as the harness starts it and without
`harness.running.launch.ALLOCATOR`, in turns; the least processor time and the largest resident memory.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from _table import ROOT, Row, make_row, publish

from encoder.data.options import ScenesConfig
from encoder.data.scenes import write
from harness.running.launch import ALLOCATOR

REPEATS = 2
NUM_PICTURES = 640
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def stages(scenes: Path) -> dict[str, dict[str, Any]]:
    """The configs of the stages, by module."""
    pictures = {"data": str(scenes)}
    return {
        "encoder.tokens": {**pictures, "encoder": "ov3-demo", "split": "train"},
        "rae_bridge.reconstruct": {**pictures, "encoder": "ov3-demo", "split": "test", "limit": 320},
        "harness.metrics.reference": {
            **pictures,
            "num_samples": NUM_PICTURES // 2,
            "kernel_subset_size": 160,
        },
    }


def cost(module: str, config: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[float, float]:
    """Processor seconds and largest resident megabytes of a stage that runs once in a new folder.

    Raises:
        subprocess.CalledProcessError: the stage failed.
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "config.yaml")
        path.write_text(yaml.safe_dump(dict(config)))
        words = [sys.executable, "-m", module, str(path), str(Path(name, "out"))]
        child = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, words)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def rows() -> list[Row]:
    found = []
    plain = {name: value for name, value in os.environ.items() if name not in ALLOCATOR} | ONE_THREAD
    with tempfile.TemporaryDirectory() as name:
        none = dict.fromkeys(
            ("num_val", "num_llava_images", "num_text", "num_seed_questions", "num_pope_pairs"), 0
        )
        sizes = {"num_train": NUM_PICTURES, "num_test": NUM_PICTURES, **none}
        write.run(ScenesConfig(image_size=64, **sizes), Path(name))
        for module, config in stages(Path(name)).items():
            turns = [[cost(module, config, plain | told) for told in (ALLOCATOR, {})] for _ in range(REPEATS)]
            ours, baseline = (list(zip(*side, strict=True)) for side in zip(*turns, strict=True))
            for what, unit, reduce, i in (("time", "s", min, 0), ("memory", "MB", max, 1)):
                values = reduce(ours[i]), reduce(baseline[i])
                note = "a process of one thread, imports included; baseline: glibc's defaults"
                found.append(make_row(f"{module}/{what}", unit, *values, note, higher_is_better=False))
    return found


if __name__ == "__main__":
    publish("allocator", rows(), setting="1 thread, processor time")
