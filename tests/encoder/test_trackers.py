"""Trackers: what each one's own reader finds of a run that was killed and went on."""

import json
import sys

import numpy as np
import pytest

from encoder.runtime import trackers
from encoder.runtime.trackers import PROJECT, TENSORBOARD, TRACKER_FILE, Journal
from encoder.training.options import OptimConfig

CONFIG = OptimConfig(lr=0.1, warmup_steps=3)
RED = np.zeros((4, 6, 3), np.uint8) + np.array([255, 0, 0], np.uint8)


def tell(out_dir, kinds, steps, *, close, **more):
    """Tell of steps as a trainer does: `loss` is a tenth of the step, whenever it is told."""
    journal = Journal(out_dir, kinds, CONFIG, **more)
    for step in steps:
        journal.write(step, 6, loss=step / 10, rate=float("nan") if step == 2 else 1.0)
    journal.show(steps[-1], "samples", RED)
    if close:
        journal.close()


def killed_and_resumed(tmp_path, kind):
    """Steps 1 to 4, a kill, and on from a checkpoint of step 2."""
    out_dir = tmp_path / "runs" / "dit"
    out_dir.mkdir(parents=True)
    tell(out_dir, [kind], (1, 2, 3, 4), close=True)
    about = json.loads((out_dir / TRACKER_FILE).read_text()) if kind != "tensorboard" else {}
    tell(out_dir, [kind], (3, 4, 5, 6), close=True)
    if about:
        assert json.loads((out_dir / TRACKER_FILE).read_text()) == about and about["name"] == "runs-dit"
    return out_dir, about


def test_the_log_is_written_with_and_without_trackers_by_the_first_process_alone(tmp_path):
    tell(tmp_path, [], (1, 2), close=True)
    tell(tmp_path, [], (3,), close=True, is_main=False)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["steps"], row["loss"]) for row in rows] == [(1, 0.1), (2, 0.2)]


def test_tensorboard_shows_one_run_each_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out_dir, _ = killed_and_resumed(tmp_path, "tensorboard")
    shown = EventAccumulator(str(out_dir / TENSORBOARD))
    shown.Reload()
    assert [(event.step, pytest.approx(event.step / 10)) for event in shown.Scalars("loss")] == [
        (step, event.value) for step, event in zip(range(1, 7), shown.Scalars("loss"), strict=True)
    ]
    assert [event.step for event in shown.Scalars("rate")] == [1, 3, 4, 5, 6]  # NaN is told to no tracker
    (picture,) = [image for image in shown.Images("samples") if image.step == 6]
    assert (picture.height, picture.width) == (4, 6)


def offline_records(folder):
    """Every record of wandb's offline runs, by its own reader: (id, history as dicts)."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    runs = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        store, rows, about = DataStore(), [], None
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                about = (record.run.project, record.run.display_name, record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({each.key or each.nested_key[0]: json.loads(each.value_json) for each in items})
        runs.append((about, rows))
    return runs


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out_dir, about = killed_and_resumed(tmp_path, "wandb")
    wandb.teardown()  # a process of wandb's own writes the files, and may be behind
    runs = offline_records(out_dir)
    assert [each for each, _ in runs] == [(PROJECT, "runs-dit", about["id"])] * 2
    told = [[(row["_step"], row["loss"]) for row in rows if "loss" in row] for _, rows in runs]
    assert told == [[(step, step / 10) for step in steps] for steps in ((1, 2, 3, 4), (3, 4, 5, 6))]
    assert list(out_dir.glob("wandb/offline-run-*/files/media/images/samples_*.png"))


def test_trackio_goes_on_in_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # it reads this when it is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    _, about = killed_and_resumed(tmp_path, "trackio")
    name = f"runs-dit-{about['id']}"
    assert name in SQLiteStorage.get_runs(PROJECT)
    logs = SQLiteStorage.get_logs(PROJECT, name)
    assert sorted({row["step"] for row in logs if "loss" in row}) == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] == pytest.approx(row["step"] / 10) for row in logs if "loss" in row)


def test_a_tracker_that_is_not_there_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for kind in ("tensorboard", "wandb", "trackio"):
        with pytest.raises(ValueError, match=f"tracker {kind} is not installed: pip install {kind}"):
            Journal(tmp_path, [kind], CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_wandb_that_cannot_start_says_why(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refused(**_):
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.raises(ValueError, match=r"wandb cannot start: api_key not configured .*WANDB_MODE=offline"):
        Journal(tmp_path, ["wandb"], CONFIG)


def test_no_tracker_is_loaded_that_is_not_asked_for(tmp_path):
    before = set(sys.modules)
    tell(tmp_path, [], (1,), close=True)
    assert not {"wandb", "trackio", "tensorboard"} & (set(sys.modules) - before)
