"""The pictures whose tokens a training is on, encoded once or at every step: the configurations. No torch
here: the command line reads them.

Relative paths are relative to the repository root.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from encoder.options import Features
from encoder.runtime.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturesConfig:
    """Pictures whose tokens are encoded anew at every step: `rae_bridge.live`."""

    MAY_CHANGE: ClassVar = ("encode_batch_size", "num_threads", "picture_cache")

    folder: str  # as `encoder.data.picture_set.open_pictures` takes it
    encoder: str  # what `encoder.load_encoder` takes
    features: Features | None = None  # None: those that the encoder's config names for generation
    split: Literal["train", "val", "test"] = "train"
    # px on a side to which they are cut, before the encoder brings them to its own; None: its own. RAE: 256
    image_size: int | None = None
    num_for_statistics: int = 50_000  # pictures whose tokens give the latents' mean and variance
    encode_batch_size: int = 64
    num_threads: int = 8  # of each process, which read and decode
    picture_cache: str = "runs/pictures"  # where parquet's pictures are copied, once


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePicturesConfig:
    """Pictures that a decoder's training reads, cuts and encodes anew at every step: nothing is kept of them.
    Defaults: RAE's."""

    MAY_CHANGE: ClassVar = ("encode_batch_size", "num_threads")

    # random: the shorter side to 1.5 sides of what is drawn, then a square anywhere, in training; centre: as
    # ADM does, which is how the evaluation's are always cut
    crop: Literal["random", "centre"] = "random"
    flip: bool = False  # half of the train pictures mirrored
    encode_batch_size: int = 64
    num_threads: int = 8  # of each process, which read and decode
    picture_cache: str = "runs/pictures"  # where parquet's pictures are copied, once


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Stage `rae_bridge.cache`: frozen tokens of pictures and of their mirror images; see `TokensConfig`."""

    encoder: str  # what `encoder.load_encoder` takes
    features: Features | None = None  # None: those that the encoder's config names for generation
    data: str  # folder with {train,val,test}/*.tar
    split: Literal["train", "val", "test"] = "train"
    flips: bool = True  # keep the mirror images' tokens too; training then draws either
    limit: int | None = None  # take only this many, the first, readable or not
    dtype: Literal["fp16", "fp32"] = "fp16"
    shard_size: int | None = None  # pictures; None: as many as fill 512 MB
    batch_size: int = 64
    device: Device = "cpu"
