"""The sizes of a replica."""

import dataclasses
from typing import Literal

_MAX_CLASSES = 16  # kinds of objects in the world of Scenes

Form = Literal["folders", "parquet"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """How many of everything. The defaults take about 10 seconds of one core and 330 MB, nearly all of it the
    networks whose architecture is fixed and ADM's statistics.

    Raises:
        ValueError: a size that a source cannot have.
    """

    seed: int = 0
    num_classes: int = 4  # of ImageNet
    train_pictures: int = 24  # of a class
    val_pictures: int = 12  # of a class
    imagenet: tuple[Form, ...] = ("folders", "parquet")
    pretrain_records: int = 48
    mix_records: int = 48  # with a picture; one more in eight is text alone
    next_records: int = (
        24  # with a picture, of each of LLaVA-NeXT's two mixes; one more in eight is text alone
    )
    questions: int = 2  # of each kind: SEED-Bench dimension, MME category, POPE picture, ...
    adm_pictures: int = 16
    num_shards: int = 4  # of Recap-DataComp-1B: the last is held out
    shard_samples: int = 24
    networks: bool = True  # Inception, AlexNet, VGG16, DINO at their true shapes, and ADM's statistics

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, "int") and field.name != "seed" and value < 1:
                raise ValueError(f"{field.name} must be at least 1, got {value}")
        if self.num_classes > _MAX_CLASSES:
            raise ValueError(f"num_classes must be at most {_MAX_CLASSES}, got {self.num_classes}")
        if self.num_shards < 2:
            raise ValueError(f"num_shards must be at least 2 (one is held out), got {self.num_shards}")
