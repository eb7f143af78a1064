"""The configurations of the stages that put text in place of classes, and the shape of their model. No torch
here: the command line reads them.

Relative paths are relative to the repository root.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from encoder.data.options import CaptionKeys
from encoder.runtime.device import Device, Precision
from encoder.runtime.trackers import Tracker
from rae_bridge.config import DiTOptimConfig, GenerateConfig, GuidanceConfig, TrainDiTConfig
from rae_bridge.shapes import DiTConfig, DiTSize, Prediction

Conditioning = Literal["tokens", "pooled", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape(DiTConfig):
    """A DiT-DH that is told a text: its tokens in the backbone's context, its pooled vector beside the time,
    or both; see `rae_bridge.text.model`."""

    num_classes: int = 0  # there are none
    conditioning: Conditioning = "tokens"
    text_width: int  # of a text token
    pooled_width: int  # of a text's one vector

    def __post_init__(self) -> None:
        DiTConfig.__post_init__(self)
        if len(self.hidden_size) != 2:
            raise ValueError(
                f"hidden_size {self.hidden_size}: text needs a DiT-DH, two entries (backbone, head)"
            )

    @property
    def sees_tokens(self) -> bool:
        return self.conditioning != "pooled"

    @property
    def sees_pooled(self) -> bool:
        return self.conditioning != "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeTextConfig:
    """Stage `rae_bridge.text.encode`: both captions of a split's pictures through a frozen text encoder."""

    MAY_CHANGE: ClassVar = ("batch_size", "device")

    text_encoder: str  # folder, as `rae_bridge.text.encoders.load_text_encoder` takes it
    max_length: int = 256  # tokens at most; longer texts are cut. RAEv2's
    data: str  # folder with {train,val,test}/*.tar
    split: Literal["train", "val", "test"] = "train"
    limit: int | None = None  # take only this many samples, the first; None: all
    captions: CaptionKeys = field(default_factory=CaptionKeys)
    dtype: Literal["fp16", "fp32"] = "fp16"
    batch_size: int = 64
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if self.max_length < 1 or self.batch_size < 1:
            raise ValueError(
                f"max_length {self.max_length} and batch_size {self.batch_size} must be 1 or more"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTextConfig:
    """Stage `rae_bridge.text.train`: a DiT-DH on frozen tokens, told captions. Fields not explained here are
    those of `TrainDiTConfig`."""

    MAY_CHANGE: ClassVar = (
        "micro_batch_size", "precision", "tf32", "device", "log_steps", "checkpoint_steps",
        "keep_checkpoints", "keep_steps", "skip_non_finite", "trackers",
    )  # fmt: skip
    MAY_GROW: ClassVar = ("num_steps",)

    tokens: str  # pictures: folder written by `encoder.tokens`; mirror images are never drawn ("left of")
    captions: str  # their captions: folder written by `rae_bridge.text.encode`
    conditioning: Conditioning = "tokens"
    # of each batch is told its short caption, the rest its dense one. Those come first, so that with
    # micro_batch_size half of batch_size short texts are not padded to the length of dense ones
    short_share: float = 0.5
    text_dropout_prob: float = 0.1  # are told the empty text instead
    # A weights folder to begin from: of `rae_bridge.train` (its class embedding gives way to text), or of
    # this stage
    init: str | None = None
    num_steps: int
    batch_size: int = 1024
    micro_batch_size: int | None = None
    size: DiTSize = field(default_factory=DiTSize)
    prediction: Prediction = "velocity"
    held_out: str | None = None  # tokens of other pictures
    held_out_captions: str | None = None  # and their captions
    statistics: str | None = None
    time_distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    shift: float | None = None
    optim: DiTOptimConfig = field(default_factory=DiTOptimConfig)
    ema_decay: float = 0.9995
    ema_share: float | None = None
    precision: Precision = "fp32"
    tf32: bool = True
    trackers: list[Tracker] = field(default_factory=list)
    device: Device = "cpu"
    seed: int = 0
    log_steps: int = 20
    checkpoint_steps: int = 500
    keep_checkpoints: int = 1
    keep_steps: tuple[int, ...] = ()
    skip_non_finite: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.short_share <= 1 or not 0 < self.text_dropout_prob < 1:
            raise ValueError(
                f"short_share {self.short_share} must be 0 to 1, text_dropout_prob {self.text_dropout_prob} "
                "between 0 and 1: guidance needs the empty text"
            )
        if (self.held_out is None) != (self.held_out_captions is None):
            raise ValueError("give held_out with held_out_captions, tokens and captions of the same pictures")
        self.as_flow(1)  # refuses what the flow's training refuses

    def as_flow(self, num_texts: int) -> TrainDiTConfig:
        """What the training by flow matching is told, a text being a class: index `num_texts` is none."""
        names = {each.name for each in dataclasses.fields(TrainDiTConfig)}
        shared = names & {each.name for each in dataclasses.fields(self)} - {"init"}
        values = {name: getattr(self, name) for name in shared}
        return TrainDiTConfig(**values, num_classes=num_texts, class_dropout_prob=self.text_dropout_prob)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateTextConfig:
    """Stage `rae_bridge.text.generate`: pictures of prompts. Fields not explained here are those of
    `GenerateConfig`."""

    MAY_CHANGE: ClassVar = ("device", "output")

    model: str  # weights folder by `rae_bridge.text.train`
    encoder: str  # the one whose tokens the model was trained on
    decoder: str | None = None
    text_encoder: str | None = None  # folder of the one that it was trained with; None: where it was then
    # .txt: a prompt a line; .jsonl: `prompt` or `text` of each line (GenEval's evaluation_metadata.jsonl); a
    # folder of .txt files, a prompt each (DPG-Bench's)
    prompts: str
    limit: int | None = None  # of the prompts, the first; None: all
    num_images: int = 4  # of each prompt
    num_steps: int = 50
    solver: Literal["euler", "heun"] = "euler"
    end: Literal["rae", "zero"] = "zero"
    guidance: GuidanceConfig | None = None  # kind cfg: away from the empty text
    guidance_from: str | None = None  # or a folder with best.json, which found the best
    image_size: int | None = None
    rounding: Literal["round", "truncate"] = "round"
    batch_size: int = 100
    # samples.npz of ADM's layout, labels being prompts; or the folders that GenEval's or DPG-Bench's own
    # judges read
    output: Literal["npz", "geneval", "dpg"] = "npz"
    precision: Precision = "fp32"
    device: Device = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_images < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"num_images {self.num_images} and limit {self.limit} must be 1 or more")
        if self.guidance is not None and self.guidance.kind != "cfg":
            raise ValueError("guidance of text is of kind cfg, away from the empty text")
        if self.output == "dpg" and self.num_images != 4:
            raise ValueError(f"num_images {self.num_images}: DPG-Bench's grids are of 4 pictures")
        self.as_generate(1)  # refuses what sampling refuses

    def as_generate(self, num_prompts: int) -> GenerateConfig:
        """What the sampler is told."""
        names = {each.name for each in dataclasses.fields(GenerateConfig)}
        shared = names & {each.name for each in dataclasses.fields(self)} - {"output"}
        values = {name: getattr(self, name) for name in shared}
        return GenerateConfig(**values, num_samples=num_prompts * self.num_images)
