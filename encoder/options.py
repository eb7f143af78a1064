"""The configurations of this package's stages. No torch here: the command line reads them.

Relative paths are relative to the repository root.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from encoder.blind import BLIND, blind_side
from encoder.data.options import StreamConfig

Precision = Literal["fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
Features = Literal["last", "penultimate", "last_norm"]
Branch = Literal["understanding", "reconstruction"]
SHIFTED = "+shift"  # end of a VAE's folder or hub id whose shift_factor is to be subtracted


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
class ViTShape:
    """A vision tower. B: 12 layers of 768, L: 24 of 1024 (UCSC-VLAA/OpenVision@6c24e45, vit.py)."""

    image_size: int  # side of the inputs: latents (256 px / 8 = 32) for OpenVision 3, pixels for CLIP
    patch_size: int = 2
    in_channels: int = 16
    width: int = 768
    layers: int = 12
    head_width: int = 64
    mlp_width: int | None = None  # None: 4 x width
    embed_dim: int = 768  # of the pooled, contrastive feature

    def __post_init__(self):
        if self.image_size % self.patch_size:
            sizes = f"image_size {self.image_size}, patch_size {self.patch_size}"
            raise ValueError(f"{sizes}: the first must be a multiple of the second")
        if self.width % self.head_width:
            raise ValueError(f"width {self.width} must be a multiple of head_width {self.head_width}")

    @property
    def grid(self) -> int:
        """Tokens on a side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """The ViT decoder; the paper chooses B/1 (Sec. 5.3, Fig. 6): 12 layers of 768."""

    in_width: int = 768  # of z_u
    width: int = 768
    layers: int = 12
    head_width: int = 64
    patch_size: int = 2  # latents a token side: the encoder's patch
    out_channels: int = 16

    def __post_init__(self):
        if self.width % self.head_width:
            raise ValueError(f"width {self.width} must be a multiple of head_width {self.head_width}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """The text encoder. OpenVision 1's beside a B tower (12 x 512); OpenVision 3 gives no sizes."""

    tokenizer: str = "scenes"  # "scenes", or a BERT vocab.txt, the folder it lies in, or its hub id
    context_length: int = 80
    width: int = 512
    layers: int = 12
    head_width: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionerShape:
    """The caption decoder. OpenVision 1's beside a B tower; OpenVision 3 gives no sizes."""

    # autoregressive: each word from the picture and the words before it (OpenVision 3: "autoregressive").
    # parallel: every word at once, from the picture, the alt text and `context_length` learned queries
    # (OpenVision 1, after CLIPS)
    kind: Literal["autoregressive", "parallel"] = "autoregressive"
    context_length: int = 128
    width: int = 512
    layers: int = 12
    head_width: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVision3Shape:
    """The four towers of OpenVision 3; weights without text towers have neither text nor captioner."""

    encoder: ViTShape
    decoder: DecoderShape
    text: TextShape | None = None
    captioner: CaptionerShape | None = None

    def __post_init__(self):
        if self.decoder.in_width != self.encoder.width:
            widths = f"decoder.in_width {self.decoder.in_width}, encoder.width {self.encoder.width}"
            raise ValueError(f"{widths}: the decoder reads z_u, so they must be equal")
        if (self.text is None) != (self.captioner is None):
            raise ValueError("give both text and captioner, or neither")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """The CLIP baseline: the same vision tower on pixels, and a text encoder."""

    encoder: ViTShape
    text: TextShape | None = None


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

    data: str  # folder with {train,val,test}/*.tar; with `stream`, only eval_split is read
    num_steps: int
    batch_size: int  # of all processes together
    optim: OptimConfig
    stream: StreamConfig | None = None  # training samples from shards as needed; None: data's, in memory
    image_size: int | None = None  # px that held-out pictures are brought to; None: as they are
    # Folder of a run whose towers to start from (its checkpoint.pt), with a fresh optimiser
    init: str | None = None
    openvision3: OpenVision3Shape | None = None
    clip: ClipShape | None = None
    vae: str | None = None  # OpenVision 3 only: folder or hub id
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    # The branches that train the encoder. A branch left out is followed by a probe: its own towers go on
    # learning from z_u, but their gradients stop there (the paper's Figs. 4 and 5 do not say how: ours)
    branches: tuple[Branch, ...] = ("understanding", "reconstruction")
    # Part of each batch that is decoded to pixels for the pixel and perceptual terms; 1 is exact, less is the
    # same in expectation and cheaper (the frozen VAE decoder dominates the step)
    pixel_fraction: float = 1.0
    # Side, in latents, of a random square of each picture that is decoded instead of the whole; None: the
    # whole. Cheaper, but near the cut the VAE decoder sees less than it would
    pixel_crop: int | None = None
    perceptual: Literal["lite1", "lpips"] = "lite1"
    perceptual_from: float = 0.0  # fraction of the steps after which the perceptual term joins
    # alt: the alt text only; alt_and_sentence: also one random sentence of the dense caption, losses averaged
    # (OpenVision 1; OpenVision 3 does not say)
    contrastive_texts: Literal["alt", "alt_and_sentence"] = "alt_and_sentence"
    contrastive_chunk: int | None = None  # rows of similarities held at a time; None: all
    precision: Precision = "fp32"
    micro_batch: int | None = None  # rows of a process at once; None: its whole share of batch_size
    device: Device = "auto"  # auto: a GPU where there is one
    compile: bool = False  # torch.compile on each block
    activation_checkpointing: bool = False  # keep each block's input only, compute the rest again
    sharding: Literal["none", "fsdp2"] = "none"  # of weights, gradients and optimiser over processes
    ema_decay: float | None = None  # of averaged weights, which are then exported; OpenVision 1 has none
    trackers: list[Tracker] = field(default_factory=list)
    train_limit: int | None = None  # samples held in memory; None: all
    eval_split: Literal["val", "test"] = "val"
    eval_limit: int = 1000
    eval_steps: int = 2000
    seed: int = 0
    log_steps: int = 50
    checkpoint_steps: int = 500
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
        if self.pixel_crop is not None and self.pixel_crop < 1:
            raise ValueError(f"pixel_crop {self.pixel_crop} must be 1 latent or more")
        if not self.branches or len(set(self.branches)) < len(self.branches):
            raise ValueError(f"branches {list(self.branches)} must name one or both branches, each once")
        if self.clip is not None and len(self.branches) < 2:
            raise ValueError("the CLIP baseline has one branch: leave branches as it is")
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
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self):
        if self.num_batches < 1 or self.batch_size < 2:
            raise ValueError("num_batches must be 1 or more, batch_size 2 or more (contrastive)")


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

    encoder: str  # what `load_encoder` takes
    data: str  # folder of shards; or, with `records`, the folder that picture names are relative to
    records: list[str] = field(default_factory=list)  # LLaVA JSON files whose pictures are wanted
    vae: str | None = None  # over the encoder's own
    features: Features = "last"
    split: Literal["train", "val", "test"] = "train"  # of shards
    limit: int | None = None
    dtype: Literal["fp16", "fp32"] = "fp16"
    batch_size: int = 64
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainVaeConfig:
    """Stage `encoder.train_vae`: train the demo's VAE from scratch on a folder of shards."""

    data: str  # folder with {train,test}/*.tar
    num_steps: int
    batch_size: int = 16
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-3, warmup_steps=200))
    shape: VaeShape = field(default_factory=VaeShape)
    init: str | None = None  # folder of a trained VAE to go on from, in its own shape
    device: Literal["cpu", "cuda"] = "cpu"
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
