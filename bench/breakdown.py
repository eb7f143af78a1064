"""Where the time of a suite goes: `python bench/breakdown.py [runs=<folder>]` prints a table and writes
results/bench/breakdown.json.

Rows: suite/<stage>: seconds of that kind of stage in a finished run (what each stage notes in DONE.json;
`runs` is the folder, left out where it holds none); start/<stage>: processor seconds to start Python and
import what the stage needs, beside torch alone; the heaviest steps by kind of operation, each beside the form
it had before (see _steps.py).
"""

import json
import os
import resource
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from _steps import step_rows
from _table import ROOT, Row, make_row, publish

STARTS = {  # what a stage of the demo imports before it does anything
    "scenes": "encoder.data.scenes.write",
    "tokens": "encoder.tokens, encoder.adapters",
    "llava_align": "llava_bridge.train",
    "llava_instruct": "llava_bridge.train",
    "llava_evaluate": "llava_bridge.evaluate, lmms_eval.evaluator, llava_bridge.lmms, llava_bridge.model",
    "reference": "harness.metrics.reference",
    "rae_train": "rae_bridge.train",
    "rae_generate": "rae_bridge.generate, encoder.adapters",
    "rae_reconstruct": "rae_bridge.reconstruct, encoder.adapters",
    "score": "harness.metrics.score",
}


def import_seconds(modules: str) -> float:
    """Processor seconds of a Python that imports `modules` and ends."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    words = [sys.executable, "-c", f"import {modules}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(words, check=True, cwd=ROOT, env=environment, capture_output=True)
    return spent() - before


def start_rows() -> list[Row]:
    """What it costs to start each kind of stage; equal imports are measured once."""
    import_seconds("torch")  # reads the files once
    torch_alone = import_seconds("torch")
    measured = {modules: import_seconds(modules) for modules in dict.fromkeys(STARTS.values())}
    note = "processor time; baseline: Python with torch alone"
    return [
        make_row(f"start/{stage}", "s", measured[modules], torch_alone, note, higher_is_better=False)
        for stage, modules in STARTS.items()
    ]


def suite_rows(runs: Path, starts: dict[str, float]) -> list[Row]:
    """Seconds of each kind of stage in a finished run, the largest first, and of all their starts."""
    spent = defaultdict(list)
    for done in runs.glob("*/*/DONE.json"):
        spent[done.parent.parent.name].append(json.loads(done.read_text())["seconds"])
    if not spent:
        print(f"no finished stage in {runs}: rows suite/... are left out")
        return []
    started = {stage: starts.get(stage, 0.0) * len(each) for stage, each in spent.items()}
    total = sum(map(sum, spent.values())) + sum(started.values())
    rows = []
    for stage, each in sorted(spent.items(), key=lambda item: -sum(item[1])):
        note = f"{len(each)} stages, {sum(each) / total:.1%} of all; no baseline: a share"
        rows.append(make_row(f"suite/{stage}", "s", sum(each), None, note))
    starting = sum(started.values())
    note = f"{sum(map(len, spent.values()))} processes, {starting / total:.1%} of all, from the rows start/; "
    rows.append(make_row("suite/starts", "s", starting, None, f"{note}no baseline: a share"))
    return rows


def main(words: list[str]) -> None:
    """Raises: SystemExit for any word but runs=<folder>."""
    unknown = [word for word in words if not word.startswith("runs=")]
    if unknown:
        sys.exit(f"error: unknown word '{unknown[0]}'; valid: runs=<folder>")
    runs = ROOT / (words[-1].removeprefix("runs=") if words else "runs")
    starts = start_rows()
    seconds_to_start = {row.name.removeprefix("start/"): row.ours for row in starts}
    rows = [*suite_rows(runs, seconds_to_start), *starts, *step_rows()]
    publish("breakdown", rows, setting="processor time of one thread")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    main(sys.argv[1:])
