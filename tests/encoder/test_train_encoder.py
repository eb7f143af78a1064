"""The trainers: resume equals an undisturbed run, one batch overfits, and what they export loads."""

import json
import math
from dataclasses import replace

import pytest
import torch
import yaml

from encoder import load_encoder
from encoder.models.vae import load_vae
from encoder.runtime import checkpoint
from encoder.runtime.config import load
from encoder.training import held_out, optim, run, train_vae, trainer
from encoder.training.options import TrainConfig, TrainVaeConfig
from encoder.training.step import train_step

TEXT = {"context_length": 10, "width": 32, "layers": 1, "head_width": 16}
TOWER = {"width": 32, "layers": 1, "head_width": 16, "embed_dim": 16}
WORDS = ("red", "blue", "green", "ball", "house", "tree", "bird", "cup")


def pictures(folder, split, limit=None, **_):
    """Sixteen flat pictures, each of its own colour and alt text."""
    count = min(limit or 16, 16)
    values = torch.rand(count, 1, 1, 3, generator=torch.Generator().manual_seed(len(split)))
    images = (values.expand(count, 32, 32, 3) * 255).byte().numpy()
    alt_texts = [f"a {WORDS[i % 8]} {WORDS[i // 8]} {i % 10}" for i in range(count)]
    return images, [
        {"org_caption": text, "re_caption": f"{text}. there is a {text}.", "label": i % 4}
        for i, text in enumerate(alt_texts)
    ]


@pytest.fixture(autouse=True)
def in_memory(monkeypatch):
    monkeypatch.setattr(held_out, "load_images", pictures)
    monkeypatch.setattr(train_vae, "load_images", pictures)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    torch.manual_seed(0)
    shape = load(TrainVaeConfig, vae_values()).shape
    folder = tmp_path_factory.mktemp("vae")
    train_vae.build_codec(shape).save_pretrained(folder)
    return folder


def vae_values(**changes) -> dict:
    shape = {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4}
    optim = {"lr": 3e-3, "warmup_steps": 2}
    fixed = {"data": "nowhere", "batch_size": 4, "shape": shape, "optim": optim, "log_steps": 2}
    return {**fixed, "num_steps": 6, "checkpoint_steps": 3, "eval_limit": 4, **changes}


def values(kind: str, vae_folder, **changes) -> dict:
    common = {"data": "nowhere", "batch_size": 8, "num_steps": 6, "checkpoint_steps": 3, "log_steps": 2,
              "eval_limit": 12, "eval_steps": 4,
              "optim": {"lr": 2e-3, "warmup_steps": 2, "weight_decay": 0.1}}  # fmt: skip
    if kind == "clip":
        tower = {"image_size": 32, "patch_size": 16, "in_channels": 3, **TOWER}
        return {**common, "clip": {"encoder": tower, "text": TEXT}, **changes}
    towers = {
        "encoder": {"image_size": 4, **TOWER},
        "decoder": {"in_width": 32, "width": 32, "layers": 1, "head_width": 16},
        "text": TEXT,
        "captioner": {**TEXT, "context_length": 20},
    }
    perceptual = {"perceptual_from": 0.6, "objective": {"perceptual_weight": 0.5}}
    own = {"vae": str(vae_folder), "pixel_fraction": 0.5, "openvision3": towers, **perceptual}
    return {**common, **own, **changes}


def run_until_killed(train, config, out_dir, monkeypatch, step: int) -> None:
    """Run a trainer and kill it in step `step`."""
    true_indices = checkpoint.batch_indices

    def killing(seed, at, *arguments):
        if at == step:
            raise KeyboardInterrupt
        return true_indices(seed, at, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "batch_indices", killing)
        with pytest.raises(KeyboardInterrupt):
            train(config, out_dir)


@pytest.mark.parametrize("kind", ["openvision3", "clip"])
def test_a_killed_run_resumes_to_the_same_weights_to_the_last_bit(kind, vae_folder, tmp_path, monkeypatch):
    config = load(TrainConfig, values(kind, vae_folder))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    scores = trainer.train(config, tmp_path / "whole")
    run_until_killed(trainer.train, config, tmp_path / "killed", monkeypatch, step=5)
    assert checkpoint.load(tmp_path / "killed" / "checkpoint.pt")["step"] == 3
    # Under AVX2 a forward pass of equal weights on equal pictures rounds otherwise after a resume
    rounding = 0.0 if torch.backends.cpu.get_cpu_capability() != "AVX2" else 1e-4
    assert trainer.train(config, tmp_path / "killed") == pytest.approx(scores, rel=rounding, abs=0.0)
    states = [checkpoint.load(tmp_path / name / "checkpoint.pt")["model"] for name in ("whole", "killed")]
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], rtol=0.0, atol=rounding), name


def test_a_loss_that_becomes_nan_stops_the_run_and_its_checkpoint_stays(vae_folder, tmp_path, monkeypatch):
    config = load(TrainConfig, values("clip", vae_folder, checkpoint_steps=1))
    true_latents, steps = run.with_latents, iter(range(config.num_steps))

    def poisoned(*arguments):
        batch = true_latents(*arguments)
        return replace(batch, pixels=batch.pixels * math.nan) if next(steps) == 3 else batch

    with monkeypatch.context() as patch:
        patch.setattr(run, "with_latents", poisoned)
        with pytest.raises(ValueError, match=r"loss is nan at step 3 .*lower optim\.lr"):
            trainer.train(config, tmp_path)
    saved = checkpoint.load(tmp_path / "checkpoint.pt")
    assert saved["step"] == 3 and all(value.isfinite().all() for value in saved["model"].values())
    trainer.train(config, tmp_path)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == config.num_steps


def poison(monkeypatch, at: int) -> None:
    """Pictures of step `at` are NaN."""
    true_fetch = run.Run.fetch

    def fetch(self, step, vae):
        batches = true_fetch(self, step, vae)
        return [replace(each, pixels=each.pixels * math.nan) if step == at else each for each in batches]

    monkeypatch.setattr(run.Run, "fetch", fetch)


def keep_runs(monkeypatch) -> list:
    """The `Run` of each training from now on."""
    kept, true_build = [], trainer.build_run

    def build(*arguments):
        kept.append(true_build(*arguments))
        return kept[-1]

    monkeypatch.setattr(trainer, "build_run", build)
    return kept


def test_a_nan_found_a_step_late_leaves_the_weights_and_averages_of_its_step(
    vae_folder, tmp_path, monkeypatch
):
    changes = {"checkpoint_steps": 3, "log_steps": 100, "eval_steps": 100, "ema_decay": 0.9}
    config = load(TrainConfig, values("clip", vae_folder, **changes))
    built = keep_runs(monkeypatch)
    poison(monkeypatch, at=3)
    with pytest.raises(ValueError, match="loss is nan at step 3"):
        trainer.train(config, tmp_path)
    (stopped, _), saved = built[0], checkpoint.load(tmp_path / "checkpoint.pt")
    assert saved["step"] == 3  # what step 3 began with; step 4's gradients were there when the NaN was found
    assert any(each.grad is not None for each in stopped.model.parameters())
    assert all(torch.equal(value, saved["model"][name]) for name, value in stopped.model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(stopped.averaged, saved["averaged"], strict=True))
    moments = stopped.optimiser.state_dict()["state"]
    for number, state in saved["optimiser"]["state"].items():
        assert all(torch.equal(moments[number][name], value) for name, value in state.items())


def test_a_step_that_is_not_finite_is_left_out_where_that_is_allowed(vae_folder, tmp_path, monkeypatch):
    changes = {"skip_non_finite": 1, "log_steps": 1, "checkpoint_steps": 2, "ema_decay": 0.9}
    config = load(TrainConfig, values("clip", vae_folder, **changes))
    poison(monkeypatch, at=3)
    scores = trainer.train(config, tmp_path)
    saved = checkpoint.load(tmp_path / "checkpoint.pt")
    assert (saved["step"], saved["skipped"]) == (6, 1) and all(map(math.isfinite, scores.values()))
    assert {int(state["step"]) for state in saved["optimiser"]["state"].values()} == {5}
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    by_step = {row["steps"]: row for row in rows if "skipped_steps" in row}
    assert [by_step[step]["skipped_steps"] for step in range(1, 7)] == [0, 0, 0, 1, 1, 1]
    assert [step for step in by_step if "loss" not in by_step[step]] == [4]
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize("kind", ["openvision3", "clip"])
def test_what_is_exported_loads_as_a_frozen_encoder_with_a_card(kind, vae_folder, tmp_path):
    scores = trainer.train(load(TrainConfig, values(kind, vae_folder)), tmp_path)
    vae = vae_folder if kind == "openvision3" else None
    encoder = load_encoder(tmp_path / "weights", vae=vae)
    cls = trainer.OpenVision3 if kind == "openvision3" else trainer.Clip
    whole = cls.from_pretrained(tmp_path / "weights")  # text towers included: those of the checkpoint in fp16
    trained = checkpoint.load(tmp_path / "checkpoint.pt")["model"]
    assert whole.state_dict().keys() == trained.keys()
    assert torch.equal(whole.state_dict()["text.head.weight"], trained["text.head.weight"].half().float())
    whole.save_pretrained(tmp_path / "vision", dtype=torch.float16, text=False)
    assert load_encoder(tmp_path / "vision", vae=vae).fingerprint == encoder.fingerprint
    stored = json.loads((tmp_path / "weights" / "config.json").read_text())
    stored["shape"]["text"]["tokenizer"] = "/not/on/this/machine"
    (tmp_path / "weights" / "config.json").write_text(json.dumps(stored))
    assert load_encoder(tmp_path / "weights", vae=vae).fingerprint == encoder.fingerprint
    assert encoder.encode(torch.rand(1, 3, 32, 32)).shape == (1, 4, 32)
    assert encoder.can_decode == (kind == "openvision3")
    card = yaml.safe_load((tmp_path / "weights" / "card.yaml").read_text())
    assert card["scores"] == pytest.approx(scores, abs=1e-4) and card["config"]["seed"] == 0
    assert {"r1_image_to_text", "linear_probe"} <= set(scores)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    if kind == "openvision3":
        named = [row for row in rows if "caption" in row]
        assert all(row["tau_over_std"] == pytest.approx(0.8 / row["z_u_std"]) for row in named)
        assert ["perceptual" in row for row in named] == [False, False, True]  # from step 3.6 on
        assert "psnr" in scores


@pytest.mark.parametrize("kind", ["openvision3", "clip"])
def test_one_batch_overfits(kind, vae_folder):
    config = load(TrainConfig, values(kind, vae_folder, contrastive_texts="alt", num_steps=60))
    samples, _ = held_out.load_samples(config, "train", 8)
    torch.manual_seed(0)
    vae = None
    if kind == "openvision3":
        vae = load_vae(vae_folder)
        samples.z_vae = vae.encode(held_out.to_pixels(samples.images))
        model = trainer.OpenVision3(config.openvision3)
    else:
        model = trainer.Clip(config.clip)
    optimiser = optim.build_adamw(model, config.optim)
    curve = []
    for at in range(60):
        batch = samples.batch(torch.arange(8), torch.Generator(), num_pixels=8, with_sentence=False)
        batch = batch.to("cpu")
        terms = train_step(model, batch, config, at, vae)
        optim.update(optimiser, terms["loss"], config.optim, at, 60)
        curve.append({name: value.item() for name, value in terms.items()})
    falling = ("contrastive",) if kind == "clip" else ("contrastive", "caption", "latent_l1")
    for name in falling:
        assert curve[-1][name] < 0.5 * curve[0][name], name


def test_bf16_and_a_chunked_contrastive_loss_take_the_same_step_nearly(vae_folder):
    config = load(TrainConfig, values("openvision3", vae_folder))
    other = load(TrainConfig, values("openvision3", vae_folder, precision="bf16", contrastive_chunk=3))
    samples, _ = held_out.load_samples(config, "train", 8)
    vae = load_vae(vae_folder)
    samples.z_vae = vae.encode(held_out.to_pixels(samples.images))
    torch.manual_seed(0)
    model = trainer.OpenVision3(config.openvision3)
    batch = samples.batch(torch.arange(8), torch.Generator(), num_pixels=8, with_sentence=False).to("cpu")
    exact, near = (train_step(model, batch, each, 0, vae)["loss"] for each in (config, other))
    torch.testing.assert_close(near, exact, rtol=0.02, atol=0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"clip": None, "openvision3": None}, "exactly one"),
    ({"vae": None}, "needs vae"),
    ({"pixel_fraction": 0.0}, "pixel_fraction"),
    ({"precision": "bf61"}, "did you mean 'bf16'"),
    ({"objective": {"omega": 1}}, "unknown key 'omega'"),
])  # fmt: skip
def test_a_config_that_cannot_train_is_refused(changes, message, vae_folder):
    with pytest.raises(ValueError, match=message):
        load(TrainConfig, values("openvision3", vae_folder, **changes))


def test_the_vae_resumes_to_the_last_bit_and_measures_its_scale(tmp_path, monkeypatch):
    config = load(TrainVaeConfig, vae_values(perceptual_weight=0.1, perceptual_from=0.5))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    scores = train_vae.train(config, tmp_path / "whole")
    run_until_killed(train_vae.train, config, tmp_path / "killed", monkeypatch, step=4)
    assert train_vae.train(config, tmp_path / "killed") == scores
    vae = load_vae(tmp_path / "whole" / "weights", subtract_shift=True)
    z_vae = vae.encode(train_vae.to_pixels(torch.as_tensor(pictures("", "train")[0])))
    assert z_vae.mean().item() == pytest.approx(0, abs=0.05)  # weights were rounded to fp16 since
    assert z_vae.std().item() == pytest.approx(1, abs=0.05)


def test_tensorboard_shows_what_the_log_of_the_vae_holds(tmp_path, tensorboard_holds_the_log):
    config = load(TrainVaeConfig, vae_values(num_steps=2, log_steps=1, trackers=["tensorboard"]))
    train_vae.train(config, tmp_path)
    tensorboard_holds_the_log(tmp_path, [1, 2])


def test_the_vae_learns_one_batch():
    config = load(TrainVaeConfig, vae_values(num_steps=60))
    pixels = train_vae.to_pixels(torch.as_tensor(pictures("", "train", 4)[0]))
    torch.manual_seed(0)
    codec = train_vae.build_codec(config.shape)
    optimiser = train_vae.build_adamw(codec, config.optim)
    losses = []
    for step in range(60):
        terms = train_vae.train_step(codec, pixels, config, step, None)
        train_vae.update(optimiser, terms["loss"], config.optim, step, 60)
        losses.append(terms["pixel"].item())
    assert losses[-1] < 0.5 * losses[0]
