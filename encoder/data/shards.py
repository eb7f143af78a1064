"""Reading WebDataset shards in img2dataset's layout: KEY.png|jpg|webp, KEY.txt (alt text), KEY.json.

A sample that cannot be used (broken picture, too many pixels, no text, wrong JSON, cut-off shard) is counted,
named and skipped, up to a fraction of what was read; beyond it, reading stops.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from encoder.data.account import Account, BadSample
from encoder.data.captions import DEFAULT_KEYS, choose_texts
from encoder.data.options import CaptionKeys
from encoder.data.pictures import MAX_PIXELS, decode_picture
from encoder.data.tars import KEY, PROBLEM, OpenShard

PICTURE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "avif", "gif", "bmp", "tif", "tiff", "jp2")
_FIRST_ROOM = 64  # pictures that `load_images` makes room for before it knows of more
Item, Done = TypeVar("Item"), TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture, uint8 (H, W, 3), with its JSON record; `record["txt"]` is the alt text."""

    key: str
    pixels: np.ndarray
    record: dict[str, Any]


def num_threads() -> int:
    """As many as torch computes with: OMP_NUM_THREADS, or one a core."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return max(1, int(given)) if given.isdigit() else os.cpu_count() or 1


def in_order(work: Callable[[Item], Done], items: Iterable[Item], threads: int) -> Iterator[Done]:
    """`map`, by several threads that are a few items ahead; for work that lets other threads run, as decoding
    pictures does."""
    if threads == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


class ShardReader:
    """Iterates over the samples of shards in order. After (or during) a pass, `account` counts them, and
    `bad` names those that could not be used.

    `image_size`: resize every picture to this square (bicubic, antialiased); None leaves pictures as they
    are. `file`: takes the names of all bad samples (see `Account`).
    """

    def __init__(
        self,
        shards: Sequence[Path],
        *,
        image_size: int | None = None,
        max_bad_fraction: float = 0.01,
        max_pixels: int = MAX_PIXELS,
        captions: CaptionKeys = DEFAULT_KEYS,
        file: Path | None = None,
    ) -> None:
        self.shards = [Path(shard).resolve() for shard in shards]
        self.image_size, self.max_bad_fraction, self.max_pixels = image_size, max_bad_fraction, max_pixels
        self.captions, self.file = captions, file
        self.account = Account(max_bad_fraction, file=file)

    @property
    def bad(self) -> list[BadSample]:
        """The bad samples of this pass, the first ten thousand."""
        return self.account.bad

    def __iter__(self) -> Iterator[Sample]:
        """Raises: TooManyBadSamples, naming the first ones; FileNotFoundError."""
        self.account = Account(self.max_bad_fraction, file=self.file)
        for shard in self.shards:
            if not shard.is_file():
                raise FileNotFoundError(f"shard not found: {shard}")
            raws = OpenShard(str(shard))
            with closing(raws):
                for key, sample in in_order(self._decode, raws, num_threads()):
                    if isinstance(sample, Sample):
                        self.account.add_good()
                        yield sample
                    else:
                        self.account.add_bad(f"{shard.name}:{key}", sample)
            for damage in raws.damage:
                self.account.add_bad(f"{shard.name}:*", damage)
        self.account.finish()

    def _decode(self, raw: dict[str, Any]) -> tuple[str, Sample | ValueError]:
        try:
            record = read_record(raw, self.captions)
            return raw[KEY], Sample(raw[KEY], self._pixels(raw), record)
        except ValueError as error:
            return raw[KEY], error

    def _pixels(self, raw: dict[str, Any]) -> np.ndarray:
        picture = open_picture(raw, self.max_pixels)
        if self.image_size is not None and picture.size != (self.image_size, self.image_size):
            picture = picture.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        return np.asarray(picture)


def open_picture(raw: dict[str, Any], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture of a raw sample, decoded to RGB.

    Raises: ValueError if there is none, it is broken, or it has more than `max_pixels`.
    """
    suffix = next((suffix for suffix in PICTURE_SUFFIXES if suffix in raw), None)
    if suffix is None:
        raise ValueError(_missing(f"picture ({', '.join(PICTURE_SUFFIXES)})", raw))
    return decode_picture(raw[suffix], max_pixels=max_pixels)


def read_record(raw: dict[str, Any], captions: CaptionKeys = DEFAULT_KEYS) -> dict[str, Any]:
    """The JSON record of a raw sample, with its alt text as `txt`.

    Raises: ValueError without JSON or without any text (see `choose_texts`), or if a member cannot be used.
    """
    if PROBLEM in raw:
        raise ValueError(raw[PROBLEM])
    if "json" not in raw:
        raise ValueError(_missing("JSON (json)", raw))
    try:
        record = json.loads(raw["json"])
    except RecursionError:
        raise ValueError("JSON is nested too deep") from None
    if not isinstance(record, dict):
        raise ValueError(f"JSON is not an object: {str(record)[:40]}")
    record["txt"] = raw.get("txt", b"").decode("utf-8-sig").strip()
    choose_texts(record, captions)
    return record


def _missing(what: str, raw: dict[str, Any]) -> str:
    names = [suffix for suffix in raw if not suffix.startswith("__")]
    said = f"no {what}; beside its name, the sample has {', '.join(names[:6])}"
    if any("." in name for name in names):
        said += ": a sample's name ends at the first dot, so names with other dots must be changed"
    return said


def find_shards(folder: Path | str, split: str | None = None) -> list[Path]:
    """The `.tar` files of `folder/split`, in order.

    Raises: FileNotFoundError when there are none, with the command that writes some.
    """
    place = Path(folder) if split is None else Path(folder) / split
    shards = sorted(place.glob("*.tar"))
    if not shards:
        raise FileNotFoundError(
            f"no shards (*.tar) in {place}; write some: python -m encoder.data.scenes.write CONFIG {folder}"
        )
    return shards


def read_samples(
    source: Path | str | Sequence[Path],
    split: str | None = None,
    *,
    image_size: int | None = None,
    max_bad_fraction: float = 0.01,
    captions: CaptionKeys = DEFAULT_KEYS,
) -> Iterator[Sample]:
    """Samples of a folder's shards, or of the shards given, in order. See `ShardReader` for what is
    raised."""
    shards = find_shards(source, split) if isinstance(source, Path | str) else list(source)
    return iter(
        ShardReader(shards, image_size=image_size, max_bad_fraction=max_bad_fraction, captions=captions)
    )


def load_images(
    folder: Path | str,
    split: str,
    limit: int | None = None,
    *,
    image_size: int | None = None,
    max_bad_fraction: float = 0.01,
    captions: CaptionKeys = DEFAULT_KEYS,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The first `limit` pictures of a split in memory: uint8 (N, H, W, 3), and their records.

    Raises: FileNotFoundError without shards; ValueError when there is no picture or pictures differ in size.
    """
    pixels: np.ndarray | None = None  # grows in place: a list that is stacked would hold all pictures twice
    records: list[dict[str, Any]] = []
    if limit is None or limit > 0:
        how = {"image_size": image_size, "max_bad_fraction": max_bad_fraction, "captions": captions}
        for sample in read_samples(folder, split, **how):
            shape = sample.pixels.shape
            if pixels is None:
                pixels = np.empty((min(limit or _FIRST_ROOM, _FIRST_ROOM), *shape), np.uint8)
            if shape != pixels.shape[1:]:
                raise ValueError(
                    f"picture {sample.key} is {shape[:2]}, the first {pixels.shape[1:3]}; "
                    "give image_size to bring all to one size"
                )
            if len(records) == len(pixels):
                pixels.resize((len(pixels) + len(pixels) // 8 + 1, *shape), refcheck=False)
            pixels[len(records)] = sample.pixels
            records.append({"key": sample.key} | sample.record)
            if len(records) == limit:
                break
    if pixels is None:
        raise ValueError(f"no usable picture in {Path(folder) / split}")
    pixels.resize((len(records), *pixels.shape[1:]), refcheck=False)
    return pixels, records
