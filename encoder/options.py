"""The configurations of this package's stages. No torch here: the command line reads them.

Relative paths are relative to the repository root.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and a cosine to 0."""

    lr: float  # peak
    warmup_steps: int
    # OpenVision 1's (UCSC-VLAA/OpenVision@6c24e45); OpenVision 3 does not say
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0  # on kernels only
    clip_norm: float | None = 1.0  # OpenVision 1 does not clip; short CPU runs at high rates want it


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeShape:
    """An AutoencoderKL of FLUX's shape: 8x down, 16 channels, mid-block attention, no quant convolutions.

    FLUX.1 itself: block_out_channels 128-256-512-512, layers_per_block 2, norm_num_groups 32.
    """

    block_out_channels: tuple[int, ...] = (16, 32, 48, 64)
    layers_per_block: int = 1
    latent_channels: int = 16
    norm_num_groups: int = 8

    def __post_init__(self):
        odd = [width for width in self.block_out_channels if width % self.norm_num_groups]
        if odd:
            raise ValueError(
                f"block_out_channels {odd} must be multiples of norm_num_groups {self.norm_num_groups}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainVaeConfig:
    """Stage `encoder.train_vae`: train the demo's VAE from scratch on a folder of shards."""

    data: str  # folder with {train,test}/*.tar
    num_steps: int
    batch_size: int = 16
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-3, warmup_steps=200))
    shape: VaeShape = field(default_factory=VaeShape)
    pixel_loss: Literal["l1", "l2"] = "l1"  # in [-1, 1]
    kl_weight: float = 1e-5  # on the mean over latent values
    perceptual: Literal["lite1", "lpips"] = "lite1"
    perceptual_weight: float = 0.0
    perceptual_from: float = 0.0  # fraction of the steps after which the perceptual term joins
    ema_decay: float = 0.999
    precision: Precision = "fp32"
    channels_last: bool = False
    train_limit: int | None = None  # pictures held in memory; None: all
    eval_split: str = "test"
    eval_limit: int = 2000
    seed: int = 0
    log_steps: int = 50
    checkpoint_steps: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenesConfig:
    """Stage `encoder.data.scenes.write`: pictures of Scenes with their texts, questions and conversations."""

    image_size: int  # pixels, 64 to 512
    num_train: int
    num_val: int
    num_test: int
    num_llava_images: int  # a caption and a conversation each; scenes that follow the train shards'
    num_text: int  # rows of text.jsonl
    num_seed_questions: int  # of Scenes-SEED, in each of nine dimensions; whole groups of 4
    num_pope_pairs: int  # of Scenes-POPE, in each of three settings
    seed: int = 0
    shard_size: int = 1000  # pictures a shard; 10,000 at most (the keys give four digits to them)
    num_workers: int = 1

    def __post_init__(self):
        if not 64 <= self.image_size <= 512:
            raise ValueError(f"image_size must be from 64 to 512 pixels, got {self.image_size}")
        if not 1 <= self.shard_size <= 10_000:
            raise ValueError(f"shard_size must be from 1 to 10000 pictures, got {self.shard_size}")
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be 1 or more, got {self.num_workers}")
        for name in self.__slots__:
            if name.startswith("num_") and getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
