"""What the probe's stage is told. No torch here."""

import dataclasses
from typing import ClassVar, Literal

from encoder.options import Features
from encoder.runtime.device import Device


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """Stage `harness.probe.understanding`: a probe answers the questions of `tasks` from frozen tokens."""

    MAY_CHANGE: ClassVar = ("device", "batch_size")

    encoder: str  # what `load_encoder` takes
    features: Features  # those that the language model sees
    # The pictures that the language model is taught with: folder of `encoder.tokens`, or of LLaVA-NeXT's
    # views by `llava_bridge.any_resolution.cache`
    tokens: str
    # What is known of those pictures: the facts of scenes, by their numbers, or the words of captions
    truth: Literal["scenes", "captions"]
    data: str  # folder that the pictures come from: of Scenes with its card.json, or with llava/pretrain.json
    tasks: dict[str, str]  # lmms-eval task -> its parquet file
    task_dir: str = "harness/tasks"
    validation_fraction: float = 0.1  # of the pictures: they choose between the probes
    grid: int = 8  # tokens on a side that a probe sees at most; more are averaged
    hidden: int = 512  # units of the small network that is tried beside the linear probe
    num_epochs: int = 12
    learning_rate: float = 1e-3
    weight_decay: float = 0.3
    batch_size: int = 64  # pictures that are encoded at a time
    device: Device = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction {self.validation_fraction} must be over 0 and under 1")
        if self.grid < 1 or self.hidden < 1:
            raise ValueError(f"grid {self.grid} and hidden {self.hidden} must be 1 or more")
        if not self.tasks:
            raise ValueError("no questions: give tasks, a parquet file for each")
