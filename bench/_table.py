"""What the scripts here share: interleaved timing, peak memory, and results/bench/<subject>.json.

Importing it makes the repository's packages importable: `python bench/<subject>.py` works uninstalled.
"""

from __future__ import annotations

import gc
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # before this folder, whose scripts bear the packages' names

from encoder.runtime.stage import write_json  # noqa: E402
from harness.running.provenance import git_commit, hardware  # noqa: E402

Work = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One claim. `ratio` > 1 means ours is better; a row without a baseline says why in `note`."""

    name: str
    unit: str
    ours: float
    baseline: float | None
    ratio: float | None
    note: str


def make_row(
    name: str, unit: str, ours: float, baseline: float | None, note: str, *, higher_is_better: bool = True
) -> Row:
    """A row from two numbers in `unit`, four digits each.

    Raises: ValueError if there is neither a baseline nor a note on why.
    """
    if baseline is None:
        if not note:
            raise ValueError(f"row {name} has no baseline: say why in its note")
        return Row(name=name, unit=unit, ours=_digits(ours), baseline=None, ratio=None, note=note)
    ratio = ours / baseline if higher_is_better else baseline / ours
    sides = {"ours": _digits(ours), "baseline": _digits(baseline), "ratio": _digits(ratio)}
    return Row(name=name, unit=unit, note=note, **sides)


def seconds(
    works: Mapping[str, Work],
    *,
    repeats: int = 5,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds a call of each work: the best of `repeats` passes, in each of which all works take turns.

    The best, since a busy machine only slows; in turns, since it slows all alike. A work on a GPU is waited
    for. `clock=time.process_time` counts processor time, of all threads together.
    """
    for work in works.values():
        for _ in range(warmup):
            work()
    best = dict.fromkeys(works, float("inf"))
    for _ in range(repeats):
        for name, work in works.items():
            _wait_for_gpu()
            start = clock()
            work()
            _wait_for_gpu()
            best[name] = min(best[name], clock() - start)
    return best


def peak_bytes(work: Work) -> int:
    """Most bytes that torch held for tensors during `work`, over what it held before.

    On a CPU the sum of the profiler's allocations and frees, so no other memory of the process counts.
    """
    import torch

    work()  # caches and lazy buffers are not the work's
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def publish(subject: str, rows: list[Row], *, setting: str = "") -> Path:
    """Print the table and write results/bench/<subject>.json, or <subject>.<gpu>.json where there is a GPU.

    `setting` joins the machine's description: threads, precision, whatever holds for all rows.
    """
    machine = hardware()
    gpu = machine["gpu"]
    parts = [machine["processor"], f"{machine['cores']} cores", gpu, setting]
    report = {
        "machine": ", ".join(str(part) for part in parts if part),
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": [asdict(row) for row in rows],
    }
    kind = f".{re.sub(r'[^a-z0-9]+', '-', gpu.splitlines()[0].lower())}" if gpu else ""
    path = ROOT / "results" / "bench" / f"{subject}{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)
    show(rows)
    print(f"written: {path.relative_to(ROOT)}")
    return path


def show(rows: list[Row]) -> None:
    """Print the table."""
    width = max(len(row.name) for row in rows)
    print(f"{'':<{width}} {'ours':>10} {'baseline':>10} {'ratio':>7}")
    for row in rows:
        baseline, ratio = ("-" if value is None else f"{value:g}" for value in (row.baseline, row.ratio))
        print(f"{row.name:<{width}} {row.ours:>10g} {baseline:>10} {ratio:>7} {row.unit}")


def _wait_for_gpu() -> None:
    torch = sys.modules.get("torch")  # a script that does not use torch is not made to load it
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
