"""Stages that more than one suite, or more than one row, starts from."""

from typing import Literal

from encoder.config import ConfigError, load
from encoder.options import ScenesConfig, TokensConfig
from harness.config import stage_config
from harness.encoders import Encoder
from harness.own_data import OwnDataConfig, list_source
from harness.stages import Stage
from harness.suites.request import Request


def add_scenes(request: Request) -> Stage:
    """Pictures, texts and questions of the embedded world."""
    config = stage_config(ScenesConfig, request.preset.scenes, "scenes")
    return request.graph.add("scenes", "encoder.data.scenes.write", config, seconds=request.seconds("scenes"))


def add_pictures(request: Request) -> Stage:
    """The generation suite's pictures: one's own where the preset names some, else Scenes."""
    section = request.preset.own_data
    if not section:
        return add_scenes(request)
    if "source" not in section:
        raise ConfigError("own_data needs own_data.source, a folder of pictures or shards")
    listing = list_source(section["source"])
    filled = {"image_size": request.preset.scenes.get("image_size"), **section, "listing": listing.digest}
    config = load(OwnDataConfig, filled, name="own_data")
    return request.graph.add("own_data", "harness.own_data", config, label="own pictures")


def num_classes(request: Request) -> dict[str, int]:
    """What one's own pictures say about the generator's classes, as a part of its section."""
    section = request.preset.own_data
    if not section:
        return {}
    names = list_source(section["source"]).class_names
    count = section.get("num_classes") or len(names)
    if not count or (names and count != len(names)):
        held = f"the folder has {len(names)}" if names else "shards do not say how many: set it"
        raise ConfigError(f"own_data.num_classes is {section.get('num_classes')}; {held}")
    return {"num_classes": count}


def add_tokens(
    request: Request, encoder: Encoder, pictures: Literal["llava", "train"], scenes: Stage
) -> Stage:
    """The frozen tokens of the LLaVA pictures (as the language model sees them) or of the train shards (as
    the DiT does)."""
    if pictures == "llava":
        records = [str(scenes.folder / "llava" / name) for name in ("pretrain.json", "instruct.json")]
        place = {"data": str(scenes.folder / "llava"), "records": records}
        features = encoder.config.features.understanding
    else:
        place = {"data": str(scenes.folder), "split": "train"}
        features = encoder.config.features.generation
    config = stage_config(
        TokensConfig,
        request.preset.tokens,
        "tokens",
        encoder=encoder.word,
        features=features,
        device=request.device,
        **place,
    )
    return request.graph.add(
        "tokens",
        "encoder.tokens",
        config,
        label=f"{encoder.name}: tokens of {pictures} pictures",
        inputs=[scenes, *encoder.stages],
        files=encoder.files,
        seconds=request.seconds(f"tokens_{pictures}"),
    )
