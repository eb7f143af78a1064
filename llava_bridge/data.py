"""LLaVA's training data: JSON records to samples, pictures to visual tokens, samples to batches.

Records: `encoder.data.records`. Pictures: `pictures`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from encoder.data.records import read_records as read_records  # part of this module's interface
from encoder.runtime.stage import sha256_json
from llava_bridge.order import training_order as training_order  # part of this module's interface
from llava_bridge.pictures import CachedPictures, LivePictures
from llava_bridge.prompt import IGNORE, IMAGE, Encoded, Template, encode_conversations

_NAMED = 20  # so many missing or broken pictures are named in the result


@dataclass(frozen=True, slots=True)
class DataReport:
    """What was read: counts, the first missing pictures' names, and a hash of the records used.

    `num_missing` pictures were left out with their samples, at most the stage's `max_missing_fraction`.
    """

    num_samples: int
    num_text_only: int
    num_missing: int
    missing: list[str]
    sha256: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a batch: input_ids and labels (L, int64), and the picture's name if it has one."""

    input_ids: Tensor
    labels: Tensor
    picture: str | None


class LlavaDataset(Dataset):
    """Tokenised samples, kept end to end in two tensors."""

    def __init__(self, encoded: Sequence[Encoded], pictures: Sequence[str | None], report: DataReport):
        self.lengths = torch.tensor([len(sample.input_ids) for sample in encoded])
        self.ends = self.lengths.cumsum(0).tolist()
        self.input_ids = torch.from_numpy(np.concatenate([sample.input_ids for sample in encoded]))
        self.labels = torch.from_numpy(np.concatenate([sample.labels for sample in encoded]))
        self.pictures = list(pictures)
        self.report = report

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        row = slice(self.ends[index - 1] if index else 0, self.ends[index])
        return Sample(self.input_ids[row].long(), self.labels[row].long(), self.pictures[index])


def build_dataset(
    records: Sequence[Mapping],
    pictures: CachedPictures | LivePictures | None,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_image_tokens: int,
    max_length: int,
    max_missing_fraction: float = 0.0,
) -> LlavaDataset:
    """Validate and tokenise everything before the first step.

    Raises:
        ValueError: more than `max_missing_fraction` of the pictures are missing or unreadable (the first
            are named), nothing is left, or a sample cannot be used (see `encode_conversations`).
    """
    named = [record for record in records if record.get("image")]
    for record in named:
        if not isinstance(record["image"], str):
            raise ValueError(
                f"sample {record['id']}: 'image' must name one picture, got {str(record['image'])[:60]}; "
                "samples with several pictures cannot be used"
            )
    names = dict.fromkeys(record["image"] for record in named)  # many samples share a picture
    absent = dict.fromkeys(name for name in names if pictures is None or name not in pictures)
    if len(absent) > max_missing_fraction * len(names):
        raise ValueError(
            f"{len(absent)} of {len(names)} pictures are missing or unreadable, allowed fraction "
            f"{max_missing_fraction}; the first: {', '.join(list(absent)[:3])}"
        )
    if pictures is not None:
        pictures.broken.limit = int(max_missing_fraction * len(names)) - len(absent)
    used = [record for record in records if record.get("image") not in absent]
    if not used:
        raise ValueError("the training data holds no usable sample")
    for record in used:
        num_marks = sum(turn["value"].count(IMAGE) for turn in record["conversations"])
        if num_marks != (1 if record.get("image") else 0):
            raise ValueError(
                f"sample {record['id']}: {num_marks} '{IMAGE}' marks for "
                f"{'one picture' if record.get('image') else 'no picture'}"
            )
    encoded = encode_conversations(used, template, tokenizer, num_image_tokens, max_length)
    report = DataReport(
        len(used),
        len([r for r in used if not r.get("image")]),
        len(absent),
        list(absent)[:_NAMED],
        sha256_json(used),
    )
    return LlavaDataset(encoded, [record.get("image") for record in used], report)


def describe_data(
    dataset: LlavaDataset, pictures: CachedPictures | LivePictures, max_missing_fraction: float
) -> dict:
    """What the result says of the data: as read before the first step, and what broke afterwards."""
    broken = pictures.broken.read()
    return asdict(dataset.report) | {
        "max_missing_fraction": max_missing_fraction,
        "num_broken": len(broken),
        "num_dropped_samples": sum(picture in broken for picture in dataset.pictures),
        "broken": dict(list(broken.items())[:_NAMED]),
    }


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
    pictures: CachedPictures | LivePictures | None,
    pad_id: int,
    *,
    length_multiple: int = 1,
    pack_length: int | None = None,
) -> dict[str, Tensor]:
    """A right-padded batch: input_ids, labels (B L), the pictures in order, and attention_mask (B L), or
    position_ids (B L) where several samples share a row.

    In a packed row positions restart with each sample and the padding, from which transformers builds the
    block-diagonal mask. An attention_mask beside them, even of ones, would switch that off without a word.
    A batch of text alone carries one zero picture that the model multiplies by zero, as LLaVA does: every
    process then runs the same graph, which gradient reduction needs. A sample whose picture is broken keeps
    its place, under a black picture, and loses its labels.
    """
    rows = [[i] for i in range(len(samples))]
    if pack_length is not None:
        rows = pack_rows([len(sample.input_ids) for sample in samples], pack_length)
    if pictures is not None:
        names = [samples[i].picture for row in rows for i in row]
        stacked = pictures.stack([name for name in names if name])
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
        batch[pictures.field] = stacked
    return batch


def _without_first(labels: Tensor) -> Tensor:
    """A sample's first token follows nothing: in a packed row, another sample's last token."""
    return torch.cat([torch.full_like(labels[:1], IGNORE), labels[1:]])


def _unlabelled(sample: Sample) -> Sample:
    return replace(sample, labels=torch.full_like(sample.labels, IGNORE))


def _pad(rows: Sequence[Tensor], value: int, length: int) -> Tensor:
    padded = pad_sequence(list(rows), batch_first=True, padding_value=value)
    return torch.nn.functional.pad(padded, (0, length - padded.shape[1]), value=value)
