"""The configurations of this package's stages; those of its models are in `rae_bridge.shapes`. No torch here:
the command line reads them.

Relative paths are relative to the repository root.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from encoder.options import Features
from encoder.runtime.device import Device, Precision
from encoder.runtime.trackers import Tracker
from encoder.training.options import OptimConfig
from rae_bridge.pictures_config import LivePicturesConfig, PicturesConfig
from rae_bridge.shapes import (
    DIT_SIZES,
    DecoderConfig,
    DecoderSize,
    DiTConfig,
    DiTSize,
    Prediction,
    decoder_config,
    dit_config,
)
from rae_bridge.watch_config import GridConfig, JudgeConfig, OnlineConfig

Weights = Literal["ema", "online"]  # of a training: the averaged ones, or those that were trained

__all__ = ["DIT_SIZES", "DecoderConfig", "DiTConfig", "decoder_config", "dit_config"]


def check_keeping(keep_checkpoints: int, skip_non_finite: int) -> None:
    """Raises: ValueError if no checkpoint would be kept, or the number of steps to leave out is negative."""
    if keep_checkpoints < 1 or skip_non_finite < 0:
        given = f"{keep_checkpoints} and {skip_non_finite}"
        raise ValueError(f"keep_checkpoints must be 1 or more, skip_non_finite 0 or more; got {given}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTOptimConfig:
    """AdamW at a constant rate, then a linear fall, then constant again. Defaults: RAE's, for batch 1024."""

    MAY_CHANGE: ClassVar = ("lr", "final_lr", "decay_steps", "warmup_steps", "clip_norm")

    lr: float = 2e-4
    muon_lr: float | None = None  # the blocks' matrices learn by Muon, at this rate; it falls as `lr` does
    final_lr: float = 2e-5
    decay_steps: tuple[int, int] | None = None  # the fall's first and last step; RAE: epochs 40 and 800
    warmup_steps: int = 0  # linear; RAE has none
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.decay_steps is not None and not self.decay_steps[0] < self.decay_steps[1]:
            raise ValueError(f"decay_steps {self.decay_steps} must be (first, last) with first < last")
        if self.muon_lr is not None and self.weight_decay:
            raise ValueError(f"weight_decay {self.weight_decay} must be 0 with muon_lr, which has none")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainDiTConfig:
    """Stage `rae_bridge.train`: a diffusion transformer on the tokens of one frozen encoder."""

    MAY_CHANGE: ClassVar = (
        "micro_batch_size", "precision", "tf32", "compile", "online", "device", "log_steps",
        "checkpoint_steps", "keep_checkpoints", "keep_steps", "skip_non_finite", "held_out",
        "held_out_steps", "sample_steps", "grid", "trackers",
    )  # fmt: skip
    MAY_GROW: ClassVar = ("num_steps",)

    tokens: str | None = None  # folder written by `encoder.tokens` or `rae_bridge.cache`
    pictures: PicturesConfig | None = None  # or pictures, encoded as they are needed
    num_classes: int
    num_steps: int
    # where to begin. The folder of a training that has ended: it goes on, weights, averages, optimiser, rates
    # and order of samples, as if it had not. A weights folder: its averaged weights, a fresh optimiser
    init: str | None = None
    batch_size: int = 1024
    micro_batch_size: int | None = None  # of one forward pass in one process; None: no accumulation
    size: DiTSize = field(default_factory=DiTSize)
    class_dropout_prob: float = 0.1
    class_init_std: float = 0.02  # of the classes' embeddings before training; RAE's, for 100,000 steps
    prediction: Prediction = "velocity"
    held_out: str | None = None  # tokens of other pictures, for the losses at the end; None: of these
    held_out_steps: int | None = None  # the averaged weights' loss on them every so many steps; None: never
    statistics: str | None = None  # a statistics file (ours or RAE's); None: exact ones of these tokens
    time_distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    shift: float | None = None  # None: sqrt(latent numbers / 4096), at least 1
    optim: DiTOptimConfig = field(default_factory=DiTOptimConfig)
    ema_decay: float = 0.9995  # RAE's; a ramp keeps the first random weights out
    ema_share: float | None = None  # in place of ema_decay: 1 - 1 / (ema_share x num_steps), for short runs
    precision: Precision = "fp32"
    tf32: bool = True  # what is fp32 in products on a GPU; a CPU has none
    compile: bool = False  # the loss by torch.compile
    online: OnlineConfig | None = None  # scores of the averaged weights on the way
    sample_steps: int | None = None  # a grid of their samples every so many steps; None: never
    grid: GridConfig = field(default_factory=GridConfig)
    trackers: list[Tracker] = field(default_factory=list)
    device: Device = "cpu"
    seed: int = 0
    log_steps: int = 20
    checkpoint_steps: int = 500
    keep_checkpoints: int = 1  # the newest ones kept
    # Steps after which the averaged weights are kept, in kept/: AutoGuidance's guide is a young model
    keep_steps: tuple[int, ...] = ()
    skip_non_finite: int = 0  # steps in the whole run that may be left out because they are not finite

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.pictures is None):
            raise ValueError("give either tokens, a folder that holds them, or pictures to encode")
        check_keeping(self.keep_checkpoints, self.skip_non_finite)
        self._check_watching()
        if self.class_init_std <= 0:
            raise ValueError(f"class_init_std {self.class_init_std} must be over 0")
        if self.ema_share is not None and not 1 <= self.ema_share * self.num_steps <= self.num_steps:
            raise ValueError(f"ema_share {self.ema_share} must span 1 step to all {self.num_steps}")
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}"
            )

    def _check_watching(self) -> None:
        outside = [step for step in self.keep_steps if not 0 < step < self.num_steps]
        if outside:
            raise ValueError(f"keep_steps {outside} must lie over 0 and under num_steps {self.num_steps}")
        if self.held_out_steps is not None and self.held_out is None:
            raise ValueError("held_out_steps needs held_out, a folder of other pictures' tokens")
        for name in ("held_out_steps", "sample_steps"):
            if (steps := getattr(self, name)) is not None and steps < 1:
                raise ValueError(f"{name} {steps} must be 1 or more, or null for never")
        if self.sample_steps is not None and self.grid.scale != 1 and not self.class_dropout_prob:
            raise ValueError(
                f"grid.scale {self.grid.scale} needs class_dropout_prob over 0: without it there is no null "
                "class to be guided from; set grid.scale=1"
            )
        unknown = [y for y in self.grid.classes_of(self.num_classes) if not 0 <= y < self.num_classes]
        if unknown or self.grid.columns < 1:
            raise ValueError(
                f"grid.classes {unknown} must be under num_classes {self.num_classes}, grid.columns 1 or more"
            )

    @property
    def average_decay(self) -> float:
        """Of the averaged weights, at each step after the ramp."""
        return self.ema_decay if self.ema_share is None else 1 - 1 / (self.ema_share * self.num_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversarialConfig:
    """RAE's adversarial term: a discriminator on frozen DINO features. Defaults: RAE's."""

    MAY_CHANGE: ClassVar = ("lr", "weight", "max_adaptive_weight")

    backbone: str = "vit_small_patch8_224.dino"  # of timm
    checkpoint: str | None = None  # its weights. None: timm's own (a download), "random", or a file
    weight: float = 0.75  # times the adaptive weight
    max_adaptive_weight: float = 1e4
    learns_from: float = 6 / 16  # fraction of the steps after which it learns; RAE: epoch 6 of 16
    acts_from: float = 8 / 16  # fraction of the steps after which the decoder's loss has this term
    lr: float = 2e-4
    kernel_size: int = 9  # of the heads' convolution along the tokens

    def __post_init__(self) -> None:
        if not 0 <= self.learns_from <= self.acts_from <= 1:
            raise ValueError(
                f"learns_from {self.learns_from} and acts_from {self.acts_from} must be 0 to 1, in this order"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainDecoderConfig:
    """Stage `rae_bridge.train_decoder`: a pixel decoder for a frozen encoder that cannot decode."""

    MAY_CHANGE: ClassVar = (
        "precision", "tf32", "device", "log_steps", "checkpoint_steps", "keep_checkpoints",
        "skip_non_finite", "trackers",
    )  # fmt: skip
    MAY_GROW: ClassVar = ("num_steps",)

    encoder: str  # what `encoder.load_encoder` takes
    features: Features | None = None  # None: those that the encoder's config names for generation
    data: str  # folder as `encoder.data.picture_set.open_pictures` takes it
    # None: every picture is cut and encoded once, before the first step, and kept on the disk with its tokens
    live: LivePicturesConfig | None = None
    num_steps: int
    batch_size: int = 64
    image_size: int | None = None  # pixels on a side of what it draws; None: the encoder's own
    # Of oblong pictures in shards where they are kept; others are cut as ADM does
    crop: Literal["squash", "centre"] = "squash"
    size: DecoderSize = field(default_factory=DecoderSize)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-4, warmup_steps=0))  # RAE's rate
    tau: float = 0.8  # RAE's released decoders; noise on the tokens in training, sample by sample
    # sigma = tau U(0, 1), as RAE's code has it, or tau |N(0, 1)|, as its paper says
    noise: Literal["uniform", "half_normal"] = "uniform"
    perceptual: Literal["lite1", "lpips"] = "lite1"
    lpips_trunk: str | None = None  # VGG16's file; None: where torch's hub keeps it
    perceptual_weight: float = 0.5  # OpenVision 3's; RAE's 1 is 2 here, where l1 is measured in [-1, 1]
    perceptual_from: float = 0.0  # fraction of the steps after which the perceptual term joins
    perceptual_fraction: float = 1.0  # part of each batch that the term is computed on; its mean is the same
    adversarial: AdversarialConfig | None = None  # RAE's third term
    ema_decay: float = 0.9978  # RAE's
    precision: Precision = "fp32"
    tf32: bool = True  # what is fp32 in products on a GPU; a CPU has none
    device: Device = "cpu"
    train_limit: int | None = None  # pictures; None: all
    eval_split: Literal["val", "test"] = "val"
    eval_limit: int = 1000
    seed: int = 0
    trackers: list[Tracker] = field(default_factory=list)
    log_steps: int = 50
    checkpoint_steps: int = 500
    keep_checkpoints: int = 1  # the newest ones kept
    skip_non_finite: int = 0  # steps in the whole run that may be left out because they are not finite

    def __post_init__(self) -> None:
        check_keeping(self.keep_checkpoints, self.skip_non_finite)
        if self.live is not None and self.crop != "squash":
            raise ValueError(f"crop {self.crop} is of pictures that are kept; with live, set live.crop")
        if not 0 < self.perceptual_fraction <= 1:
            raise ValueError(f"perceptual_fraction {self.perceptual_fraction} must be over 0, at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceConfig:
    """See `rae_bridge.sample.Guidance`."""

    kind: Literal["cfg", "autoguidance"]
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)  # of t; 0 is data
    # autoguidance: the weights folder of a weaker model, by `rae_bridge.train`, such as one under its `kept`
    model: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "autoguidance") != (self.model is not None):
            raise ValueError("autoguidance needs the weaker model's weights folder as model; cfg takes none")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """Stage `rae_bridge.generate`: pictures from a trained diffusion transformer, equally many a class."""

    MAY_CHANGE: ClassVar = ("device", "output", "shard_size")

    model: str  # weights folder by `rae_bridge.train` or `rae_bridge.distill`
    weights: Weights = "ema"  # online needs the training's checkpoint, beside the weights folder
    encoder: str  # the one whose tokens the model was trained on
    decoder: str | None = None  # over the encoder's own choice: "own" or a pixel decoder's folder
    num_samples: int
    num_steps: int = 50  # model calls
    inner_steps: int | None = None  # of a student, calls of its head in each step; None: those it learnt
    solver: Literal["euler", "heun"] = "euler"
    end: Literal["rae", "zero"] = "zero"
    guidance: GuidanceConfig | None = None
    guidance_from: str | None = None  # or the folder of a `rae_bridge.sweep`, which found the best
    image_size: int | None = None  # px on a side to which pictures are brought; None: the decoder's own
    rounding: Literal["round", "truncate"] = "round"  # of x 255 to uint8; RAE truncates
    batch_size: int = 100
    keeps_tokens: bool = False  # the samples' tokens too: out_dir/tokens, as `encoder.tokens` writes them
    output: Literal["npz", "shards"] = "npz"  # samples.npz of ADM's layout, or a PNG tar every shard_size
    shard_size: int = 1000
    precision: Precision = "fp32"
    device: Device = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.inner_steps is not None and self.inner_steps < 1:
            raise ValueError(f"inner_steps {self.inner_steps} must be 1 or more")
        if self.guidance is not None and self.guidance_from is not None:
            raise ValueError("give guidance or guidance_from, a sweep's folder, not both")
        if self.solver == "heun" and self.num_steps % 2:
            raise ValueError(f"num_steps {self.num_steps} must be even for heun, which takes two an interval")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructConfig:
    """Stage `rae_bridge.reconstruct`: pictures of a split through encode and decode."""

    encoder: str
    decoder: str | None = None  # over the encoder's own choice: "own" or a pixel decoder's folder
    data: str  # folder with {train,val,test}/*.tar
    split: Literal["train", "val", "test"] = "test"
    limit: int | None = None
    # px on a side of what is compared, to which the decoder's pictures are brought; None: the decoder's own
    image_size: int | None = None
    rounding: Literal["round", "truncate"] = "round"  # of x 255 to uint8; RAE truncates
    batch_size: int = 100
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit {self.limit} must be 1 or more, or null for all")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """Stage `rae_bridge.decode`: the pictures that kept tokens decode to."""

    encoder: str
    decoder: str | None = None  # over the encoder's own choice: "own" or a pixel decoder's folder
    tokens: str  # folder by `encoder.tokens`, of the features that the encoder gives for generation
    first: int = 0  # the first picture of those
    limit: int | None = None  # so many from there on; None: all
    image_size: int | None = None  # px on a side, to which the decoder's pictures are brought; None: its own
    rounding: Literal["round", "truncate"] = "round"  # of x 255 to uint8; RAE truncates
    batch_size: int = 100
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if self.first < 0 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"first {self.first} must be 0 or more, limit {self.limit} 1 or more, or null")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Stage `rae_bridge.sweep`: the Frechet distance against guidance scale and number of steps."""

    MAY_CHANGE: ClassVar = ("device", "scales", "ends", "steps", "default_scale", "default_steps")

    model: str  # weights folder by `rae_bridge.train`
    weights: Weights = "ema"  # as in `GenerateConfig`
    encoder: str
    decoder: str | None = None
    judge: JudgeConfig
    scales: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 3.0)
    steps: tuple[int, ...] = (5, 10, 25, 50)
    default_scale: float = 1.0  # held while the steps vary
    default_steps: int = 25  # held while the scale varies
    kind: Literal["cfg", "autoguidance"] = "cfg"
    weaker: str | None = None  # autoguidance: the weaker model's weights folder
    interval: tuple[float, float] = (0.0, 1.0)
    ends: tuple[float, ...] = ()  # of more intervals, from the first of `interval`, to try each scale on
    solver: Literal["euler", "heun"] = "euler"
    end: Literal["rae", "zero"] = "zero"
    image_size: int | None = None  # px on a side, as in `GenerateConfig`
    rounding: Literal["round", "truncate"] = "round"
    num_samples: int = 500
    batch_size: int = 100
    precision: Precision = "fp32"
    device: Device = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.scales or not self.steps:
            raise ValueError("scales and steps must name at least one value each")
        if (self.kind == "autoguidance") != (self.weaker is not None):
            raise ValueError("autoguidance needs the weaker model's weights folder as weaker; cfg takes none")
