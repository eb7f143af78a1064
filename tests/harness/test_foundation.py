"""A preset that trains its own weights: preset=small as planned."""

import pytest

from encoder.config import ConfigError
from harness.cli import make_plans
from harness.config import parse
from harness.stages import Graph


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
    made = {"foundation: pictures to train on", "foundation: VAE", "foundation: language model"}
    assert made | {"foundation: ov3-small: train"} <= ancestors(
        labelled(graph, "ov3-small: answer and score")
    )
    above = ancestors(labelled(graph, "clip-small: score the generation"))
    assert {"foundation: clip-small: train", "foundation: clip-small: pixel decoder"} <= above
    assert "foundation: VAE" not in above
    assert "foundation: ov3-small: train" not in above


def test_seeds_share_what_they_do_not_reach(graph):
    labels = [stage.label for stage in graph]
    assert len(labels) == len(set(labels))
    twice = {label.removesuffix(", seed 1") for label in labels if label.endswith(", seed 1")}
    assert "ov3-small: train the DiT" in twice
    assert not any(
        label.startswith("foundation") or "reconstruct" in label or "tokens" in label for label in twice
    )


def test_both_encoders_see_the_same_samples_in_the_same_order(graph):
    ours, theirs = (labelled(graph, f"foundation: {name}-small: train").config for name in ("ov3", "clip"))
    for name in ("data", "num_steps", "batch_size", "optim", "contrastive_texts", "precision", "seed"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("width", "layers", "head_width", "grid"):
        assert getattr(ours.openvision3.encoder, name) == getattr(theirs.clip.encoder, name)


def test_the_generators_backbone_is_larger_than_its_head(graph):
    size = labelled(graph, "ov3-small: train the DiT").config.size
    cost = [depth * width**2 for depth, width in zip(size.depth, size.hidden_size, strict=True)]
    assert cost[0] > cost[1]


def test_a_language_model_comes_from_one_place():
    with pytest.raises(ConfigError, match=r"either llava\.language_model or a foundation"):
        parse(["preset=small", "llava.language_model=weights/demo/llama"])
