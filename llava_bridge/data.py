"""LLaVA's training data: JSON records to samples, pictures to visual tokens, samples to batches.

A record is LLaVA's {id, image?, conversations: [{from: human|gpt, value}]}; a row of plain text, {id,
text}, is a caption without a question. Pictures come either from the tokens that `encoder.tokens` wrote
once (the projector stays live), or as pixels that the tower encodes at every step.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from encoder.checkpoint import epoch_order, load_tensors, step_generator
from encoder.stage import sha256_json
from llava_bridge.prompt import IGNORE, IMAGE, Encoded, Template, encode_conversations

BATCHES_SORTED_TOGETHER = (
    32  # lengths are sorted within this many batches: little padding, still a random order
)
_NAMED = 20  # so many missing pictures are named in the report


def read_records(paths: Sequence[Path]) -> list[dict]:
    """The records of LLaVA JSON (a list) or JSONL (a record a line) files, in order.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not JSON, or a record has neither conversations nor text.
    """
    records: list[dict] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"training data not found: {path}")
        try:
            text = path.read_text()
            rows = (
                [json.loads(line) for line in text.splitlines() if line.strip()]
                if path.suffix == ".jsonl"
                else json.loads(text)
            )
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        records += [_as_conversation(row, f"{path} row {i}") for i, row in enumerate(rows)]
    return records


def _as_conversation(row: Mapping, place: str) -> dict:
    if "conversations" in row:
        return {"id": place, **row}
    if "text" in row:
        return {
            "id": place,
            **row,
            "conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": row["text"]}],
        }
    raise ValueError(f"{place}: a record needs 'conversations' or 'text', got keys {sorted(row)}")


class CachedPictures:
    """Visual tokens of pictures by name, from a folder that `encoder.tokens` wrote; the projector runs on
    them live."""

    field = "image_tokens"

    def __init__(self, folder: Path):
        index = json.loads((folder / "index.json").read_text())
        self.fingerprint = index["fingerprint"]
        self.rows = {key: row for row, key in enumerate(index["keys"])}
        self.tokens = load_tensors(folder / "tokens.safetensors")["tokens"]  # M N D

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def stack(self, names: Sequence[str]) -> Tensor:
        """Tokens of the named pictures, B N D; no names give one zero picture (see `collate`)."""
        if not names:
            return torch.zeros_like(self.tokens[:1])
        return self.tokens[[self.rows[name] for name in names]]


class LivePictures:
    """Pixels of picture files under one folder, prepared by the model's image processor; the tower encodes
    them each step."""

    field = "pixel_values"

    def __init__(self, root: Path, image_processor):
        self.root = root
        self.image_processor = image_processor

    def __contains__(self, name: str) -> bool:
        try:
            with Image.open(self.root / name):
                return True
        except (OSError, UnidentifiedImageError):
            return False

    def stack(self, names: Sequence[str]) -> Tensor:
        """Pixels in [0, 1] of the named pictures, B 3 H W; no names give one black picture (see
        `collate`)."""
        if not names:
            pictures = [Image.new("RGB", (8, 8))]
        else:
            pictures = [Image.open(self.root / name).convert("RGB") for name in names]
        return self.image_processor(pictures, return_tensors="pt")["pixel_values"]


@dataclass(frozen=True, slots=True)
class DataReport:
    """What was read: counts, the first missing pictures' names, and a hash of the records used."""

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
    missing = [record["image"] for record in named if pictures is None or record["image"] not in pictures]
    if len(missing) > max_missing_fraction * len(named):
        raise ValueError(
            f"{len(missing)} of {len(named)} pictures are missing or unreadable, allowed fraction "
            f"{max_missing_fraction}; the first: {', '.join(missing[:3])}"
        )
    absent = set(missing)
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
        len(missing),
        missing[:_NAMED],
        sha256_json(used),
    )
    return LlavaDataset(encoded, [record.get("image") for record in used], report)


def training_order(lengths: Tensor, batch_size: int, num_steps: int, seed: int) -> list[int]:
    """The samples of a whole run in order, `batch_size` a step: epochs joined, then sorted by length within
    groups of batches.

    Depends on (lengths, batch_size, num_steps, seed) alone, so a resumed run sees what an uninterrupted one
    sees.
    """
    wanted = num_steps * batch_size
    num_epochs = -(-wanted // len(lengths))
    order = torch.cat([epoch_order(seed, epoch, len(lengths)) for epoch in range(num_epochs)])[:wanted]
    groups = []
    for i, group in enumerate(order.split(BATCHES_SORTED_TOGETHER * batch_size)):
        batches = group[lengths[group].argsort(stable=True)].view(-1, batch_size)
        shuffle = torch.randperm(len(batches), generator=step_generator(seed, i, "batches"))
        groups.append(batches[shuffle].flatten())
    return torch.cat(groups).tolist()


def collate(
    samples: Sequence[Sample], pictures: CachedPictures | LivePictures | None, pad_id: int
) -> dict[str, Tensor]:
    """A right-padded batch: input_ids, labels, attention_mask (B L) and the pictures in order.

    A batch of text alone carries one zero picture that the model multiplies by zero, as LLaVA does: every
    process then runs the same graph, which gradient reduction needs.
    """
    ids = [sample.input_ids for sample in samples]
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "labels": pad_sequence([sample.labels for sample in samples], batch_first=True, padding_value=IGNORE),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }
    if pictures is not None:
        batch[pictures.field] = pictures.stack([sample.picture for sample in samples if sample.picture])
    return batch
