"""Stages that more than one suite, or more than one row, starts from."""

from typing import Literal

from encoder.options import ScenesConfig, TokensConfig
from harness.config import stage_config
from harness.encoders import Encoder
from harness.stages import Stage
from harness.suites.request import Request


def add_scenes(request: Request) -> Stage:
    """Pictures, texts and questions of the embedded world."""
    config = stage_config(ScenesConfig, request.preset.scenes, "scenes")
    return request.graph.add("scenes", "encoder.data.scenes.write", config, seconds=request.seconds("scenes"))


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
