"""LLaVA's training data: JSON records to samples, pictures to visual tokens, samples to batches.

Records: `encoder.data.records`. Pictures: `pictures`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from encoder.data.account import BadSample, TooManyBadSamples, append_bad
from encoder.data.records import read_records as read_records  # part of this module's interface
from encoder.runtime.config import ROOT
from encoder.runtime.stage import is_first_process, sha256_json
from llava_bridge.config import LlavaConfig, Template
from llava_bridge.order import training_order as training_order  # part of this module's interface
from llava_bridge.pictures import CachedPictures, LivePictures
from llava_bridge.prompt import IGNORE, IMAGE, Encoded, encode_conversations

SKIPPED = "skipped_records.jsonl"  # in a stage's folder: {name, reason} of every record left out
_NAMED = 20  # so many missing or broken pictures and skipped records are named in the result
_NAMED_IN_ERROR = 3


@dataclass(frozen=True, slots=True)
class DataReport:
    """What was read: counts, the first of each kind that was left out, and a hash of the records used.

    num_read = num_samples + num_skipped + num_without_picture. `num_skipped` records could not be used, at
    most the stage's `max_bad_fraction`; `num_without_picture` were left out with the `num_missing` pictures
    that they ask for, at most `max_missing_fraction` of the pictures.
    """

    num_read: int
    num_samples: int
    num_text_only: int
    num_skipped: int
    skipped: list[str]
    num_missing: int
    num_without_picture: int
    missing: list[str]
    sha256: str

    @classmethod
    def of_whole(cls, records: Sequence[Mapping]) -> "DataReport":
        """Of records without pictures that are all used."""
        return cls(len(records), len(records), len(records), 0, [], 0, 0, [], sha256_json(records))


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


def read_dataset(
    config: LlavaConfig,
    num_image_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    pictures: CachedPictures | LivePictures,
    out_dir: Path,
) -> LlavaDataset:
    """A stage's records, read and tokenised. Those left out are named in out_dir, by the first process.

    Raises:
        FileNotFoundError, ValueError: as `read_records` and `build_dataset`.
    """
    refused: list[BadSample] = []
    records = read_records(
        [ROOT / path for path in config.data],
        pictures.embedded,
        lambda name, reason: refused.append(BadSample(name, reason)),
    )
    return build_dataset(
        records,
        pictures,
        config.chosen_template,
        tokenizer,
        num_image_tokens=num_image_tokens,
        max_length=config.max_length,
        max_missing_fraction=config.max_missing_fraction,
        max_bad_fraction=config.max_bad_fraction,
        refused=refused,
        skipped_file=out_dir / SKIPPED if is_first_process() else None,
    )


def build_dataset(
    records: Sequence[Mapping],
    pictures: CachedPictures | LivePictures | None,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_image_tokens: int,
    max_length: int,
    max_missing_fraction: float = 0.0,
    max_bad_fraction: float = 0.0,
    refused: Sequence[BadSample] = (),
    skipped_file: Path | None = None,
) -> LlavaDataset:
    """Validate and tokenise everything before the first step.

    refused: records that could not be read, and are not among `records`. skipped_file: takes the name and
    reason of each record that is left out, a JSON line each.

    Raises:
        ValueError: more than `max_missing_fraction` of the pictures are missing or unreadable, or more than
            `max_bad_fraction` of the records cannot be used (the first are named), or nothing is left.
    """
    num_read = len(records) + len(refused)
    faults = [(record, _picture_fault(record)) for record in records]
    sound = [record for record, fault in faults if fault is None]
    bad = [*refused, *(BadSample(f"sample {record['id']}", fault) for record, fault in faults if fault)]
    absent = _absent_pictures(sound, pictures, max_missing_fraction)
    without = [record for record in sound if record.get("image") in absent]
    candidates = [record for record in sound if record.get("image") not in absent]
    encoded = encode_conversations(
        candidates,
        template,
        tokenizer,
        num_image_tokens,
        max_length,
        lambda name, reason: bad.append(BadSample(name, reason)),
    )
    lost = [
        BadSample(f"sample {record['id']}", f"no picture {record['image']}: {absent[record['image']]}")
        for record in without
    ]
    _judge(bad, num_read, max_bad_fraction, lost, skipped_file)
    used = [record for record, sample in zip(candidates, encoded, strict=True) if sample is not None]
    if not used:
        raise ValueError("the training data holds no usable sample")
    report = DataReport(
        num_read=num_read,
        num_samples=len(used),
        num_text_only=sum(not record.get("image") for record in used),
        num_skipped=len(bad),
        skipped=[str(sample) for sample in bad[:_NAMED]],
        num_missing=len(absent),
        num_without_picture=len(without),
        missing=list(absent)[:_NAMED],
        sha256=sha256_json(used),
    )
    samples = [sample for sample in encoded if sample is not None]
    return LlavaDataset(samples, [record.get("image") for record in used], report)


def _absent_pictures(
    records: Sequence[Mapping], pictures: CachedPictures | LivePictures | None, max_missing_fraction: float
) -> dict[str, str]:
    """The pictures that records ask for and that cannot be used, each once, in order, with the reason."""
    names = dict.fromkeys(record["image"] for record in records if record.get("image"))
    faults = {name: "no pictures are given" if pictures is None else pictures.fault(name) for name in names}
    absent = {name: fault for name, fault in faults.items() if fault is not None}
    if len(absent) > max_missing_fraction * len(names):
        first = "; ".join(f"{name}: {fault}" for name, fault in list(absent.items())[:_NAMED_IN_ERROR])
        raise ValueError(
            f"{len(absent)} of {len(names)} pictures are missing or unreadable, allowed fraction "
            f"{max_missing_fraction}; the first: {first}"
        )
    if pictures is not None:
        pictures.broken.limit = int(max_missing_fraction * len(names)) - len(absent)
    return absent


def _judge(
    bad: Sequence[BadSample], num_read: int, max_fraction: float, lost: Sequence[BadSample], file: Path | None
) -> None:
    """Name every record that is left out, the bad ones and those lost with their pictures, in the file; stop
    where the bad ones are too many."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        if bad or lost:
            append_bad(file, [*bad, *lost])
    if len(bad) > max_fraction * num_read:
        named = "; ".join(map(str, bad[:_NAMED_IN_ERROR]))
        more = f"; all are named in {file}" if file is not None else ""
        raise TooManyBadSamples(
            f"{len(bad)} of {num_read} records cannot be used, allowed fraction {max_fraction} "
            f"(max_bad_fraction): {named}{more}"
        )


def _picture_fault(record: Mapping) -> str | None:
    """What is wrong with a record's picture or its mark: there is one in a question, or there is neither."""
    if not isinstance(record.get("image") or "", str):
        return "'image' must name one picture; samples with several pictures cannot be used"
    turns = record["conversations"]
    num_marks = sum(turn["value"].count(IMAGE) for turn in turns)
    if num_marks != (1 if record.get("image") else 0):
        return f"{num_marks} '{IMAGE}' marks for {'one picture' if record.get('image') else 'no picture'}"
    if any(IMAGE in turn["value"] for turn in turns if turn["from"] != "human"):
        return f"its '{IMAGE}' mark stands outside the questions"
    return None


def describe_data(
    dataset: LlavaDataset, pictures: CachedPictures | LivePictures, config: LlavaConfig
) -> dict:
    """What the result says of the data: as read before the first step, and what broke afterwards."""
    broken = pictures.broken.read()
    return asdict(dataset.report) | {
        "max_missing_fraction": config.max_missing_fraction,
        "max_bad_fraction": config.max_bad_fraction,
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
