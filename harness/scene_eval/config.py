"""The configurations of SceneEval's stages. No torch here: the command line reads them."""

import dataclasses
import json
from collections.abc import Sequence
from typing import ClassVar

from encoder.data.options import HeldOut
from encoder.runtime.device import Device, Precision
from rae_bridge.text.config import GenerateTextConfig

TASKS = ("single", "two", "counting", "colour", "position", "binding", "size", "place", "sign")
# Beside the nine: of one object's slot, and of pairs that no train picture showed
EXTRA = ("slot", "unseen-colour", "unseen-slot")
SCORE = "SceneEval"
CURVES = tuple(f"{SCORE}/{task}" for task in ("single", "colour", "binding"))  # shown over a training
FIDELITY = {"gFD": "tFD", "KID": "tKID"}  # of the generation suite's numbers -> of pictures of captions
TEST, VALIDATION, CAPTIONS = "test.jsonl", "validation.jsonl", "captions.jsonl"  # of the stage of prompts
RENDERS = "renders.npz"  # the scenes that the test prompts were made of, drawn
JUDGE, REBUILT = "judge", "rebuilt.npz"  # folder of the judge below its stage's; renders there and back


def tasks_of(held_out: HeldOut) -> tuple[str, ...]:
    """The tasks that there are; of unseen pairs only where some are held out."""
    has = {"unseen-colour": any(held_out.colors.values()), "unseen-slot": any(held_out.slots.values())}
    return (*TASKS, *(task for task in EXTRA if has.get(task, True)))


def keys_of(held_out: HeldOut) -> tuple[str, ...]:
    """Of all numbers that the judge of scenes gives, in order."""
    names = (*tasks_of(held_out), "swap", "facts", "shuffled", "normalised")
    return (SCORE, *(f"{SCORE}/{name}" for name in names))


def spread_over_tasks(lines: Sequence[str]) -> dict[int, str]:
    """Number and text of each task's first prompt, from the lines of a file of prompts."""
    first: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        record = json.loads(line)
        first.setdefault(record["task"], (number, record["prompt"]))
    return dict(first.values())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptsConfig:
    """Stage `harness.scene_eval.prompts`."""

    data: str  # folder of Scenes by `encoder.data.scenes.write`: whose world, splits and held-out pairs
    num_prompts: int = 60  # of each task, of the test split
    num_validation: int = 15  # of each task, of the val split
    num_captions: int = 0  # of the first test pictures, short and dense in turns: for the distances
    num_random: int = 500  # other scenes, by which chance is counted
    first_scene: int = 3_000_000  # scenes from here on make the prompts: none of these is in the shards
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_prompts, self.num_validation, self.num_random) < 2:
            raise ValueError("num_prompts, num_validation and num_random must be 2 or more")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """Stage `harness.scene_eval.train_judge`: the network that reads pictures of Scenes."""

    MAY_CHANGE: ClassVar = ("num_workers", "device", "checkpoint_steps")
    MAY_GROW: ClassVar = ("num_steps",)

    image_size: int = 64  # px on a side of what it sees; pictures of other sizes are brought to it
    width: int = 96
    blocks: int = 3  # of two convolutions each, on a grid of a quarter of the picture's side
    num_pictures: int = 16_000  # renders it learns from, of scenes with every pair
    num_steps: int = 1600
    batch_size: int = 64
    lr: float = 2e-3  # of AdamW; one cosine to 0 after a short warm-up
    # Generic damage, none of an encoder under test: of each picture with these probabilities
    blur: float = 0.5
    noise: float = 0.5
    jpeg: float = 0.5
    threshold: float = 0.4  # an object is there where its response is above
    num_tested: int = 60  # prompts of each task, whose renders it is tried on at the end
    least_percent: float = 98.0  # of those tasks it must read right, else it is no judge
    num_workers: int = 1  # processes that draw
    checkpoint_steps: int = 200
    precision: Precision = "fp32"
    device: Device = "cpu"
    seed: int = 1_000_000  # of scenes and weights; none of a data set's

    def __post_init__(self) -> None:
        if self.image_size % 4 or self.image_size < 64:
            raise ValueError(f"image_size {self.image_size} must be a multiple of 4, 64 or more")
        if self.num_pictures < self.batch_size:
            raise ValueError(f"num_pictures {self.num_pictures} must fill a batch of {self.batch_size}")
        if self.checkpoint_steps < 1:
            raise ValueError(f"checkpoint_steps {self.checkpoint_steps} must be 1 or more")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RebuildConfig:
    """Stage `harness.scene_eval.rebuild`: the renders of the test prompts through an encoder and back."""

    prompts: str  # folder of the prompts' stage
    encoder: str
    decoder: str | None = None  # over the encoder's own choice
    batch_size: int = 100
    device: Device = "cpu"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SceneScoreConfig:
    """Stage `harness.scene_eval.score`: what the judge says of pictures of the test prompts."""

    pictures: str  # npz file: arr_0 N S S 3 uint8, labels N the numbers of the prompts
    prompts: str  # folder of the prompts' stage
    judge: str  # folder of the judge's stage
    # folder of this stage on the same encoder's rebuilt renders: its score is 1 of the normalised one
    ceiling: str | None = None
    num_resamples: int = 2000
    batch_size: int = 100
    device: Device = "cpu"
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChooseConfig:
    """Stage `harness.scene_eval.choose`: the guidance whose pictures the judge likes best, on validation
    prompts."""

    sampling: GenerateTextConfig  # as the test pictures are drawn; prompts and guidance are filled in
    prompts: str  # folder of the prompts' stage
    judge: str
    scales: tuple[float, ...] = (1.5, 2.5, 4.0, 6.0)
    interval: tuple[float, float] = (0.0, 1.0)  # of t

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 1:
            raise ValueError(f"scales {self.scales} must be over 1: without guidance there is a row anyway")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FidelityConfig:
    """Stage `harness.scene_eval.fidelity`: how far pictures of captions are from the captions' own."""

    pictures: str  # npz file
    reference: str  # folder of `harness.metrics.reference`, whose pictures the captions are of
    device: Device = "cpu"
    batch_size: int = 16
    kernel_subset_size: int = 1000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClipScoreConfig:
    """Stage `harness.scene_eval.clip_score`: CLIPScore of pictures of prompts."""

    clip: str  # folder of a CLIP by transformers, not of an encoder under test
    pictures: str  # npz file: labels are the numbers of the prompts
    prompts: str  # as `GenerateTextConfig.prompts`
    batch_size: int = 32
    device: Device = "cpu"
