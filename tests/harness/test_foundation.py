"""A preset that trains its own weights: preset=small as planned."""

import pytest
import torch

from encoder import load_encoder
from encoder.data.scenes import write
from encoder.runtime import checkpoint
from encoder.runtime.config import ConfigError
from encoder.training import trainer
from harness.command_line import make_plans
from harness.config import parse
from harness.running.stages import Graph


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    options, preset = parse([f"runs_dir={tmp_path_factory.mktemp('runs')}", "preset=small", "seeds=[0,1]"])
    made = Graph(options.runs_dir)
    make_plans(made, options, preset)
    return made


def labelled(graph, label):
    (stage,) = [stage for stage in graph if stage.label == label]
    return stage


def ancestors(stage):
    return {name for source in stage.inputs for name in (source.label, *ancestors(source))}


def test_everything_that_is_measured_stands_on_what_the_preset_trained(graph):
    made = {"foundation: pictures of 128 px to train on", "foundation: VAE", "foundation: language model"}
    assert made | {f"foundation: ov3-small: train at {side} px" for side in (128, 256)} <= ancestors(
        labelled(graph, "ov3-small: answer and score")
    )
    above = ancestors(labelled(graph, "clip-small: score the generation"))
    assert {"foundation: clip-small: train at 256 px", "foundation: clip-small: pixel decoder"} <= above
    assert "foundation: VAE" not in above
    assert "foundation: ov3-small: train at 128 px" not in above


def test_seeds_share_what_they_do_not_reach(graph):
    labels = [stage.label for stage in graph]
    assert len(labels) == len(set(labels))
    twice = {label.removesuffix(", seed 1") for label in labels if label.endswith(", seed 1")}
    assert "ov3-small: train the DiT" in twice
    assert not any(
        label.startswith("foundation") or "reconstruct" in label or "tokens" in label for label in twice
    )


@pytest.mark.parametrize("resolution", [128, 256])
def test_both_encoders_see_the_same_samples_in_the_same_order(graph, resolution):
    labels = (f"foundation: {name}-small: train at {resolution} px" for name in ("ov3", "clip"))
    ours, theirs = (labelled(graph, label).config for label in labels)
    for name in ("data", "num_steps", "batch_size", "optim", "contrastive_texts", "precision", "seed"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("train_limit", "image_size", "micro_batch"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("width", "layers", "head_width", "grid"):
        assert getattr(ours.openvision3.encoder, name) == getattr(theirs.clip.encoder, name)
    assert ours.openvision3.encoder.grid == resolution // 16


@pytest.mark.parametrize("name", ["ov3-small", "clip-small"])
def test_each_phase_starts_from_the_towers_of_the_one_before(graph, name):
    first, second = (labelled(graph, f"foundation: {name}: train at {side} px") for side in (128, 256))
    assert (first.config.init, second.config.init) == (None, str(first.folder))
    assert first in second.inputs


def test_a_phase_at_another_resolution_goes_on_with_the_same_towers(tmp_path):
    phases = ", ".join(
        f"{{resolution: {side}, num_pictures: 8, train: {{num_steps: 1, batch_size: 8, micro_batch: 4, "
        f"optim: {{lr: {rate}, warmup_steps: 0}}}}}}"
        for side, rate in ((64, 1e-3), (128, 1e-6))
    )
    towers = "{encoder: {width: 64, layers: 1, embed_dim: 64}, text: {width: 64, layers: 1}}"
    options, preset = parse(
        [
            "preset=small",
            "device=cpu",
            f"runs_dir={tmp_path}",
            "foundation.scenes={num_val: 8, num_test: 0, num_text: 0, num_layouts: 8, num_workers: 1}",
            f"foundation.phases=[{phases}]",
            f"foundation.encoders.clip-small.train={{clip: {towers}, compile: false}}",
        ]
    )
    made = Graph(options.runs_dir)
    make_plans(made, options, preset)
    saved = []
    for side in (64, 128):
        pictures = labelled(made, f"foundation: pictures of {side} px to train on")
        trained = labelled(made, f"foundation: clip-small: train at {side} px")
        for stage, run in ((pictures, write.run), (trained, trainer.train)):
            stage.folder.mkdir(parents=True)
            run(stage.config, stage.folder)
        saved.append(checkpoint.load(trained.folder / "checkpoint.pt")["model"])
    positions = [towers.pop("encoder.positional_embedding") for towers in saved]
    assert [len(each) for each in positions] == [1 + 4 * 4, 1 + 8 * 8]
    for name, tensor in saved[0].items():
        torch.testing.assert_close(tensor, saved[1][name], atol=1e-5, rtol=0)  # one step of rate 1e-6


def test_what_the_phases_give_is_taken_from_no_encoder():
    with pytest.raises(ConfigError, match=r"clip-small\.train\.seed: foundation\.phases give this"):
        parse(["preset=small", "foundation.encoders.clip-small.train.seed=1"])
    with pytest.raises(ConfigError, match=r"foundation\.phases is empty"):
        parse(["preset=small", "foundation.phases=[]"])


def test_the_blind_row_has_as_many_tokens_as_the_others(graph):
    blind = load_encoder(labelled(graph, "blind-256: LLaVA stage 1").config.encoder)
    encoder = labelled(graph, "foundation: ov3-small: train at 256 px").config.openvision3.encoder
    assert blind.grid == (encoder.grid, encoder.grid)


def test_the_generators_backbone_is_larger_than_its_head(graph):
    size = labelled(graph, "ov3-small: train the DiT").config.size
    cost = [depth * width**2 for depth, width in zip(size.depth, size.hidden_size, strict=True)]
    assert cost[0] > cost[1]


def test_a_language_model_comes_from_one_place():
    with pytest.raises(ConfigError, match=r"give one of llava\.language_model, foundation"):
        parse(["preset=small", "llava.language_model=weights/demo/llama"])
