"""What tests of several packages share."""

import json
import math
from collections import defaultdict
from pathlib import Path

import pytest


@pytest.fixture
def tensorboard_holds_the_log():
    """A function that compares what TensorBoard's own reader finds of a run with the run's log.jsonl, of
    which the last telling of a step counts; skips where TensorBoard is not installed."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def compare(out_dir: Path, steps: list[int]) -> None:
        told, shown = defaultdict(dict), EventAccumulator(str(out_dir / "tensorboard"))
        for row in map(json.loads, (out_dir / "log.jsonl").read_text().splitlines()):
            told[row.pop("steps", None)] |= row
        shown.Reload()
        found = defaultdict(dict)
        for name in shown.Tags()["scalars"]:
            for event in shown.Scalars(name):
                assert name not in found[event.step], f"{name} of step {event.step} is shown twice"
                found[event.step][name] = event.value
        assert sorted(found) == steps
        for step in steps:
            assert found[step] == pytest.approx({k: v for k, v in told[step].items() if math.isfinite(v)})

    return compare
