"""Training of the diffusion transformer: its step against formulas, resume, averages, and that it learns."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch

from encoder.runtime import checkpoint
from encoder.runtime.stage import write_json
from encoder.training.optim import average_weights
from rae_bridge import train as stage
from rae_bridge.config import DiTOptimConfig, DiTSize, TrainDiTConfig
from rae_bridge.dit import DiT
from rae_bridge.held_out import evaluate
from rae_bridge.latents import LatentStatistics

NUM, CLASSES = 40, 4
SIZE = DiTSize(hidden_size=(32, 32), depth=(1, 1), num_heads=(2, 2))


@pytest.fixture
def config(tmp_path) -> TrainDiTConfig:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(NUM) % CLASSES
    tokens = torch.randn(NUM, 4, 8, generator=generator) * 3 + labels[:, None, None]
    checkpoint.save_tensors(tmp_path / "tokens.safetensors", {"tokens": tokens.half(), "labels": labels})
    origin = {"encoder": "e", "features": "last", "fingerprint": "f"}
    write_json(tmp_path / "index.json", {**origin, "keys": [str(i) for i in range(NUM)]})
    optim = DiTOptimConfig(lr=1e-3)
    return TrainDiTConfig(
        tokens=str(tmp_path), num_classes=CLASSES, num_steps=6, batch_size=8, size=SIZE, optim=optim,
        checkpoint_steps=3, log_steps=2,
    )  # fmt: skip


def batch_of(config, step=0, num=8):
    latents = torch.randn(num, 8, 2, 2, generator=torch.Generator().manual_seed(1))
    return latents, stage.draw_batch(latents, torch.arange(num) % CLASSES, config, 1.0, step)


def test_a_batch_is_the_linear_path_and_depends_on_seed_and_step_alone(config):
    latents, batch = batch_of(config)
    noise = batch.target + latents
    t = batch.t[:, None, None, None]
    torch.testing.assert_close(batch.x_t, (1 - t) * latents + t * noise)
    assert noise.std() == pytest.approx(1, abs=0.1) and noise.mean() == pytest.approx(0, abs=0.1)
    again = batch_of(config)[1]
    assert torch.equal(batch.x_t, again.x_t) and torch.equal(batch.y, again.y)
    assert not torch.equal(batch.x_t, batch_of(config, step=1)[1].x_t)
    assert not torch.equal(batch.x_t, batch_of(replace(config, seed=1))[1].x_t)


def test_times_are_shifted_and_labels_dropped_at_their_rate(config):
    latents = torch.zeros(20_000, 1, 1, 1)
    y = torch.zeros(20_000, dtype=torch.long)
    batch = stage.draw_batch(latents, y, config, 6.9282, 0)
    assert batch.t.mean() == pytest.approx(0.837, abs=5e-3)
    assert (batch.y == CLASSES).float().mean() == pytest.approx(0.1, abs=0.01)
    kept = stage.draw_batch(latents, y, replace(config, class_dropout_prob=0.0), 6.9282, 0)
    assert not kept.y.any()


def test_micro_batches_give_the_gradient_of_the_whole_batch(config):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"net": torch.nn.Conv2d(8, 8, 1)}).double()
    forward = lambda x_t, t, y: model["net"](x_t) * t[:, None, None, None]  # noqa: E731
    model.forward = forward
    _, batch = batch_of(config)
    batch = stage.FlowBatch(batch.x_t.double(), batch.t.double(), batch.y, batch.target.double())
    expected = (forward(batch.x_t, batch.t, batch.y) - batch.target).square().mean()
    gradient = torch.autograd.grad(expected, model["net"].weight)[0]
    for micro in (None, 4, 2, 1):
        model.zero_grad()
        loss = stage.accumulate_gradients(model, batch, replace(config, micro_batch_size=micro))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        torch.testing.assert_close(model["net"].weight.grad, gradient)


def test_the_rate_warms_up_stays_falls_and_stays():
    optim = DiTOptimConfig(lr=2e-4, final_lr=2e-5, decay_steps=(40, 800), warmup_steps=4)
    rates = {step: stage.learning_rate(optim, step) for step in (0, 3, 39, 40, 420, 800, 1400)}
    assert rates == pytest.approx({0: 5e-5, 3: 2e-4, 39: 2e-4, 40: 2e-4, 420: 1.1e-4, 800: 2e-5, 1400: 2e-5})
    assert stage.learning_rate(DiTOptimConfig(), 10**6) == 2e-4


def test_the_average_follows_its_formula_and_leaves_frozen_tensors(config):
    model = stage.build_model(config, stage.open_latents(config_path(config)))
    averaged = stage.build_model(config, stage.open_latents(config_path(config)))
    expected = averaged.t_embedder.mlp[0].weight.clone()
    for step in range(3):
        model.t_embedder.mlp[0].weight.data.add_(1.0)
        average_weights(averaged.parameters(), model.parameters(), 0.15, step)
        decay = min(0.15, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.t_embedder.mlp[0].weight
    torch.testing.assert_close(averaged.t_embedder.mlp[0].weight, expected)
    assert torch.equal(averaged.pos_embed, model.pos_embed) and torch.equal(
        averaged.t_embedder.W, model.t_embedder.W
    )


def config_path(config):
    return stage.ROOT / config.tokens


def test_a_killed_run_goes_on_to_the_same_last_bit(config, tmp_path, monkeypatch):
    whole = stage.train(config, folder(tmp_path, "whole"))
    original = stage.train_step

    def killed(model, optimiser, batch, config, step, loss_of, finite):
        if step == 4:
            raise KeyboardInterrupt
        return original(model, optimiser, batch, config, step, loss_of, finite)

    cut = folder(tmp_path, "cut")
    monkeypatch.setattr(stage, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.train(config, cut)
    assert checkpoint.load(cut / "checkpoint.pt")["step"] == 3
    monkeypatch.setattr(stage, "train_step", original)
    resumed = stage.train(config, cut)
    assert resumed["loss"] == whole["loss"]
    first, second = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    for part in ("model", "averaged"):
        assert all(torch.equal(tensor, second[part][key]) for key, tensor in first[part].items())
    for index, moments in first["optimiser"]["state"].items():
        assert torch.equal(moments["exp_avg_sq"], second["optimiser"]["state"][index]["exp_avg_sq"])


def folder(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_the_weights_folder_holds_the_averaged_model_its_statistics_and_its_shift(config, tmp_path):
    out_dir = folder(tmp_path, "out")
    result = stage.train(replace(config, num_steps=3), out_dir)
    averaged = checkpoint.load(out_dir / "checkpoint.pt")["averaged"]
    model = DiT.from_pretrained(out_dir / "weights")
    assert all(torch.equal(tensor, averaged[key]) for key, tensor in model.state_dict().items())
    cache = stage.open_latents(config_path(config))
    statistics = LatentStatistics.load(out_dir / "weights" / "latent_stats.pt")
    torch.testing.assert_close(statistics.mean, cache.latents(torch.arange(NUM)).double().mean(0).float())
    assert result["shift"] == 1.0  # 32 numbers are fewer than 4096: no shift towards data
    assert (out_dir / "weights" / "flow.json").is_file() and (out_dir / "log.jsonl").is_file()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_picture_overfits(config, tmp_path, precision):
    tokens = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)).expand(NUM, 4, 8)
    labels = torch.zeros(NUM, dtype=torch.long)
    checkpoint.save_tensors(tmp_path / "tokens.safetensors", {"tokens": tokens, "labels": labels})
    LatentStatistics(None, None).save(tmp_path / "stats.pt")
    optim = DiTOptimConfig(lr=3e-3)
    config = replace(config, statistics=str(tmp_path / "stats.pt"), precision=precision, optim=optim)
    config = replace(config, num_steps=200, batch_size=32, ema_decay=0.9, checkpoint_steps=200, log_steps=99)
    # an untrained model predicts 0: its loss is the power of noise - latents, about 2
    assert stage.train(config, folder(tmp_path, "out"))["loss"] < 0.1


def test_wrong_input_is_refused_before_any_step(config, tmp_path):
    with pytest.raises(ValueError, match="num_classes 2: the tokens have a label 3"):
        stage.train(replace(config, num_classes=2), tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        stage.train(replace(config, tokens=str(tmp_path / "nowhere")), tmp_path)
    with pytest.raises(ValueError, match="multiple of micro_batch_size 3"):
        replace(config, micro_batch_size=3)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_weights_untouched(config):
    cache = stage.open_latents(config_path(config))
    model = stage.build_model(config, cache)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    _, batch = batch_of(config)
    batch.target[0] = math.inf
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.0)
    with pytest.raises(ValueError, match="at step 7"):
        stage.train_step(model, optimiser, batch, config, 7)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_what_a_row_draws_does_not_depend_on_its_process(config):
    latents = torch.randn(8, 8, 2, 2)
    y = torch.arange(8) % CLASSES
    whole = stage.draw_batch(latents, y, config, 2.0, 3)
    halves = [
        stage.draw_batch(latents[part], y[part], config, 2.0, 3, part) for part in (slice(0, 4), slice(4, 8))
    ]
    for name in ("x_t", "t", "y", "target"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))


def test_muon_moves_the_blocks_matrices_alone_and_rates_fall_together(config):
    cache = stage.open_latents(config_path(config))
    model = stage.build_model(config, cache)
    optim = replace(config.optim, lr=0.1, muon_lr=0.5, final_lr=0.01, decay_steps=(0, 10))
    optimiser = stage.build_optimiser(model, optim)
    muon, adamw = optimiser.parts
    by_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in by_muon}
    assert names == {
        f"blocks.{i}.{layer}.weight"
        for i in range(2)
        for layer in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3")
    }
    num_adamw = sum(len(group["params"]) for group in adamw.param_groups)
    assert len(names) + num_adamw == sum(p.requires_grad for p in model.parameters())
    _, batch = batch_of(config)
    stage.train_step(model, optimiser, batch, replace(config, optim=optim), 5)
    rates = [part.param_groups[0]["lr"] for part in optimiser.parts]
    assert rates == pytest.approx([0.5 * 0.55, 0.1 * 0.55])
    with pytest.raises(ValueError, match="must be 0 with muon_lr"):
        replace(optim, weight_decay=0.1)


def test_the_compiled_loss_leaves_the_average_an_average(config, tmp_path, monkeypatch):
    """RAE's online scores are of the trained weights: the copy keeps the first one's compiled forward."""
    compiled = []

    def compile_eagerly(function):
        compiled.append(function)
        return torch._dynamo.optimize("eager")(function)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    plain = stage.train(config, folder(tmp_path, "plain"))
    result = stage.train(replace(config, compile=True), folder(tmp_path, "compiled"))
    assert compiled == [stage.batch_loss]
    assert result["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    state = checkpoint.load(tmp_path / "compiled" / "checkpoint.pt")
    averaged = stage.build_model(config, stage.open_latents(config_path(config)))
    averaged.load_state_dict(state["averaged"])
    trained = copy.deepcopy(averaged)
    trained.load_state_dict(state["model"])
    loss = evaluate_on_all(averaged, config)
    assert result["loss"] == pytest.approx(loss, rel=1e-5) != evaluate_on_all(trained, config)


def evaluate_on_all(model, config):
    cache = stage.open_latents(config_path(config))
    latents = cache.statistics().normalise(cache.latents(torch.arange(NUM)))
    return evaluate(model, latents, cache.labels, config, 1.0)


def test_bf16_follows_the_loss_curve_of_fp32(config, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        settings = replace(config, precision=precision, num_steps=80, checkpoint_steps=80, log_steps=10)
        out_dir = folder(tmp_path, precision)
        stage.train(replace(settings, ema_decay=0.9, optim=DiTOptimConfig(lr=3e-3)), out_dir)
        losses[precision] = [
            json.loads(line)["loss"] for line in (out_dir / "log.jsonl").read_text().splitlines()
        ]
    for full, half in zip(losses["fp32"], losses["bf16"], strict=True):
        assert half == pytest.approx(full, rel=0.02)


@pytest.mark.parametrize(("width", "learns"), [(8, False), (64, True)])
def test_one_picture_overfits_only_when_the_width_is_the_tokens_or_more(config, tmp_path, width, learns):
    """RAE's claim (arXiv:2510.11690, Sec. 4.1): noise of rank 32 does not pass a narrower network."""
    tokens = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0)).expand(NUM, 4, 32)
    labels = torch.zeros(NUM, dtype=torch.long)
    checkpoint.save_tensors(tmp_path / "tokens.safetensors", {"tokens": tokens, "labels": labels})
    LatentStatistics(None, None).save(tmp_path / "stats.pt")
    size = DiTSize(hidden_size=(width,), depth=(2,), num_heads=(2,))
    settings = {
        "num_steps": 180,
        "batch_size": 32,
        "ema_decay": 0.9,
        "checkpoint_steps": 180,
        "log_steps": 99,
    }
    narrow = replace(config, size=size, statistics=str(tmp_path / "stats.pt"), **settings)
    loss = stage.train(replace(narrow, optim=DiTOptimConfig(lr=3e-3)), folder(tmp_path, "out"))["loss"]
    # the narrow one cannot give back more than `width` of the noise's 32 directions: 1 - 8/32 is left
    assert loss < 0.15 if learns else loss > 0.6
