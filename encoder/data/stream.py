"""Shards as a stream: local, http(s) or s3 through fsspec; mixed, shuffled, split exactly, and resumable.

A lane reads its own part of every source's shards, window by window: `shuffle_window` samples of a shard are
read and mixed by a permutation that (seed, shard, epoch, window) fixes. So a lane's place is a few numbers,
and going on from them gives the very next sample. What cannot be decoded is counted, named and skipped.
"""

from __future__ import annotations

import logging
import math
import random
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import braceexpand
import fsspec
import numpy as np
import safetensors.torch
from PIL import Image
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from encoder.data.options import Crop, StreamConfig
from encoder.data.shards import UNUSABLE, TooManyBadSamples, open_picture, read_record
from encoder.runtime.config import ROOT

LATENTS = "z_vae.safetensors"  # the member that holds a picture's latents
PATIENCE = 1000  # the bad fraction of a lane is judged on at least so many samples
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One sample: pixels (H W 3 uint8) as cropped; z_vae (C h w, bf16) where the shard has it; `draw` in
    [0, 1) for whoever needs a choice."""

    pixels: np.ndarray
    record: dict[str, Any]
    z_vae: Tensor | None
    draw: float


def expand_shards(shards: str) -> list[str]:
    """The shards that a folder, a pattern with `*` or names with `{0..9}` stand for, in order.

    Raises: FileNotFoundError if a folder or pattern holds none; ValueError for a protocol that fsspec cannot
    read as installed (s3 needs s3fs).
    """
    is_local = "://" not in shards
    if not is_local:
        try:
            fsspec.get_filesystem_class(shards.split("://")[0])
        except (ImportError, ValueError) as error:
            raise ValueError(f"shards {shards} cannot be read: {error}") from None
    if is_local and (ROOT / shards).is_dir():
        shards = f"{ROOT / shards}/*.tar"
    names = [str(ROOT / name) if is_local else name for name in braceexpand.braceexpand(shards)]
    expanded = []
    for name in names:
        if "*" in name:
            files, _ = fsspec.core.url_to_fs(name)
            expanded += sorted(files.unstrip_protocol(each) for each in files.glob(name))
        else:
            expanded.append(name)
    if not expanded:
        raise FileNotFoundError(f"no shards at {shards}; give a folder of .tar files, a pattern or names")
    return expanded


class _Tail:
    """A file that remembers the end of what was read: whole tar files end with zeros."""

    def __init__(self, file: Any):
        self.file, self.end = file, b""

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.end = (self.end + data[-512:])[-512:]
        return data

    @property
    def is_whole(self) -> bool:
        return self.end == bytes(512)


class OpenShard:
    """The raw samples of one shard, and what was wrong with its tar file."""

    def __init__(self, url: str):
        self.url, self.damage, self.position = url, [], 0
        self.file = fsspec.open(url, "rb").open()
        tail = _Tail(self.file)
        members = tar_file_expander([{"stream": tail, "url": url}], handler=self._damaged)
        self._samples = group_by_keys(members, handler=self._damaged)
        self._tail = tail

    def _damaged(self, error: Exception) -> bool:
        if not isinstance(error, tarfile.TarError | EOFError | ValueError):
            raise error  # the connection, not the shard
        self.damage.append(f"shard damaged: {error.args[0] if error.args else error}")
        return True

    def take(self, number: int) -> list[dict]:
        """The next raw samples; fewer at the end."""
        taken = list(islice(self._samples, number))
        self.position += len(taken)
        if len(taken) < number:
            if not self._tail.is_whole and not self.damage:
                self.damage.append("shard cut off: what follows its last sample is lost")
            self.file.close()
        return taken


class SourceLane:
    """One source's shards in one lane, for ever; `state` is the place of the next sample."""

    def __init__(self, shards: list[str], lane: int, index: int, config: StreamConfig, seed: int):
        if len(shards) < config.num_lanes:
            raise ValueError(
                f"{len(shards)} shards at {config.sources[index].shards} cannot feed {config.num_lanes} "
                "lanes; lower stream.num_lanes or write smaller shards"
            )
        self.shards, self.lane, self.config = shards, lane, config
        self.seed = f"{seed}/{index}"
        self.state = {"epoch": 0, "shard": 0, "window": 0, "row": 0, "read": False}
        self._rows: list[dict] | None = None
        self._open: OpenShard | None = None

    def next(self) -> tuple[dict, list[str]]:
        """The next raw sample, and the damage that reading came upon for the first time."""
        state, damage, first_epoch = self.state, [], self.state["epoch"]
        while True:
            if state["epoch"] > first_epoch + 1:
                raise ValueError(f"shards {self._epoch_shards()[:3]} ... hold no sample at all")
            if self._rows is None:
                self._rows, found, self._is_last = self._read_window()
                damage += [] if state["read"] else [f"{self._name()}:*: {each}" for each in found]
                state["read"] = True
            if state["row"] < len(self._rows):
                state["row"] += 1
                return self._rows[state["row"] - 1], damage
            self._rows = None
            state |= {"row": 0, "read": False, "window": state["window"] + 1}
            if self._is_last:
                self._open = None
                state |= {"window": 0, "shard": state["shard"] + 1}
            if state["shard"] == len(self._epoch_shards()):
                state |= {"shard": 0, "epoch": state["epoch"] + 1}

    def _epoch_shards(self) -> list[str]:
        order = list(self.shards)
        random.Random(f"{self.seed}/{self.state['epoch']}").shuffle(order)
        return order[self.lane :: self.config.num_lanes]

    def _name(self) -> str:
        return self._epoch_shards()[self.state["shard"]].rsplit("/", 1)[-1]

    def _read_window(self) -> tuple[list[dict], list[str], bool]:
        url, size = self._epoch_shards()[self.state["shard"]], self.config.shuffle_window
        start = self.state["window"] * size
        for attempt in range(self.config.retries + 1):
            try:
                if self._open is None or (self._open.url, self._open.position) != (url, start):
                    self._open = OpenShard(url)
                    self._open.take(start)
                rows = self._open.take(size)
                break
            except Exception as error:  # every file system has its own kinds
                if isinstance(error, FileNotFoundError) and url.startswith(("/", "file:")):
                    raise FileNotFoundError(f"shard not found: {url}") from None
                self._open = None
                reason = f"{type(error).__name__} {error}".splitlines()[0][:200]
                if attempt == self.config.retries:
                    message = f"shard cannot be read after {attempt + 1} attempts: {url} ({reason})"
                    raise OSError(message) from None
                _log.warning("reading %s again: %s", url, reason)
                time.sleep(self.config.retry_seconds * 2**attempt)
        place = f"{self._name()}/{self.state['epoch']}/{self.state['window']}"
        random.Random(f"{self.seed}/{place}").shuffle(rows)
        return rows, self._open.damage, len(rows) < size


class Lane:
    """Rows of a mixture, for ever. `state()` is a plain value; `bad` names what was skipped so far."""

    def __init__(self, lane: int, config: StreamConfig, shards: list[list[str]], seed: int):
        self.lane, self.config, self.seed = lane, config, seed
        self.sources = [SourceLane(each, lane, i, config, seed) for i, each in enumerate(shards)]
        self.count = self.num_read = self.num_bad = 0
        self.bad: list[str] = []

    def state(self) -> dict[str, Any]:
        counts = {"count": self.count, "num_read": self.num_read, "num_bad": self.num_bad}
        return counts | {"sources": [dict(source.state) for source in self.sources]}

    def load_state(self, state: dict[str, Any]) -> None:
        self.count, self.num_read, self.num_bad = state["count"], state["num_read"], state["num_bad"]
        for source, own in zip(self.sources, state["sources"], strict=True):
            source.state = dict(own)

    def __iter__(self) -> Iterator[Row]:
        """Raises: TooManyBadSamples, naming the latest; FileNotFoundError, OSError: a shard out of reach."""
        weights = [source.weight for source in self.config.sources]
        while True:
            generator = random.Random(f"{self.seed}/{self.lane}/{self.count}")
            self.count += 1
            source = generator.choices(self.sources, weights)[0]
            raw, damage = source.next()
            for each in damage:
                self._add_bad(each)
            try:
                row = decode(raw, self.config, generator)
            except UNUSABLE as error:
                self._add_bad(f"{raw['__url__'].rsplit('/', 1)[-1]}:{raw['__key__']}: {error}")
                continue
            self.num_read += 1
            yield row

    def _add_bad(self, name: str) -> None:
        self.num_bad += 1
        self.bad.append(name)
        _log.warning("skipped %s", name)
        seen = self.num_read + self.num_bad
        if self.num_bad > self.config.max_bad_fraction * max(seen, PATIENCE):
            raise TooManyBadSamples(
                f"{self.num_bad} of {seen} samples of lane {self.lane} are unusable, more than the allowed "
                f"{self.config.max_bad_fraction:.2%}, at last {name}"
            )


def decode(raw: dict[str, Any], config: StreamConfig, generator: random.Random) -> Row:
    """A raw sample as a Row.

    Raises: one of `UNUSABLE`.
    """
    record = read_record(raw)
    picture = open_picture(raw, config.max_pixels)
    z_vae = None
    if config.latents:
        if LATENTS not in raw:
            raise ValueError(f"no {LATENTS}; write the shards by python -m encoder.cache")
        try:
            z_vae = safetensors.torch.load(raw[LATENTS])["z_vae"]
        except (safetensors.SafetensorError, KeyError) as error:
            raise ValueError(f"latents damaged: {error}") from None
        if picture.size != (config.image_size, config.image_size):
            raise ValueError(f"cached at {picture.width} px, stream.image_size is {config.image_size}")
    else:
        picture = crop(picture, config.crop, config.image_size, config.crop_area, generator)
    return Row(np.asarray(picture), record, z_vae, generator.random())


def crop(
    picture: Image.Image, how: Crop, size: int, area: tuple[float, float], generator: random.Random
) -> Image.Image:
    """A square of `size` px out of a picture; see `StreamConfig.crop`."""
    width, height = picture.size
    if how == "squash":
        return picture.resize((size, size), Image.Resampling.BICUBIC)
    if how == "random":
        for _ in range(10):  # as torchvision's RandomResizedCrop: fall back to the middle
            wanted = width * height * generator.uniform(*area)
            ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = generator.randint(0, width - w), generator.randint(0, height - h)
                return picture.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + w, top + h))
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return picture.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def find_stream_shards(config: StreamConfig) -> list[list[str]]:
    """Every source's shards, in order."""
    return [expand_shards(source.shards) for source in config.sources]
