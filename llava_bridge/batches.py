"""Samples to batches: padded, or packed several to a row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava_bridge.any_resolution.pictures import CachedViews, LiveViews
from llava_bridge.labels import IGNORE
from llava_bridge.pictures import CachedPictures, LivePictures

Pictures = CachedPictures | LivePictures | CachedViews | LiveViews


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a batch: input_ids and labels (L, int64), and the picture's name if it has one."""

    input_ids: Tensor
    labels: Tensor
    picture: str | None


def pack_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Samples to rows of at most `row_length` tokens, the longest first, each into the first row that has
    room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, left in enumerate(room) if left >= lengths[sample]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_length)
        rows[row].append(sample)
        room[row] -= lengths[sample]
    return rows


def collate(
    samples: Sequence[Sample],
    pictures: Pictures | None,
    pad_id: int,
    *,
    length_multiple: int = 1,
    pack_length: int | None = None,
) -> dict[str, Tensor]:
    """A right-padded batch: input_ids, labels (B L), the pictures in order, and attention_mask (B L), or
    position_ids (B L) where several samples share a row.

    In a packed row positions restart with each sample and the padding, from which transformers builds the
    block-diagonal mask. An attention_mask beside them, even of ones, would switch that off without a word.
    A batch of text alone carries one zero picture of which the model takes no token, as LLaVA does: every
    process then runs the same graph, which gradient reduction and split weights need. A sample whose picture
    is broken keeps its place, under a black picture, and loses its labels.
    """
    rows = [[i] for i in range(len(samples))]
    if pack_length is not None:
        rows = pack_rows([len(sample.input_ids) for sample in samples], pack_length)
    if pictures is not None:
        names = [samples[i].picture for row in rows for i in row]
        seen = pictures.inputs([name for name in names if name])
        samples = [_unlabelled(sample) if sample.picture in pictures.broken else sample for sample in samples]
    ids = [torch.cat([samples[i].input_ids for i in row]) for row in rows]
    labels = [torch.cat([_without_first(samples[i].labels) for i in row]) for row in rows]
    length = -(-max(map(len, ids)) // length_multiple) * length_multiple
    batch = {"input_ids": _pad(ids, pad_id, length), "labels": _pad(labels, IGNORE, length)}
    if pack_length is None:
        batch["attention_mask"] = _pad([torch.ones_like(row) for row in ids], 0, length)
    else:
        spans = [[len(samples[i].input_ids) for i in row] for row in rows]
        places = [torch.cat([torch.arange(n) for n in (*row, length - sum(row))]) for row in spans]
        batch["position_ids"] = torch.stack(places)
    if pictures is not None:
        batch |= seen
    return batch


def _without_first(labels: Tensor) -> Tensor:
    """A sample's first token follows nothing: in a packed row, another sample's last token."""
    return torch.cat([torch.full_like(labels[:1], IGNORE), labels[1:]])


def _unlabelled(sample: Sample) -> Sample:
    return replace(sample, labels=torch.full_like(sample.labels, IGNORE))


def _pad(rows: Sequence[Tensor], value: int, length: int) -> Tensor:
    padded = pad_sequence(list(rows), batch_first=True, padding_value=value)
    return torch.nn.functional.pad(padded, (0, length - padded.shape[1]), value=value)
