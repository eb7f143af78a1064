"""What the class is worth: losses per time with a true, a wrong and no class, and the settings about it."""

from dataclasses import replace

import pytest
import torch

from encoder.runtime import checkpoint
from encoder.runtime.stage import write_json
from rae_bridge import train as stage
from rae_bridge.class_losses import TIMES, class_losses
from rae_bridge.config import DiTOptimConfig, DiTSize, TrainDiTConfig
from rae_bridge.latents import open_latents

NUM, CLASSES = 24, 3


class Knowing(torch.nn.Module):
    """Knows that class k's latents are all k, and that pictures of no class are 1 on average."""

    num_classes = CLASSES

    def forward(self, x_t, t, y):
        told = torch.where(y == CLASSES, 1, y)[:, None, None, None].to(x_t)
        t = t[:, None, None, None]
        return (x_t - (1 - t) * told) / t - told  # noise - latents


def test_a_model_that_knows_its_classes_in_closed_form():
    y = torch.arange(300) % CLASSES
    latents = y.double()[:, None, None, None].expand(300, 4, 2, 2)
    noise = torch.randn(300, 4, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    losses = class_losses(Knowing(), latents, y, noise, has_null=True)
    assert list(losses) == [f"{time:g}" for time in TIMES]
    for time, at in zip(TIMES, losses.values(), strict=True):
        # told k instead of c: (c - k) (1 - t) / t + (c - k) = (c - k) / t; wrong: 1, 1, -2; null: 1, 0, -1
        assert at["true"] == pytest.approx(0, abs=1e-20)
        assert at["wrong"] == pytest.approx((1 + 1 + 4) / 3 / time**2)
        assert at["null"] == pytest.approx(2 / 3 / time**2)
    assert set(class_losses(Knowing(), latents, y, noise, has_null=False)["0.1"]) == {"true", "wrong"}


def write_tokens(folder, seed, fingerprint="f"):
    folder.mkdir(exist_ok=True)
    labels = torch.arange(NUM) % CLASSES
    tokens = torch.randn(NUM, 4, 8, generator=torch.Generator().manual_seed(seed)) + 3 * labels[:, None, None]
    checkpoint.save_tensors(folder / "tokens.safetensors", {"tokens": tokens.half(), "labels": labels})
    origin = {"encoder": "e", "features": "last", "fingerprint": fingerprint}
    write_json(folder / "index.json", {**origin, "keys": [str(i) for i in range(NUM)]})
    return str(folder)


@pytest.fixture
def config(tmp_path) -> TrainDiTConfig:
    return TrainDiTConfig(
        tokens=write_tokens(tmp_path / "train", 0), num_classes=CLASSES, num_steps=20, batch_size=8,
        size=DiTSize(hidden_size=(16,), depth=(1,), num_heads=(2,)), optim=DiTOptimConfig(lr=3e-3),
        statistics=None, ema_decay=0.9,
    )  # fmt: skip


def test_the_result_tells_what_the_class_is_worth_on_held_out_tokens(config, tmp_path):
    held_out = write_tokens(tmp_path / "val", 1)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    own = stage.train(config, tmp_path / "one")
    other = stage.train(replace(config, held_out=held_out), tmp_path / "two")
    assert own["loss"] == other["loss"]  # of the training tokens, as ever
    assert "held_out_loss" not in own and other["held_out_loss"] != other["loss"]
    assert own["class_losses"] != other["class_losses"]
    assert set(own["class_losses"]["0.5"]) == {"true", "wrong", "null"}
    foreign = write_tokens(tmp_path / "foreign", 1, fingerprint="g")
    with pytest.raises(ValueError, match=r"held_out .*foreign knows tokens of e \(last, g\)"):
        stage.train(replace(config, held_out=foreign), tmp_path / "two")


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_classes_begin_as_far_apart_as_asked_and_nothing_else_changes(config, std):
    cache = open_latents(stage.ROOT / config.tokens)
    config = replace(config, size=DiTSize(hidden_size=(512,), depth=(1,), num_heads=(2,)))
    base = stage.build_model(config, cache).state_dict()
    model = stage.build_model(replace(config, class_init_std=std), cache).state_dict()
    table = model.pop("y_embedder.embedding_table.weight")
    assert table.std().item() == pytest.approx(std, rel=0.05)
    torch.testing.assert_close(table, base.pop("y_embedder.embedding_table.weight") * (std / 0.02))
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.items())
    with pytest.raises(ValueError, match="class_init_std 0 must be over 0"):
        replace(config, class_init_std=0)


def test_the_average_spans_its_share_of_the_run(config):
    assert config.average_decay == 0.9
    fitted = replace(config, num_steps=800, ema_share=0.05)
    assert fitted.average_decay == pytest.approx(1 - 1 / 40)
    assert replace(fitted, num_steps=8000).average_decay == pytest.approx(1 - 1 / 400)
    for share in (0.0, 0.001, 1.5, -1.0):
        with pytest.raises(ValueError, match="must span 1 step to all 800"):
            replace(fitted, ema_share=share)
