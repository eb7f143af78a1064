"""The shared part of the benchmarks: which way a ratio points, and that what is timed is what was asked."""

import json
import sys
from itertools import count

import pytest
import torch

from encoder.runtime.config import ROOT

sys.path.insert(0, str(ROOT / "bench"))
import _table

sys.path.remove(str(ROOT / "bench"))


def test_a_ratio_over_one_means_ours_is_better():
    faster = _table.make_row("a", "pictures/s", 30.0, 20.0, "")
    smaller = _table.make_row("b", "MiB", 10.0, 40.0, "", higher_is_better=False)
    assert (faster.ratio, smaller.ratio) == (1.5, 4.0)
    with pytest.raises(ValueError, match="row c has no baseline: say why"):
        _table.make_row("c", "s", 1.0, None, "")


def test_works_take_turns_and_the_best_pass_counts():
    order, ticks = [], count()
    works = {name: lambda name=name: order.append(name) for name in ("ours", "baseline")}
    times = _table.seconds(works, repeats=2, clock=lambda: next(ticks) ** 2)
    assert order == ["ours", "baseline"] * 3  # a warm-up pass, then two
    assert times == {"ours": 1, "baseline": 3**2 - 2**2}


def test_peak_bytes_counts_what_is_held_together():
    def work():
        first = torch.empty(1 << 18)
        second = torch.empty(1 << 18)
        del first, second
        torch.empty(1 << 18)

    assert _table.peak_bytes(work) == 2 * 4 * 2**18


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results" / "bench").glob("*.json")), ids=lambda path: path.name
)
def test_every_result_has_the_shape_that_other_programs_read(path):
    report = json.loads(path.read_text())
    assert set(report) == {"machine", "commit", "date", "rows"} and report["rows"]
    for row in report["rows"]:
        assert set(row) == {"name", "unit", "ours", "baseline", "ratio", "note"}
        assert (row["ratio"] is None) == (row["baseline"] is None)
        assert row["baseline"] is not None or row["note"]
