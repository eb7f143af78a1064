"""What a trainer's loop stands on: orders kept, batches made ahead, steps that are not finite left out."""

import math
import threading
from dataclasses import replace

import pytest
import torch

from encoder.runtime import checkpoint
from encoder.runtime.ahead import made_ahead
from encoder.runtime.config import dump
from encoder.runtime.device import set_tf32
from encoder.runtime.stage import main, write_json
from rae_bridge import train as stage
from rae_bridge.config import DiTOptimConfig, DiTSize, TrainDiTConfig


def test_an_epochs_order_is_drawn_once_and_batches_are_its_consecutive_entries(monkeypatch):
    drawn, original = [], checkpoint.epoch_order

    def counted(*arguments):
        drawn.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(checkpoint, "epoch_order", counted)
    checkpoint._kept_order.cache_clear()
    orders = torch.cat([original(11, epoch, 10) for epoch in range(13)])
    for step in range(30):
        indices = checkpoint.batch_indices(11, step, 4, 10)
        assert torch.equal(indices, orders[4 * step : 4 * step + 4])
        indices.zero_()  # what a caller does to its batch does not reach the order
    assert drawn == [(11, epoch, 10) for epoch in range(12)]
    assert torch.equal(checkpoint.batch_indices(11, 1, 25, 10), orders[25:50])  # more than two epochs


def test_what_is_made_ahead_comes_in_order_from_one_other_thread():
    made, threads = [], set()

    def make(step):
        made.append(step)
        threads.add(threading.current_thread())
        return step * step

    steps = range(3, 40)
    assert list(made_ahead(make, steps)) == [step * step for step in steps]
    assert made == list(steps) and len(threads) == 1 and threading.main_thread() not in threads
    assert list(made_ahead(make, range(0))) == []


def test_at_most_count_are_ahead_and_none_is_made_once_it_is_given_up():
    made, before = [], set(threading.enumerate())
    ahead = made_ahead(made.append, range(100), count=3)
    next(ahead)
    (thread,) = set(threading.enumerate()) - before
    del ahead
    thread.join(60)
    assert not thread.is_alive() and len(made) <= 4 and made == list(range(len(made)))


def test_what_fails_ahead_is_raised_at_its_step():
    def make(step):
        return 1 // (5 - step)

    seen = []
    with pytest.raises(ZeroDivisionError):
        for value in made_ahead(make, range(10), count=4):
            seen.append(value)
    assert len(seen) == 5


def test_tf32_is_a_matter_of_the_gpu_alone():
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    try:
        for allowed in (True, False):
            set_tf32("cuda:1", allowed)
            assert [place.allow_tf32 for place in places] == [allowed, allowed]
        set_tf32("cpu", True)
        assert [place.allow_tf32 for place in places] == [False, False]
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


@pytest.fixture
def config(tmp_path) -> TrainDiTConfig:
    tokens = torch.randn(16, 4, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 4
    checkpoint.save_tensors(tmp_path / "tokens.safetensors", {"tokens": tokens.half(), "labels": labels})
    origin = {"encoder": "e", "features": "last", "fingerprint": "f"}
    write_json(tmp_path / "index.json", {**origin, "keys": [str(i) for i in range(16)]})
    return TrainDiTConfig(
        tokens=str(tmp_path), num_classes=4, num_steps=9, batch_size=8, checkpoint_steps=2, log_steps=9,
        size=DiTSize(hidden_size=(16,), depth=(1,), num_heads=(2,)), optim=DiTOptimConfig(lr=1e-3),
    )  # fmt: skip


@pytest.mark.parametrize("bad_step", [3, 4])  # the last before a checkpoint, and the first after one
def test_a_step_that_is_not_finite_stops_the_run_and_is_never_saved(config, tmp_path, monkeypatch, bad_step):
    (tmp_path / "out").mkdir()
    (tmp_path / "clean").mkdir()
    original = stage.draw_batch

    def spoilt(latents, y, config, shift, step, part=None):
        batch = original(latents, y, config, shift, step, part)
        return replace(batch, target=batch.target * math.inf) if step == bad_step else batch

    monkeypatch.setattr(stage, "draw_batch", spoilt)
    with pytest.raises(ValueError, match=f"loss is inf at step {bad_step}"):
        stage.train(config, tmp_path / "out")
    kept = checkpoint.load(tmp_path / "out" / "checkpoint.pt")
    monkeypatch.setattr(stage, "draw_batch", original)
    last_good = 2 * (bad_step // 2)
    stage.train(replace(config, num_steps=last_good), tmp_path / "clean")
    clean = checkpoint.load(tmp_path / "clean" / "checkpoint.pt")
    assert kept["step"] == clean["step"] == last_good
    assert all(torch.equal(tensor, clean["model"][name]) for name, tensor in kept["model"].items())


@pytest.mark.parametrize("muon_lr", [None, 0.02])
def test_a_step_that_may_be_left_out_leaves_the_weights_and_is_counted(
    config, tmp_path, monkeypatch, muon_lr
):
    config = replace(config, num_steps=4, skip_non_finite=1, optim=replace(config.optim, muon_lr=muon_lr))
    config = replace(config, checkpoint_steps=1, keep_checkpoints=3)
    original = stage.draw_batch

    def spoilt(latents, y, config, shift, step, part=None):
        batch = original(latents, y, config, shift, step, part)
        return replace(batch, target=batch.target * math.nan) if step == 2 else batch

    monkeypatch.setattr(stage, "draw_batch", spoilt)
    stage.train(config, folder := tmp_path)
    last, third, second = (checkpoint.load(folder / f"checkpoint{end}.pt") for end in ("", ".1", ".2"))
    assert [state["step"] for state in (last, third, second)] == [4, 3, 2]
    assert [state["skipped"] for state in (last, third, second)] == [1, 1, 0]
    assert all(torch.equal(tensor, second["model"][name]) for name, tensor in third["model"].items())
    assert not all(torch.equal(tensor, third["model"][name]) for name, tensor in last["model"].items())


def test_a_run_goes_on_with_another_rate_and_more_steps_but_not_with_other_data(config, tmp_path):
    dump(config, tmp_path / "dit.yaml")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "dit.yaml"), str(out)]
    main(TrainDiTConfig, stage.train, [*arguments, "num_steps=4"])
    assert checkpoint.load(out / "checkpoint.pt")["step"] == 4
    (out / "DONE.json").unlink()  # as a killed run leaves it
    main(TrainDiTConfig, stage.train, [*arguments, "num_steps=6", "optim.lr=0.0005", "keep_checkpoints=2"])
    state = checkpoint.load(out / "checkpoint.pt")
    assert state["step"] == 6 and state["optimiser"]["param_groups"][0]["lr"] == 0.0005
    assert "optim.lr" in (out / "changes.jsonl").read_text()
    (out / "DONE.json").unlink()
    for word in ("num_classes=5", "seed=1", "num_steps=5"):
        with pytest.raises(SystemExit):
            main(TrainDiTConfig, stage.train, [*arguments, "num_steps=6", word])
