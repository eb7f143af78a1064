"""Where a training of a DiT begins, what it keeps and shows on the way, and which guides may guide it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.runtime import checkpoint
from encoder.runtime.config import dump, load
from encoder.runtime.stage import write_json
from rae_bridge import draw, generate
from rae_bridge import train as stage
from rae_bridge.cache import run as cache_tokens
from rae_bridge.config import DiTOptimConfig, DiTSize, GenerateConfig, GuidanceConfig, TrainDiTConfig
from rae_bridge.held_out import evaluate
from rae_bridge.latents import LatentStatistics, open_latents
from rae_bridge.pictures_config import CacheConfig
from rae_bridge.sample import sample
from rae_bridge.watch_config import GridConfig, JudgeConfig, OnlineConfig
from rae_bridge.weights_folder import WeightsFolder, alike, check_guide

CLASSES = 3
SIZE = DiTSize(hidden_size=(32, 32), depth=(1, 1), num_heads=(2, 2))


@pytest.fixture
def config(tmp_path, pictures, invertible) -> TrainDiTConfig:
    """Six steps on real tokens of 24 pictures."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        cache_tokens(CacheConfig(encoder=invertible, data=str(pictures), split=split), tmp_path / split)
    optim = DiTOptimConfig(lr=1e-3, decay_steps=(2, 8), warmup_steps=2)
    return TrainDiTConfig(
        tokens=str(tmp_path / "train"), num_classes=CLASSES, num_steps=6, batch_size=8, size=SIZE,
        optim=optim, checkpoint_steps=100, log_steps=1,
    )  # fmt: skip


def train(config, folder):
    """As the stage's command: the folder holds the config."""
    folder.mkdir()
    dump(config, folder / "config.yaml")
    return stage.train(config, folder)


def state(folder):
    return checkpoint.load(folder / "checkpoint.pt")


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for item in items for tensor in tensors(item)]


def test_a_training_that_has_ended_goes_on_as_if_it_had_not(config, tmp_path):
    whole = train(config, tmp_path / "whole")
    train(replace(config, num_steps=3), tmp_path / "first")
    rest = train(replace(config, init=str(tmp_path / "first")), tmp_path / "rest")
    assert rest["loss"] == whole["loss"] and rest["class_losses"] == whole["class_losses"]
    pairs = list(zip(tensors(state(tmp_path / "whole")), tensors(state(tmp_path / "rest")), strict=True))
    assert len(pairs) > 100 and all(torch.equal(one, other) for one, other in pairs)
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
            for name in ("whole", "rest")]  # fmt: skip
    numbers = [[(row["steps"], row["loss"], row["lr"], row["grad_norm"]) for row in log] for log in logs]
    assert numbers[1] == numbers[0][3:]


def test_from_a_weights_folder_the_averages_begin_anew(config, tmp_path):
    train(replace(config, num_steps=3), tmp_path / "first")
    weights = tmp_path / "first" / "weights"
    other = replace(config, seed=5, batch_size=4, num_steps=1, init=str(weights))
    other = replace(other, optim=DiTOptimConfig(lr=1e-12))
    train(other, tmp_path / "second")
    saved, averaged = state(tmp_path / "second"), checkpoint.load_tensors(weights / "model.safetensors")
    for name in ("model", "averaged"):  # a step at this rate changes nothing that can be seen
        for key, tensor in averaged.items():
            torch.testing.assert_close(saved[name][key], tensor, rtol=0, atol=1e-9)
    assert {float(each["step"]) for each in saved["optimiser"]["state"].values()} == {1.0}
    statistics = [
        LatentStatistics.load(tmp_path / name / "weights" / "latent_stats.pt") for name in ("first", "second")
    ]
    assert torch.equal(statistics[0].var, statistics[1].var)


def test_once_it_has_a_checkpoint_it_needs_what_it_began_from_no_more(config, tmp_path):
    LatentStatistics(None, torch.full((48, 2, 2), 9.0)).save(tmp_path / "other.pt")
    scaled = replace(config, statistics=str(tmp_path / "other.pt"))
    whole = train(scaled, tmp_path / "whole")
    train(replace(scaled, num_steps=3), tmp_path / "first")
    rest = replace(config, init=str(tmp_path / "first"))
    train(replace(rest, num_steps=4), tmp_path / "rest")
    shutil.rmtree(tmp_path / "first")
    assert stage.train(rest, tmp_path / "rest")["loss"] == whole["loss"]
    with pytest.raises(FileNotFoundError):
        train(rest, tmp_path / "new")


def test_weights_of_a_step_that_lies_behind_are_kept_already_or_refused(config, tmp_path):
    train(replace(config, num_steps=3, keep_steps=(2,)), tmp_path / "first")
    refused = r"keep_steps \[1, 3\] lie behind: the training goes on from step 3 .*leave them out"
    with pytest.raises(ValueError, match=refused):
        stage.train(replace(config, keep_steps=(1, 2, 3, 4)), tmp_path / "first")
    on = replace(config, init=str(tmp_path / "first"))
    with pytest.raises(ValueError, match=r"keep_steps \[1\] lie behind"):
        train(replace(on, keep_steps=(1, 4)), tmp_path / "refused")
    train(replace(on, keep_steps=(2, 4)), tmp_path / "rest")
    assert [path.name for path in (tmp_path / "rest" / "kept").iterdir()] == ["step_00000004"]


def test_what_does_not_fit_is_no_beginning(config, tmp_path):
    first = tmp_path / "first"
    train(replace(config, num_steps=2), first)

    def refused(match, error=ValueError, init=first, **changes):
        with pytest.raises(error, match=match):
            stage.train(replace(config, init=str(init), **changes), tmp_path)

    refused("trained with batch_size=8, not 4; keep that to go on, or name its weights", batch_size=4)
    refused("trained with num_steps=2, not 1", num_steps=1)
    wide = replace(SIZE, hidden_size=(64, 32))
    refused(r"is another model: hidden_size=\(32, 32\), not \(64, 32\)$", size=wide)
    refused("is another model: num_classes=3, not 4$", init=first / "weights", num_classes=4)
    refused("lacks config.json", FileNotFoundError, init=tmp_path / "nowhere")
    LatentStatistics(None, torch.full((48, 2, 2), 9.0)).save(tmp_path / "other.pt")
    refused("under other statistics than", statistics=str(tmp_path / "other.pt"))
    tokens = json.loads((first / "weights" / "tokens.json").read_text())
    write_json(first / "weights" / "tokens.json", tokens | {"fingerprint": "0" * 64})
    refused("knows tokens of .*000000000000.*, this training's are those of")
    (first / "weights").rename(first / "gone")
    refused("has not finished", FileNotFoundError)


def test_weights_are_kept_as_they_were_and_guide_the_model_they_became(config, tmp_path, invertible):
    train(replace(config, keep_steps=(2, 5)), tmp_path / "run")
    train(replace(config, num_steps=2), tmp_path / "short")
    assert sorted(path.name for path in (tmp_path / "run" / "kept").iterdir()) == [
        "step_00000002", "step_00000005"
    ]  # fmt: skip
    kept = tmp_path / "run" / "kept" / "step_00000002"
    young = checkpoint.load_tensors(kept / "model.safetensors")
    averaged = state(tmp_path / "short")["averaged"]
    assert all(torch.equal(tensor, averaged[key]) for key, tensor in young.items())
    assert WeightsFolder.read(kept).step == 2
    guided = GenerateConfig(
        model=str(tmp_path / "run" / "weights"), encoder=invertible, num_samples=4, num_steps=3,
        guidance=GuidanceConfig(kind="autoguidance", scale=1.5, model=str(kept)),
    )  # fmt: skip
    (tmp_path / "samples").mkdir()
    generate.run(guided, tmp_path / "samples")
    flow, guide = generate.TrainedFlow.load(guided.model), generate.TrainedFlow.load(kept)
    noise, y = generate.noise_of_samples(0, range(4), flow.latent_shape), torch.arange(4) % CLASSES

    def velocity(x, t, y):
        weaker = guide.model(x, t, y)
        return weaker + 1.5 * (flow.model(x, t, y) - weaker)

    latents = sample(velocity, noise, y, num_steps=3, shift=flow.shift)
    codec = generate.load_codec(invertible)
    pixels = codec.decode(generate.to_tokens(flow.statistics.denormalise(latents)))
    drawn = np.load(tmp_path / "samples" / "samples.npz")["arr_0"]
    assert np.abs(drawn - (pixels.permute(0, 2, 3, 1) * 255).round().numpy()).max() <= 1


def test_a_guide_of_other_latents_or_classes_is_refused(tmp_path, invertible, write_model):
    model = WeightsFolder.read(write_model(tmp_path / "model", invertible))
    guide = write_model(tmp_path / "guide", invertible, seed=1)
    check_guide(model, WeightsFolder.read(guide))

    def refused(match, **changes):
        with pytest.raises(ValueError, match=match):
            check_guide(model, replace(WeightsFolder.read(guide), **changes))

    for name, value in (("num_classes", 5), ("input_size", 4), ("in_channels", 8)):
        shape = replace(model.shape, **{name: value})
        refused(rf"guide .*guide has {name} {value}, the model .*model has", shape=shape)
    others = model.tokens | {"fingerprint": "f" * 64}
    refused(r"guide knows tokens of patches \(last, ffffffffffff\), the model .* those of", tokens=others)
    other = LatentStatistics(model.statistics.mean, model.statistics.var * 1.1)
    refused("under other statistics .*keep_steps", statistics=other)
    write_json(guide / "tokens.json", model.tokens | {"fingerprint": "f" * 64})
    about = {"model": str(tmp_path / "model"), "encoder": invertible, "num_samples": 2, "num_steps": 2}
    guidance = GuidanceConfig(kind="autoguidance", scale=2.0, model=str(guide))
    with pytest.raises(ValueError, match="knows tokens of"):
        generate.run(GenerateConfig(**about, guidance=guidance), tmp_path)
    words = ["--model", str(tmp_path / "model"), "--classes", "0", "--guide", str(guide), "--scale", "2"]
    with pytest.raises(ValueError, match="knows tokens of"):
        draw.draw_grid(draw.parse_arguments([*words, "--out", "unused.png", "--encoder", invertible]))


def test_statistics_are_alike_up_to_what_two_measurements_differ_by():
    generator = torch.Generator().manual_seed(0)
    mean, var = torch.randn(4, 2, 2, generator=generator), torch.rand(4, 2, 2, generator=generator) + 0.1
    measured = LatentStatistics(mean, var)
    assert alike(measured, LatentStatistics(mean + 0.005 * var.sqrt(), var * 1.005))
    assert not alike(measured, LatentStatistics(mean + 0.02 * var.sqrt(), var))
    assert not alike(measured, LatentStatistics(mean, var * 1.02))
    assert not alike(measured, LatentStatistics(None, var))
    assert alike(LatentStatistics(None, var), LatentStatistics(torch.zeros_like(var), var))
    assert not alike(measured, LatentStatistics(mean[:2], var[:2]))


def test_the_trained_weights_are_drawn_from_the_checkpoint_beside(config, tmp_path, invertible):
    train(replace(config, keep_steps=(2,)), tmp_path / "run")
    weights = tmp_path / "run" / "weights"
    ema, online = (generate.TrainedFlow.load(weights, weights=each).model for each in ("ema", "online"))
    saved = state(tmp_path / "run")
    for model, name in ((ema, "averaged"), (online, "model")):
        assert all(torch.equal(tensor, saved[name][key]) for key, tensor in model.state_dict().items())
    about = {"model": str(weights), "encoder": invertible, "num_samples": 2, "num_steps": 2}
    drawn = {}
    for name in ("ema", "online"):
        (tmp_path / name).mkdir()
        generate.run(GenerateConfig(**about, weights=name), tmp_path / name)
        drawn[name] = np.load(tmp_path / name / "samples.npz")["arr_0"]
    assert not np.array_equal(drawn["ema"], drawn["online"])
    (tmp_path / "run" / "checkpoint.pt").rename(tmp_path / "run" / "checkpoint.bak")
    with pytest.raises(FileNotFoundError, match="weights=online needs the training's"):
        generate.TrainedFlow.load(weights, weights="online")
    checkpoint.save(tmp_path / "run" / "checkpoint.pt", saved | {"step": 3})
    with pytest.raises(ValueError, match=r"is of step 3, .* of step 6; take weights=ema"):
        generate.TrainedFlow.load(weights, weights="online")


def test_a_training_shows_samples_and_its_loss_on_held_out_tokens(config, tmp_path, invertible):
    plain = train(config, tmp_path / "plain")
    grid = GridConfig(classes=(2, 0), columns=3, num_steps=2, scale=1.5, encoder=invertible)
    shown = replace(config, held_out=str(tmp_path / "val"), held_out_steps=4, sample_steps=4, grid=grid)
    result = train(shown, tmp_path / "shown")
    assert result["loss"] == plain["loss"]  # whatever is shown, the training is the same
    pictures = [Image.open(path) for path in sorted((tmp_path / "shown" / "samples").iterdir())]
    assert [path.name for path in sorted((tmp_path / "shown" / "samples").iterdir())] == [
        "step_00000004.png", "step_00000006.png"
    ]  # fmt: skip
    weights = tmp_path / "shown" / "weights"
    words = [
        "--model",
        str(weights),
        "--classes",
        "2",
        "0",
        "--columns",
        "3",
        "--steps",
        "2",
        "--scale",
        "1.5",
    ]
    words += ["--encoder", invertible, "--out", str(tmp_path / "grid.png")]
    draw.draw_grid(draw.parse_arguments(words))
    assert np.array_equal(np.array(Image.open(tmp_path / "grid.png")), np.array(pictures[1]))
    rows = [json.loads(line) for line in (tmp_path / "shown" / "log.jsonl").read_text().splitlines()]
    losses = {row["steps"]: row["held_out_loss"] for row in rows if "held_out_loss" in row}
    assert list(losses) == [4, 6] and losses[6] == result["held_out_loss"]
    flow, held_out = generate.TrainedFlow.load(weights), open_latents(tmp_path / "val")
    latents = flow.statistics.normalise(held_out.latents(torch.arange(5)))
    assert evaluate(flow.model, latents, held_out.labels, shown, flow.shift) == losses[6]


def test_a_score_on_the_way_that_cannot_be_given_is_refused_before_the_first_step(
    config, tmp_path, invertible, blind_to_pixels
):
    np.savez(tmp_path / "real.npz", mu=np.zeros(1024), sigma=np.eye(1024))
    judge = JudgeConfig(reference=str(tmp_path / "real.npz"))
    online = OnlineConfig(judge=judge, every_steps=6, num_samples=2, num_steps=1, encoder=invertible)

    def refused(match, error, **changes):
        with pytest.raises(error, match=match):
            stage.train(replace(config, online=replace(online, **changes)), tmp_path)
        assert not (tmp_path / "log.jsonl").exists()

    refused("nowhere", FileNotFoundError, judge=replace(judge, reference="nowhere.npz"))
    refused("cannot decode", ValueError, encoder=blind_to_pixels)
    index = json.loads((tmp_path / "train" / "index.json").read_text())
    write_json(tmp_path / "train" / "index.json", index | {"fingerprint": "0" * 64})
    refused("online.encoder .* knows tokens of .*, this training those of .*000000000000", ValueError)


def test_tensorboard_shows_what_the_log_holds_and_the_samples(
    config, tmp_path, invertible, tensorboard_holds_the_log
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    grid = GridConfig(columns=2, num_steps=1, encoder=invertible)
    held_out = {"held_out": str(tmp_path / "val"), "held_out_steps": 2}
    shown = replace(config, num_steps=3, trackers=["tensorboard"], sample_steps=2, grid=grid, **held_out)
    train(shown, tmp_path / "run")
    tensorboard_holds_the_log(tmp_path / "run", [1, 2, 3])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(each.step, each.width, each.height) for each in events.Images("samples")] == [
        (2, 16, 24), (3, 16, 24)
    ]  # fmt: skip


def test_a_grid_knows_interval_end_precision_and_device(tmp_path, invertible, write_model):
    model = write_model(tmp_path / "model", invertible)
    words = [
        "--model",
        str(model),
        "--classes",
        "1",
        "--columns",
        "2",
        "--steps",
        "4",
        "--encoder",
        invertible,
    ]
    drawn = {}
    for name, more in {
        "plain": [],
        "guided": ["--scale", "3"],
        "late": ["--scale", "3", "--interval", "0", "0.4"],
        "never": ["--scale", "3", "--interval", "1.5", "2"],
        "rae": ["--end", "rae"],
        "bf16": ["--precision", "bf16"],
    }.items():
        draw.draw_grid(draw.parse_arguments([*words, *more, "--out", str(tmp_path / "grid.png")]))
        drawn[name] = np.array(Image.open(tmp_path / "grid.png")).astype(int)
    assert np.array_equal(drawn["never"], drawn["plain"])
    for name in ("guided", "late", "rae"):
        assert not np.array_equal(drawn[name], drawn["plain"])
    assert not np.array_equal(drawn["guided"], drawn["late"])
    assert np.abs(drawn["bf16"] - drawn["plain"]).mean() < 8
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no GPU"):
            draw.draw_grid(draw.parse_arguments([*words, "--device", "cuda", "--out", "unused.png"]))


@pytest.mark.parametrize(("change", "match"), [
    ({"keep_steps": [6]}, r"keep_steps \[6\] must lie over 0 and under num_steps 6"),
    ({"keep_steps": [0]}, "must lie over 0"),
    ({"held_out_steps": 3}, "held_out_steps needs held_out"),
    ({"sample_steps": 0}, "sample_steps 0 must be 1 or more"),
    ({"sample_steps": 2, "grid": {"scale": 1.5}, "class_dropout_prob": 0}, "scale 1.5 needs class_dropout"),
    ({"sample_steps": 2, "grid": {"classes": [3]}}, r"grid.classes \[3\] must be under num_classes 3"),
])  # fmt: skip
def test_what_cannot_be_kept_or_shown_is_refused(change, match):
    with pytest.raises(ValueError, match=match):
        load(TrainDiTConfig, {"tokens": "x", "num_classes": 3, "num_steps": 6, **change})
