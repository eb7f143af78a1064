"""In which order a run visits its samples: fixed before the first step, so that a resumed run sees what an
uninterrupted one sees, on any number of processes."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from encoder.runtime.checkpoint import epoch_order, step_generator
from llava_bridge.config import Grouping

BATCHES_SORTED_TOGETHER = 32  # lengths are sorted within this many batches: little padding, a random order


def training_order(
    lengths: Tensor,
    batch_size: int,
    num_steps: int,
    seed: int,
    *,
    grouping: Grouping = "length",
    has_picture: Tensor | None = None,
) -> list[int]:
    """The samples of a whole run in order, `batch_size` a step: epochs joined, then sorted by length within
    groups of batches.

    lengths: tokens of each sample; has_picture: a truth value for each, which `modality` groups by: a batch
    then holds samples with a picture or samples without, but for one mixed batch in a group. `random` sorts
    nothing. Depends on the arguments alone.
    Source: LLaVA c121f04, llava/train/llava_trainer.py (get_modality_length_grouped_indices). Deviation: it
    sorts batches of one epoch by modality and shuffles them; lengths within a batch are sorted by it too, but
    not across batches.
    """
    wanted = num_steps * batch_size
    num_epochs = -(-wanted // len(lengths))
    order = torch.cat([epoch_order(seed, epoch, len(lengths)) for epoch in range(num_epochs)])[:wanted]
    if grouping == "random":
        return order.tolist()
    is_text = torch.zeros(len(lengths), dtype=torch.bool)
    if grouping == "modality" and has_picture is not None:
        is_text = ~has_picture
    groups = []
    for i, group in enumerate(order.split(BATCHES_SORTED_TOGETHER * batch_size)):
        batches = _batch_alike(group[lengths[group].argsort(stable=True)], is_text, batch_size)
        shuffle = torch.randperm(len(batches), generator=step_generator(seed, i, "batches"))
        groups.append(batches[shuffle].flatten())
    return torch.cat(groups).tolist()


def describe_steps(order: Sequence[int], num_samples: int, records: str) -> dict[str, int | str]:
    """What the steps of a run are made of, which may not change on the way: how many samples, and a hash of
    their records' own hash and of the order."""
    digest = hashlib.sha256(records.encode() + np.asarray(order, "<i8").tobytes())
    return {"num_samples": num_samples, "sha256": digest.hexdigest()}


def _batch_alike(group: Tensor, is_text: Tensor, batch_size: int) -> Tensor:
    """Rows of `batch_size`: of samples with a picture, of samples without, then what is left of both."""
    kinds = [group[~is_text[group]], group[is_text[group]]]
    ends = [len(kind) // batch_size * batch_size for kind in kinds]
    whole = [kind[:end] for kind, end in zip(kinds, ends, strict=True)]
    rest = [kind[end:] for kind, end in zip(kinds, ends, strict=True)]
    return torch.cat([*whole, *rest]).view(-1, batch_size)
