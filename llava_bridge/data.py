"""LLaVA's training data: JSON records to samples.

Records: `encoder.data.records`. Pictures: `pictures`. Batches: `batches`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from encoder.data.account import BadSample, TooManyBadSamples, append_bad
from encoder.data.records import read_records as read_records  # part of this module's interface
from encoder.data.records import take_pictures
from encoder.runtime.config import ROOT
from encoder.runtime.distributed import from_first
from encoder.runtime.files import locked
from encoder.runtime.stage import is_first_process, sha256_json
from llava_bridge.any_resolution.pictures import LiveViews
from llava_bridge.batches import Pictures, Sample
from llava_bridge.config import LlavaConfig, Template
from llava_bridge.labels import Encoded, fit, length_fault
from llava_bridge.looks import absent_pictures
from llava_bridge.order import training_order as training_order  # part of this module's interface
from llava_bridge.prompt import IMAGE
from llava_bridge.tokenised import Tokenised, asked_pictures, is_whole, key_of, sound_records, write

SKIPPED = "skipped_records.jsonl"  # in a stage's folder: {name, reason} of every record left out
_NAMED = 20  # so many missing or broken pictures and skipped records are named in the result
_NAMED_IN_ERROR = 3
TokenCount = int | Callable[[str], int]  # of every picture, or of a picture by its name


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
    num_cut: int = 0  # samples whose text was cut at max_length; pictures are not
    mean_image_tokens: float = 0.0  # of the pictures of all samples
    max_image_tokens: int = 0

    @classmethod
    def of_whole(cls, records: Sequence[Mapping]) -> "DataReport":
        """Of records without pictures that are all used."""
        return cls(len(records), len(records), len(records), 0, [], 0, 0, [], sha256_json(records))


class LlavaDataset(Dataset):
    """Samples that are held in memory, end to end in two tensors."""

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


class StoredDataset(Dataset):
    """Samples of stored records, made when they are read: the picture's placeholder becomes its tokens, and
    the text beyond `max_length` is cut. rows: the places of the records that are used; num_image_tokens: of
    each record's picture."""

    def __init__(
        self,
        store: Tokenised,
        rows: np.ndarray,
        report: DataReport,
        *,
        image_id: int,
        num_image_tokens: np.ndarray,
        max_length: int,
    ):
        self.store, self.rows, self.report = store, rows, report
        self.image_id, self.num_image_tokens, self.max_length = image_id, num_image_tokens, max_length
        self.lengths = torch.from_numpy(_lengths(store, num_image_tokens)[rows].clip(max=max_length))
        self.has_picture = torch.from_numpy(store.pictures[rows] >= 0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        sample = fit(self.store[row], self.image_id, int(self.num_image_tokens[row]), self.max_length)
        ids, labels = (torch.from_numpy(each).long() for each in (sample.input_ids, sample.labels))
        return Sample(ids, labels, self.picture(index))

    def picture(self, index: int) -> str | None:
        """The name of a sample's picture."""
        place = self.store.pictures[self.rows[index]]
        return self.store.picture_names[place] if place >= 0 else None


def read_dataset(
    config: LlavaConfig,
    num_image_tokens: TokenCount,
    tokenizer: PreTrainedTokenizerBase,
    pictures: Pictures,
    out_dir: Path,
) -> StoredDataset:
    """A stage's records, read and tokenised once for all processes and runs that share `records_cache`. Those
    left out are named in out_dir, by the first process.

    Raises:
        FileNotFoundError, ValueError: as `read_records` and `build_dataset`.
    """
    store = _open_store(config, tokenizer, pictures)
    absent = absent_pictures(store.picture_names, pictures, ROOT / config.records_cache)
    absent = from_first(absent)  # one file may be mended or lost between two processes' looks
    if isinstance(pictures, LiveViews):
        pictures.read_sizes(store.picture_names, absent)
    return _choose(
        store,
        pictures,
        absent,
        tokenizer.convert_tokens_to_ids(IMAGE),
        num_image_tokens=num_image_tokens,
        max_length=config.max_length,
        max_missing_fraction=config.max_missing_fraction,
        max_bad_fraction=config.max_bad_fraction,
        skipped_file=out_dir / SKIPPED if is_first_process() else None,
    )


def _open_store(config: LlavaConfig, tokenizer: PreTrainedTokenizerBase, pictures: Pictures) -> Tokenised:
    """The records' tokens, mapped; the first process that comes makes them, if no run has yet."""
    paths, cache = [ROOT / path for path in config.data], ROOT / config.records_cache
    folder = cache / key_of(paths, config.chosen_template, tokenizer)
    with locked(folder.with_suffix(".lock"), "records_cache"):
        if is_whole(folder):
            take_pictures(paths, pictures.embedded)
        else:
            refused: list[BadSample] = []
            records = read_records(
                paths, pictures.embedded, lambda name, reason: refused.append(BadSample(name, reason))
            )
            names = asked_pictures(sound_records(records, []))  # a missing folder shows before the long work
            _judge_absent(absent_pictures(names, pictures, cache), names, config.max_missing_fraction)
            write(folder, records, config.chosen_template, tokenizer, refused)
    return Tokenised.open(folder)


def build_dataset(
    records: Sequence[Mapping],
    pictures: Pictures | None,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_image_tokens: TokenCount,
    max_length: int,
    max_missing_fraction: float = 0.0,
    max_bad_fraction: float = 0.0,
    refused: Sequence[BadSample] = (),
    skipped_file: Path | None = None,
) -> StoredDataset:
    """As `read_dataset`, of records in memory, of which nothing is kept.

    refused: records that could not be read, and are not among `records`. skipped_file: takes the name and
    reason of each record that is left out, a JSON line each.

    Raises:
        ValueError: more than `max_missing_fraction` of the pictures are missing or unreadable, or more than
            `max_bad_fraction` of the records cannot be used (the first are named), or nothing is left.
    """
    store = Tokenised.of(records, template, tokenizer, refused)
    return _choose(
        store,
        pictures,
        absent_pictures(store.picture_names, pictures),
        tokenizer.convert_tokens_to_ids(IMAGE),
        num_image_tokens=num_image_tokens,
        max_length=max_length,
        max_missing_fraction=max_missing_fraction,
        max_bad_fraction=max_bad_fraction,
        skipped_file=skipped_file,
    )


def _choose(
    store: Tokenised,
    pictures: Pictures | None,
    absent: Mapping[int, str],
    image_id: int,
    *,
    num_image_tokens: TokenCount,
    max_length: int,
    max_missing_fraction: float,
    max_bad_fraction: float,
    skipped_file: Path | None,
) -> StoredDataset:
    """The samples that can be used of stored records. absent: {place of a picture: why it cannot be used}."""
    names = store.picture_names
    _judge_absent(absent, names, max_missing_fraction)
    if pictures is not None:
        pictures.broken.limit = int(max_missing_fraction * len(names)) - len(absent)
    is_lost = np.isin(store.pictures, list(absent))
    lost = [
        BadSample(f"sample {store.names[row]}", f"no picture {names[place]}: {absent[place]}")
        for row, place in ((row, int(store.pictures[row])) for row in np.flatnonzero(is_lost).tolist())
    ]
    counts = _image_tokens(store, absent, num_image_tokens)
    faults = _length_faults(store, ~is_lost, counts, max_length)
    bad = [*store.bad, *(BadSample(f"sample {store.names[row]}", fault) for row, fault in faults.items())]
    _judge(bad, store.num_read, max_bad_fraction, lost, skipped_file)
    is_lost[list(faults)] = True
    rows = np.flatnonzero(~is_lost)
    if not len(rows):
        raise ValueError("the training data holds no usable sample")
    report = DataReport(
        num_read=store.num_read,
        num_samples=len(rows),
        num_text_only=int((store.pictures[rows] < 0).sum()),
        num_skipped=len(bad),
        skipped=[str(sample) for sample in bad[:_NAMED]],
        num_missing=len(absent),
        num_without_picture=len(lost),
        missing=[names[place] for place in list(absent)[:_NAMED]],
        sha256=hashlib.sha256(store.digests[rows].tobytes()).hexdigest(),
        num_cut=int((_lengths(store, counts)[rows] > max_length).sum()),
        **_tokens_seen(counts[rows[store.pictures[rows] >= 0]]),
    )
    sizes = {"num_image_tokens": counts, "max_length": max_length}
    return StoredDataset(store, rows, report, image_id=image_id, **sizes)


def _image_tokens(store: Tokenised, absent: Mapping[int, str], num_image_tokens: TokenCount) -> np.ndarray:
    """Tokens of each record's picture; 1 where it has none, or one that is absent."""
    if isinstance(num_image_tokens, int):
        counts = np.full(len(store.picture_names), num_image_tokens)
    else:
        names = enumerate(store.picture_names)
        counts = np.array([1 if place in absent else num_image_tokens(name) for place, name in names], int)
    return np.append(counts, 1)[store.pictures]  # a record without a picture has -1 for its place


def _lengths(store: Tokenised, num_image_tokens: np.ndarray) -> np.ndarray:
    """Tokens of each record, its picture's among them, nothing cut."""
    return np.diff(store.ends, prepend=0) + np.where(store.marks >= 0, num_image_tokens - 1, 0)


def _tokens_seen(num_image_tokens: np.ndarray) -> dict[str, float | int]:
    if not len(num_image_tokens):
        return {"mean_image_tokens": 0.0, "max_image_tokens": 0}
    mean = round(float(num_image_tokens.mean()), 2)
    return {"mean_image_tokens": mean, "max_image_tokens": int(num_image_tokens.max())}


def _length_faults(
    store: Tokenised, is_wanted: np.ndarray, num_image_tokens: np.ndarray, max_length: int
) -> dict[int, str]:
    """{row: reason} of the records that cannot be cut at `max_length`."""
    rows = np.flatnonzero(is_wanted).tolist()
    columns = (store.marks, store.firsts, num_image_tokens)
    places = zip(rows, *(column[rows].tolist() for column in columns), strict=True)
    faults = {row: length_fault(*place, max_length) for row, *place in places}
    return {row: fault for row, fault in faults.items() if fault is not None}


def _judge_absent(absent: Mapping[int, str], names: Sequence[str], max_missing_fraction: float) -> None:
    if len(absent) > max_missing_fraction * len(names):
        found = list(absent.items())[:_NAMED_IN_ERROR]
        first = "; ".join(f"{names[place]}: {fault}" for place, fault in found)
        raise ValueError(
            f"{len(absent)} of {len(names)} pictures are missing or unreadable, allowed fraction "
            f"{max_missing_fraction}; the first: {first}"
        )


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


def describe_data(dataset: StoredDataset, pictures: Pictures, config: LlavaConfig) -> dict:
    """What the result says of the data: as read before the first step, and what broke afterwards."""
    broken = pictures.broken.read()
    return asdict(dataset.report) | {
        "max_missing_fraction": config.max_missing_fraction,
        "max_bad_fraction": config.max_bad_fraction,
        "num_broken": len(broken),
        "num_dropped_samples": sum(dataset.picture(i) in broken for i in range(len(dataset))),
        "broken": dict(list(broken.items())[:_NAMED]),
    }
