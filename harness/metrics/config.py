"""What the metric stages are told, and the shape of the numbers they give. No torch here."""

import dataclasses
from typing import Literal

PICTURES, FEATURES = "pictures.npz", "features.npz"  # what the reference stage writes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceConfig:
    """Stage `harness.metrics.reference`: where the real pictures come from, and how many make a set."""

    data: str  # folder with <split>/*.tar
    split: str = "test"
    num_samples: int = 2000  # of each of the two sets
    kernel_subset_size: int = 1000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """Stage `harness.metrics.score`: what to score as what."""

    kind: Literal["reconstruction", "generation"]
    pictures: str  # npz file with arr_0: N H W 3 uint8; reconstructions in the reference's order
    reference: str  # folder of the reference stage
    kernel_subset_size: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A number with what is needed to read it; `value` and `stderr` are None where they are not defined."""

    value: float | None
    stderr: float | None = None  # standard error of `value` over the pictures or questions
    unit: str  # %, dB, "" for none
    higher_is_better: bool | None  # None: neither, such as the share of yes answers
    num_samples: int
