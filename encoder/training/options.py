"""The configurations of this wing's stages. No torch here: the command line reads them.

Relative paths are relative to the repository root.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from encoder.data.options import CaptionKeys, StreamConfig
from encoder.models.shapes import ClipShape, OpenVision3Shape, VaeShape
from encoder.runtime.device import Device, Precision
from encoder.runtime.trackers import Tracker

Branch = Literal["understanding", "reconstruction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and a cosine to `final_lr`."""

    MAY_CHANGE: ClassVar = ("lr", "final_lr", "warmup_steps", "clip_norm")

    lr: float  # peak
    warmup_steps: int
    final_lr: float = 0.0
    # False: the cosine spans all steps and the warm-up is multiplied to it (OpenVision 1); True: it begins
    # when the warm-up ends (RAE)
    cosine_after_warmup: bool = False
    # OpenVision 1's (UCSC-VLAA/OpenVision@6c24e45); OpenVision 3 does not say
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0  # on kernels only
    clip_norm: float | None = 1.0  # OpenVision 1 does not clip; short CPU runs at high rates want it

    def __post_init__(self):
        if not 0 <= self.final_lr <= self.lr:
            raise ValueError(f"final_lr {self.final_lr} must be 0 to lr {self.lr}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """omega_rec (pixel_l1 + beta latent_l1 + perceptual_weight P) + omega_und (caption + alpha contrastive).

    Source: arXiv:2601.15369v2, Eqs. 3-6 and Table 1.
    """

    omega_rec: float = 0.5
    omega_und: float = 1.0
    beta: float = 0.4
    alpha: float = 1.0
    # lambda: 0 in pre-training, 0.5 in fine-tuning, on LPIPS
    perceptual_weight: float = 0.0
    # sigma ~ U[0, tau]. The paper gives no value; this is what RAE trains its decoders with
    # (bytetriper/RAE@a4d18c4, noise_tau). z_u has no fixed scale: the log shows tau over its deviation
    tau: float = 0.8
    # The range in which pixel_l1 is measured: signed is [-1, 1], the VAE's own, where errors are twice those
    # of unit, [0, 1]. The paper does not say; signed is what the released script feeds the VAE
    pixel_range: Literal["signed", "unit"] = "signed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Stage `encoder.train`: OpenVision 3, or the CLIP baseline on equal terms: same samples, same order."""

    MAY_CHANGE: ClassVar = (
        "micro_batch", "contrastive_chunk", "precision", "device", "compile", "activation_checkpointing",
        "trackers", "eval_steps", "log_steps", "checkpoint_steps", "snapshot_steps", "keep_checkpoints",
        "skip_non_finite", "export_text",
    )  # fmt: skip
    MAY_GROW: ClassVar = ("num_steps",)

    data: str  # folder with {train,val,test}/*.tar; with `stream`, only eval_split is read
    num_steps: int
    batch_size: int  # of all processes together
    optim: OptimConfig
    stream: StreamConfig | None = None  # training samples from shards as needed; None: data's, in memory
    image_size: int | None = None  # px that held-out pictures are brought to; None: as they are
    # Towers to start from with a fresh optimiser: folder of a run (its checkpoint.pt), or of weights exported
    # with their text towers (fp16)
    init: str | None = None
    openvision3: OpenVision3Shape | None = None
    clip: ClipShape | None = None
    vae: str | None = None  # OpenVision 3 only: folder or hub id
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    # The branches that train the encoder. A branch left out is followed by a probe: its own towers go on
    # learning from z_u, but their gradients stop there (the paper's Figs. 4 and 5 do not say how: ours)
    branches: tuple[Branch, ...] = ("understanding", "reconstruction")
    # The decoder alone learns, from init's tokens; encoder and text towers stay as they are, to the last bit
    decoder_only: bool = False
    # Part of each micro-batch, its first rows, that is decoded to pixels for the pixel and perceptual terms;
    # 1 is exact, less is the same in expectation and cheaper (the frozen VAE decoder dominates the step)
    pixel_fraction: float = 1.0
    # Side, in latents, of a random square of each picture that is decoded instead of the whole; None: the
    # whole. Cheaper, but near the cut the VAE decoder sees less than it would
    pixel_crop: int | None = None
    perceptual: Literal["lite1", "lpips"] = "lite1"
    lpips_trunk: str | None = None  # VGG16's file; None: where torch's hub keeps it
    perceptual_from: float = 0.0  # fraction of the steps after which the perceptual term joins
    # alt: the alt text only; alt_and_sentence: also one random sentence of the dense caption, losses averaged
    # (OpenVision 1; OpenVision 3 does not say)
    contrastive_texts: Literal["alt", "alt_and_sentence"] = "alt_and_sentence"
    contrastive_chunk: int | None = None  # rows of similarities held at a time; None: all
    precision: Precision = "fp32"
    micro_batch: int | None = None  # rows of a process at once; None: its whole share of batch_size
    device: Device = "auto"
    compile: bool = False  # torch.compile on each block
    activation_checkpointing: bool = False  # keep each block's input only, compute the rest again
    sharding: Literal["none", "fsdp2"] = "none"  # of weights, gradients and optimiser over processes
    ema_decay: float | None = None  # of averaged weights, which are then exported; OpenVision 1 has none
    trackers: list[Tracker] = field(default_factory=list)
    captions: CaptionKeys = field(default_factory=CaptionKeys)  # of `data`; a stream has its own
    train_limit: int | None = None  # samples held in memory; None: all
    eval_split: Literal["val", "test"] = "val"
    eval_limit: int = 1000
    eval_steps: int = 2000
    seed: int = 0
    log_steps: int = 50
    checkpoint_steps: int = 500
    keep_checkpoints: int = 1  # the newest ones kept: checkpoint.pt, before it checkpoint.1.pt, ...
    # Steps whose loss or gradient is not finite that are left out (weights, averages and moments stay as they
    # were) before the run stops; counted over the whole run
    skip_non_finite: int = 0
    export_text: bool = True  # weights/ holds the text towers too
    # Steps after which the towers alone are kept, in snapshots/: encoder.synergy looks at each of them
    snapshot_steps: tuple[int, ...] = ()

    def __post_init__(self):
        if (self.openvision3 is None) == (self.clip is None):
            raise ValueError("give exactly one of openvision3 and clip")
        if self.openvision3 is not None and self.vae is None:
            raise ValueError("openvision3 needs vae: a folder or hub id")
        shape = self.openvision3 or self.clip
        if shape.text is None:
            raise ValueError("training needs text towers: give text (and captioner for openvision3)")
        if not 0 < self.pixel_fraction <= 1:
            raise ValueError(f"pixel_fraction {self.pixel_fraction} must be over 0, at most 1")
        if self.ema_decay is not None and self.sharding != "none":
            raise ValueError("ema_decay needs sharding: none; averaged weights are not sharded")
        if self.keep_checkpoints < 1 or self.skip_non_finite < 0:
            raise ValueError("keep_checkpoints must be 1 or more, skip_non_finite 0 or more")
        if self.pixel_crop is not None and self.pixel_crop < 1:
            raise ValueError(f"pixel_crop {self.pixel_crop} must be 1 latent or more")
        if not self.branches or len(set(self.branches)) < len(self.branches):
            raise ValueError(f"branches {list(self.branches)} must name one or both branches, each once")
        if self.clip is not None and len(self.branches) < 2:
            raise ValueError("the CLIP baseline has one branch: leave branches as it is")
        if self.decoder_only and (self.clip is not None or self.init is None or len(self.branches) < 2):
            raise ValueError(
                "decoder_only needs openvision3, both branches as they are, and init, a trained one's folder"
            )
        outside = [step for step in self.snapshot_steps if not 0 < step < self.num_steps]
        if outside:
            raise ValueError(f"snapshot_steps {outside} must lie over 0 and under num_steps {self.num_steps}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SynergyConfig:
    """Stage `encoder.synergy`: the cosine of the two branches' gradients over a training."""

    run: str  # folder that encoder.train wrote: its snapshots and its checkpoint are measured
    split: Literal["train", "val", "test"] = "val"
    num_batches: int = 16  # at each step looked at
    batch_size: int = 64
    seed: int = 0  # of the noise and the sentences
    device: Device = "cpu"

    def __post_init__(self):
        if self.num_batches < 1 or self.batch_size < 2:
            raise ValueError("num_batches must be 1 or more, batch_size 2 or more (contrastive)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainVaeConfig:
    """Stage `encoder.train_vae`: train the demo's VAE from scratch on a folder of shards."""

    MAY_CHANGE: ClassVar = (
        "precision", "channels_last", "device", "log_steps", "checkpoint_steps", "keep_checkpoints",
        "skip_non_finite", "trackers",
    )  # fmt: skip
    MAY_GROW: ClassVar = ("num_steps",)

    data: str  # folder with {train,test}/*.tar
    num_steps: int
    batch_size: int = 16
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-3, warmup_steps=200))
    shape: VaeShape = field(default_factory=VaeShape)
    init: str | None = None  # folder of a trained VAE to go on from, in its own shape
    device: Device = "cpu"
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
    trackers: list[Tracker] = field(default_factory=list)
    log_steps: int = 50
    checkpoint_steps: int = 500
    keep_checkpoints: int = 1  # as in `TrainConfig`
    skip_non_finite: int = 0  # as in `TrainConfig`
