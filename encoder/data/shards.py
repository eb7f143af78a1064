"""Reading WebDataset shards in img2dataset's layout: KEY.png|jpg|webp, KEY.txt (alt text), KEY.json.

Tar members are streamed and never extracted. A sample that cannot be used (broken picture, too many pixels,
no text, wrong JSON, cut-off shard) is counted, named and skipped, up to a fraction of what was read; beyond
it, reading stops.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import webdataset as wds
from PIL import Image

from encoder.data.pictures import MAX_PIXELS, decode_picture

PICTURE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
_PATIENCE = 1000  # the bad fraction is judged on at least this many samples, until the end
_FIRST_ROOM = 64  # pictures that `load_images` makes room for before it knows of more
# What a broken sample raises while it is decoded
UNUSABLE = (ValueError,)
_log = logging.getLogger(__name__)
Item, Done = TypeVar("Item"), TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture, uint8 (H, W, 3), with its JSON record; `record["txt"]` is the alt text."""

    key: str
    pixels: np.ndarray
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadSample:
    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}:{self.key}: {self.reason}"


class TooManyBadSamples(ValueError):
    """More samples were unusable than allowed."""


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
    """Iterates over the samples of shards in order. After (or during) a pass, `num_read` counts the good
    ones and `bad` names the others.

    `image_size`: resize every picture to this square (bicubic, antialiased); None leaves pictures as they
    are.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        *,
        image_size: int | None = None,
        max_bad_fraction: float = 0.01,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.shards = [Path(shard).resolve() for shard in shards]
        self.image_size, self.max_bad_fraction, self.max_pixels = image_size, max_bad_fraction, max_pixels
        self.num_read = 0
        self.bad: list[BadSample] = []

    def __iter__(self) -> Iterator[Sample]:
        """Raises: TooManyBadSamples, naming the first ones."""
        self.num_read, self.bad = 0, []
        for shard in self.shards:
            source = wds.SimpleShardList([str(shard)])
            raws = wds.DataPipeline(source, wds.tarfile_to_samples(handler=self._cut_off(shard)))
            for sample in in_order(partial(self._decode, shard), raws, num_threads()):
                if isinstance(sample, BadSample):
                    self._add_bad(sample)
                else:
                    self.num_read += 1
                    yield sample
            if not _is_whole(shard):
                lost = "shard cut off: what follows its last sample is lost"
                self._add_bad(BadSample(shard.name, "*", lost))
        self._judge(at_least=1)

    def _decode(self, shard: Path, raw: dict[str, Any]) -> Sample | BadSample:
        key = raw["__key__"]
        try:
            record = read_record(raw)
            pixels = self._pixels(raw)
        except UNUSABLE as error:
            return BadSample(shard.name, key, str(error))
        return Sample(key, pixels, record)

    def _pixels(self, raw: dict[str, Any]) -> np.ndarray:
        picture = open_picture(raw, self.max_pixels)
        if self.image_size is not None and picture.size != (self.image_size, self.image_size):
            picture = picture.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        return np.asarray(picture)

    def _cut_off(self, shard: Path):
        def handler(error: Exception) -> bool:
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"shard not found: {shard}") from None
            damage = f"shard damaged: {error.args[0] if error.args else error}"
            self._add_bad(BadSample(shard.name, "*", damage))
            return True

        return handler

    def _add_bad(self, bad: BadSample) -> None:
        self.bad.append(bad)
        _log.warning("skipped %s", self.bad[-1])
        self._judge(at_least=_PATIENCE)

    def _judge(self, at_least: int) -> None:
        num_seen = max(self.num_read + len(self.bad), at_least)
        if len(self.bad) > self.max_bad_fraction * num_seen:
            named = "; ".join(str(bad) for bad in self.bad[:5])
            raise TooManyBadSamples(
                f"{len(self.bad)} of {self.num_read + len(self.bad)} samples are unusable, more than the "
                f"allowed {self.max_bad_fraction:.2%}: {named}"
            )


def _is_whole(shard: Path) -> bool:
    """Whether a tar file ends as tar files end, with 1024 zeros. A cut between two members raises nothing."""
    with shard.open("rb") as file:
        file.seek(max(0, shard.stat().st_size - 1024))
        return file.read() == bytes(1024)


def open_picture(raw: dict[str, Any], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture of a raw sample, decoded to RGB.

    Raises: one of `UNUSABLE` if there is none, it is broken, or it has more than `max_pixels`.
    """
    suffix = next((suffix for suffix in PICTURE_SUFFIXES if suffix in raw), None)
    if suffix is None:
        raise ValueError(f"no picture ({', '.join(PICTURE_SUFFIXES)})")
    return decode_picture(raw[suffix], max_pixels=max_pixels)


def read_record(raw: dict[str, Any]) -> dict[str, Any]:
    """The JSON record of a raw sample, with its alt text as `txt`.

    Raises: ValueError without JSON or without any text.
    """
    if "json" not in raw:
        raise ValueError("no JSON")
    record = json.loads(raw["json"])
    if not isinstance(record, dict):
        raise ValueError(f"JSON is not an object: {str(record)[:40]}")
    text = raw.get("txt", b"").decode("utf-8").strip()
    if not text and not any(record.get(name) for name in ("org_caption", "re_caption", "caption")):
        raise ValueError("no text")
    return record | {"txt": text}


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
) -> Iterator[Sample]:
    """Samples of a folder's shards, or of the shards given, in order. See `ShardReader` for what is
    raised."""
    shards = find_shards(source, split) if isinstance(source, Path | str) else list(source)
    return iter(ShardReader(shards, image_size=image_size, max_bad_fraction=max_bad_fraction))


def load_images(
    folder: Path | str,
    split: str,
    limit: int | None = None,
    *,
    image_size: int | None = None,
    max_bad_fraction: float = 0.01,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The first `limit` pictures of a split in memory: uint8 (N, H, W, 3), and their records.

    Raises: FileNotFoundError without shards; ValueError when there is no picture or pictures differ in size.
    """
    pixels: np.ndarray | None = None  # grows in place: a list that is stacked would hold all pictures twice
    records: list[dict[str, Any]] = []
    if limit is None or limit > 0:
        for sample in read_samples(folder, split, image_size=image_size, max_bad_fraction=max_bad_fraction):
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
