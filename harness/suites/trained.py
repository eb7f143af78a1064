"""The rows of a preset on real sources whose encoder is trained first: a recipe's phases, of which each suite
judges one, frozen, with its own decoder.

recap-datacomp, VAE, vocabulary -> encoder.train, a stage for each phase that is needed -> trained
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from encoder.options import EncoderConfig
from encoder.runtime.config import ROOT, ConfigError, choose, load, read_yaml
from encoder.training.options import TrainConfig
from encoder.training.recipe import RecipeConfig
from harness.config import merged
from harness.described import ENCODER_FILE
from harness.encoders import Encoder
from harness.running.stages import Graph, Stage
from harness.sections import TrainedEncoder
from harness.suites.scoring import trunk_of
from harness.suites.shared import trunk_to_train_with
from harness.trained import TrainedConfig

HELD_OUT, TRAIN = "held_out", "train"  # of the shards


def add_trained(
    graph: Graph, name: str, trained: TrainedEncoder, suite: str, places: Mapping[str, Path], device: str
) -> Encoder:
    """The encoder that one suite judges under this name.

    Raises:
        ConfigError: the recipe has no such phase, or refuses a value.
        FileNotFoundError: the recipe, or a source, is not there.
    """
    recipe = _recipe(name, trained, places, device)
    configs = recipe.configs(graph.runs_dir)
    phase = getattr(trained, suite)
    choose(configs, phase, f"trained.{name}.{suite}: phase")
    made = _add_phase(graph, name, recipe, configs, phase, _files(places))
    config = TrainedConfig(run=str(made.folder), name=name, features=trained.features)
    described = graph.add("trained", "harness.trained", config, label=f"{name}: losses", inputs=[made])
    source = f"trained by {trained.recipe}, {phase}, decoder: own"
    return Encoder(
        name=name,
        word=str(described.folder / ENCODER_FILE),
        config=EncoderConfig(name=name, source=source, features=trained.features),
        files=(),
        stages=(made, described),
    )


def _recipe(name: str, trained: TrainedEncoder, places: Mapping[str, Path], device: str) -> RecipeConfig:
    """The recipe with the preset's values over its own, and over both what the sources give unless the preset
    says otherwise."""
    values, what = read_yaml(ROOT / trained.recipe), f"trained.{name}"
    phases = {phase["name"]: phase for phase in values.get("phases", [])}
    if not phases:
        raise ConfigError(f"{what}.recipe: {trained.recipe} has no phases; configs/recipes/paper_b.yaml has")
    if "clip" in values.get("settings", {}):
        raise ConfigError(f"{what}.recipe: {trained.recipe} trains CLIP, which has no decoder of its own")
    for phase, changes in trained.phases.items():
        phases[phase] = merged(choose(phases, phase, f"{what}.phases: phase"), changes)
    settings = merged(merged(values.get("settings", {}), _sources(places, device)), trained.settings)
    return load(RecipeConfig, {**values, "phases": [*phases.values()], "settings": settings}, name=what)


def _sources(places: Mapping[str, Path], device: str) -> dict[str, Any]:
    """What a training reads, as a part of `TrainConfig`."""
    shards = places["recap_datacomp"]
    return {
        "data": str(shards / HELD_OUT),
        "stream": {"sources": [{"shards": str(shards / TRAIN)}]},
        "vae": str(places["vae"]),
        "openvision3": {"text": {"tokenizer": str(places["bert"])}},
        "lpips_trunk": trunk_to_train_with(places),
        "device": device,
    }


def reads_shards_in(folders: Sequence[Path], trained: TrainedEncoder) -> bool:
    """Whether a row's encoder is trained on the shards of the source, which is looked for in `folders`: the
    preset names none of its own, or some that lie there."""
    own = merged({"stream": {"sources": None}}, trained.settings)["stream"]
    if not isinstance(own, Mapping) or own["sources"] is None:  # what is no section is refused by the plan
        return True
    shards = [ROOT / str(each.get("shards")) for each in own["sources"] if isinstance(each, Mapping)]
    return any(each.is_relative_to(folder) for each in shards for folder in folders)


def _files(places: Mapping[str, Path]) -> list[Path]:
    """Of the sources, those whose content is part of a training's fingerprint. Shards, terabytes of them, are
    told by their place."""
    return [places["vae"], places["bert"] / "vocab.txt"]


def _add_phase(
    graph: Graph,
    name: str,
    recipe: RecipeConfig,
    configs: Mapping[str, TrainConfig],
    phase: str,
    files: list[Path],
) -> Stage:
    """The stage of a phase, after those that it starts from."""
    config, before = configs[phase], []
    init = next(each.init for each in recipe.phases if each.name == phase)
    if init is not None:
        before = [_add_phase(graph, name, recipe, configs, init, files)]
        config = dataclasses.replace(config, init=str(before[0].folder))
    label = f"{name}: train, {phase}"
    trunk = trunk_of(config.perceptual, config.objective.perceptual_weight, config.lpips_trunk)
    return graph.add(
        "encoder_train", "encoder.train", config, label=label, inputs=before, files=[*files, *trunk]
    )
