"""The configurations of streamed data. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from encoder.data.scenes.objects import COLORS, KINDS, SLOTS
from encoder.runtime.device import Device

Crop = Literal["squash", "centre", "random"]
# scene_centric: up to five objects that do things with each other, as in COCO; object_centric: one large
# object, the class of the picture, at times a small one beside it, as in ImageNet
Composition = Literal["scene_centric", "object_centric"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionKeys:
    """Where a sample's two texts stand: keys of its JSON, or `txt` for the .txt file; the first with a text
    counts. A sample that has one of the two texts only uses it for both."""

    alt: list[str] = field(default_factory=lambda: ["org_caption", "txt", "caption"])
    dense: list[str] = field(default_factory=lambda: ["re_caption"])

    def __post_init__(self):
        if not self.alt and not self.dense:
            raise ValueError("captions needs at least one key in alt or dense")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """One set of shards in a mixture."""

    # A folder, a pattern with * (local, s3), or names with {00000..00999} (any place that fsspec reads)
    shards: str
    weight: float = 1.0  # its share of the samples, relative to the other sources'

    def __post_init__(self):
        if self.weight <= 0:
            raise ValueError(f"weight {self.weight} of {self.shards} must be over 0; leave the source out")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """Training samples read from shards as they are needed, in an order that (seed, lanes) fixes.

    A lane is one reader of its own part of every source's shards; each step takes equally many samples from
    every lane. Lanes are dealt to processes and their workers, so neither count changes what a step sees.
    """

    MAY_CHANGE: ClassVar = (
        "num_workers", "max_bad_fraction", "retries", "retry_seconds", "max_lost_shards", "prefetch",
    )  # fmt: skip

    sources: list[SourceConfig]
    image_size: int  # px
    # squash: the whole picture to a square; centre: the short side resized, the middle cut (as the paper's
    # reconstruction is scored); random: an inception crop (OpenVision 1's augmentation, of which the colour
    # jitter is left out: the decoder would learn it; OpenVision 3 does not say)
    crop: Crop = "centre"
    crop_area: tuple[float, float] = (0.4, 1.0)  # OpenVision 1's (UCSC-VLAA/OpenVision@6c24e45)
    latents: bool = False  # the shards hold z_vae (python -m encoder.cache): cropped and encoded already
    num_lanes: int = 8
    shuffle_window: int = 2000  # samples of a shard that are read and mixed at once, in each lane
    num_workers: int = 0  # reading processes beside each training process; 0: it reads itself
    max_bad_fraction: float = 0.01  # of a lane's samples; beyond it the run stops
    max_pixels: int = 64_000_000  # of one picture
    retries: int = 5  # of a shard that cannot be read, with growing pauses, before the run stops
    retry_seconds: float = 1.0  # the first pause
    # Remote shards that stay away after all retries and are left out, of a lane in an epoch; one more stops
    # the run. A local shard that is missing stops it at once
    max_lost_shards: int = 1
    prefetch: int = 1  # windows that each source of a lane reads ahead in the background; 0: none
    captions: CaptionKeys = field(default_factory=CaptionKeys)

    def __post_init__(self):
        if not self.sources:
            raise ValueError("stream.sources is empty: give at least one {shards: ...}")
        if min(self.num_lanes, self.shuffle_window, self.image_size) < 1:
            raise ValueError("stream: num_lanes, shuffle_window and image_size must be 1 or more")
        if min(self.prefetch, self.retries, self.max_lost_shards) < 0:
            raise ValueError("stream: prefetch, retries and max_lost_shards must be 0 or more")
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"stream.crop_area {list(self.crop_area)} must be 0 < low <= high <= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Stage `encoder.cache`: shards of bf16 VAE latents beside their pictures and texts."""

    MAY_CHANGE: ClassVar = ("batch_size", "device", "max_bad_fraction", "num_threads")

    vae: str  # folder or hub id
    shards: str  # as in `SourceConfig`
    image_size: int  # px; a multiple of the VAE's downsampling
    crop: Literal["squash", "centre"] = "centre"
    # The picture as the VAE saw it, for the pixel and perceptual terms: png is exact
    picture: Literal["png", "jpeg"] = "png"
    batch_size: int = 64
    device: Device = "auto"
    max_bad_fraction: float = 0.01
    max_pixels: int = 64_000_000
    captions: CaptionKeys = field(default_factory=CaptionKeys)
    split: str = field(default="train")  # the folder in out_dir that the shards go to
    num_threads: int | None = None  # that decode pictures, in each process; None: as many as torch's


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Pairs that no train picture shows, so that somebody can be asked for what he never saw: kind -> colours
    ({cat: [purple]}), kind -> slots ({fish: [top left]})."""

    colors: dict[str, list[str]] = field(default_factory=dict)
    slots: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self):
        for field_name, asked, known in (("colors", self.colors, COLORS), ("slots", self.slots, SLOTS)):
            for kind, names in asked.items():
                if kind not in KINDS or not set(names) <= set(known):
                    wrong = kind if kind not in KINDS else next(name for name in names if name not in known)
                    choices = KINDS if kind not in KINDS else known
                    raise ValueError(f"held_out.{field_name}: '{wrong}' is none of {', '.join(choices)}")
                if len(set(names)) == len(known):
                    raise ValueError(f"held_out.{field_name} leaves {kind} none of {', '.join(known)}")

    def has(self, kind: str, color: str, slot: str) -> bool:
        """Whether an object of this kind, colour and slot ("top left") is held out."""
        return color in self.colors.get(kind, ()) or slot in self.slots.get(kind, ())


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenesConfig:
    """Stage `encoder.data.scenes.write`: pictures of Scenes with their texts, questions and conversations."""

    MAY_CHANGE: ClassVar = ("num_workers",)

    image_size: int  # pixels, 64 to 512
    num_train: int
    num_val: int
    num_test: int
    num_llava_images: int  # a caption and a conversation each; scenes that follow the train shards'
    num_text: int  # rows of text.jsonl
    num_seed_questions: int  # of Scenes-SEED, in each of nine dimensions; whole groups of 4
    num_pope_pairs: int  # of Scenes-POPE, in each of three settings
    num_layouts: int = 0  # rows of layouts.jsonl: scenes laid out in cells, for a language model's lessons
    layout_grid: int = 4  # cells on a side of them: as many as a picture has tokens on a side
    seed: int = 0
    shard_size: int = 1000  # pictures a shard; 10,000 at most (the keys give four digits to them)
    num_workers: int = 1
    # Objects and signs at this part of their usual size: a large picture then shows small things
    object_scale: float = 1.0
    # px: drawn at this size and enlarged to image_size, which then shows nothing more; None: at image_size
    rendered_at: int | None = None
    composition: Composition = "scene_centric"
    num_object_centric: int = 0  # the last of num_train that are object-centric in a scene-centric set
    held_out: HeldOut = field(default_factory=HeldOut)

    def __post_init__(self):
        if not 64 <= self.image_size <= 512:
            raise ValueError(f"image_size must be from 64 to 512 pixels, got {self.image_size}")
        if not 64 <= (self.rendered_at or 64) <= self.image_size:
            raise ValueError(
                f"rendered_at must be from 64 to image_size {self.image_size} pixels, got {self.rendered_at}"
            )
        if not 0.25 <= self.object_scale <= 1:
            raise ValueError(f"object_scale must be from 0.25 to 1, got {self.object_scale}")
        if not 1 <= self.shard_size <= 10_000:
            raise ValueError(f"shard_size must be from 1 to 10000 pictures, got {self.shard_size}")
        for name in ("num_workers", "layout_grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in self.__slots__:
            if name.startswith("num_") and getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.num_object_centric > self.num_train:
            raise ValueError(
                f"num_object_centric {self.num_object_centric} must be at most num_train {self.num_train}"
            )
        asked = [name for name in OF_SCENE_CENTRIC if getattr(self, name)]
        if self.composition == "object_centric" and asked:
            raise ValueError(
                f"{asked[0]} {getattr(self, asked[0])} must be 0 with composition object_centric: questions "
                "and conversations are about scenes of several objects"
            )

    def composition_of(self, split: str, index: int) -> Composition:
        """How picture number `index` of a split is composed."""
        is_other = split == "train" and self.num_train - self.num_object_centric <= index < self.num_train
        return "object_centric" if is_other else self.composition


# Counts that only scene-centric pictures can have
OF_SCENE_CENTRIC = (
    "num_object_centric", "num_llava_images", "num_text", "num_layouts", "num_seed_questions",
    "num_pope_pairs",
)  # fmt: skip
