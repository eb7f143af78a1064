"""The configurations of the frozen side: encoders by name, and the stage that stores tokens. No torch here.

Relative paths are relative to the repository root.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from encoder.blind import BLIND, blind_side
from encoder.runtime.device import Device

Features = Literal["last", "penultimate", "last_norm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureChoice:
    """Which features each bridge sees: see `encoder.frozen.FrozenEncoder`."""

    understanding: Features = "last"
    generation: Features = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """configs/encoders/<name>.yaml: a frozen encoder by name."""

    name: str
    source: str  # what `load_encoder` takes
    vae: str | None = None  # OpenVision 3's VAE: folder or hub id, "+shift" after it to subtract the shift
    image_size: int | None = None  # px; for clip:, vae: and module: sources that leave it open
    features: FeatureChoice = field(default_factory=FeatureChoice)
    # How tokens become pixels: "own", a folder that rae_bridge.train_decoder wrote, or nothing
    decoder: str | None = None

    def __post_init__(self):
        if self.source == BLIND and self.image_size is not None:
            blind_side(self.image_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensConfig:
    """Stage `encoder.tokens`: the tokens of every picture, once, for both bridges."""

    MAY_CHANGE: ClassVar = ("batch_size", "device")

    encoder: str  # what `load_encoder` takes
    data: str  # folder of shards; or, with `records`, the folder that picture names are relative to
    records: list[str] = field(default_factory=list)  # LLaVA JSON files whose pictures are wanted
    vae: str | None = None  # over the encoder's own
    features: Features = "last"
    split: Literal["train", "val", "test"] = "train"  # of shards
    limit: int | None = None  # take only this many, the first, readable or not
    flips: bool = False  # the mirror images' tokens too
    dtype: Literal["fp16", "fp32"] = "fp16"
    batch_size: int = 64
    shard_size: int | None = None  # pictures; None: as many as fill 512 MB
    allow_outside_root: bool = False  # records may name pictures outside of `data`
    device: Device = "cpu"

    def __post_init__(self):
        for name in ("shard_size", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1 picture, or null")
