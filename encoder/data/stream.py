"""Shards as a stream: local, http(s) or s3 through fsspec; mixed, shuffled, split exactly, and resumable.

A lane reads its own part of every source's shards, window by window: `shuffle_window` samples of a shard are
read and mixed by a permutation that (seed, shard, epoch, window) fixes. So a lane's place is a few numbers,
and going on from them gives the very next sample. While a window is used up, a thread reads the next ones.
What cannot be decoded is counted, named and skipped.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import braceexpand
import fsspec
import numpy as np
import safetensors.torch
from PIL import Image
from torch import Tensor

from encoder.data.account import Account, BadSample
from encoder.data.options import Crop, StreamConfig
from encoder.data.shards import open_picture, read_record
from encoder.data.tars import KEY, URL, short_name
from encoder.data.windows import LaneShards, Place, Window
from encoder.runtime.ahead import ReadAhead
from encoder.runtime.config import ROOT

LATENTS = "z_vae.safetensors"  # the member that holds a picture's latents


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


class SourceLane:
    """One source's shards in one lane, for ever; `state` is the place of the next sample."""

    def __init__(self, shards: list[str], lane: int, index: int, config: StreamConfig, seed: int):
        if len(shards) < config.num_lanes:
            raise ValueError(
                f"{len(shards)} shards at {config.sources[index].shards} cannot feed {config.num_lanes} "
                "lanes; lower stream.num_lanes or write smaller shards"
            )
        self.shards = LaneShards(shards, lane, f"{seed}/{index}", config)
        self.load_state({"epoch": 0, "shard": 0, "window": 0, "row": 0, "read": False, "lost": 0})

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.state = dict(state)
        self._windows: Iterator[Window] | None = None
        self._window: Window | None = None

    def next(self) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """The next raw sample, and the damage (name, reason) that reading came upon for the first time."""
        damage, first_epoch = [], self.state["epoch"]
        while True:
            if self._window is None:
                self._window = self._next_window()
                if self.state["epoch"] > first_epoch + 1:
                    some = self.shards.part(first_epoch)[:3]
                    raise ValueError(f"shards {some} ... hold no sample at all")
                if not self.state["read"]:
                    name = f"{short_name(self._window.url)}:*"
                    damage += [(name, each) for each in self._window.damage]
                    self.state["read"] = True
            if self.state["row"] < len(self._window.rows):
                self.state["row"] += 1
                return self._window.rows[self.state["row"] - 1], damage
            self._window = None

    def _next_window(self) -> Window:
        if self._windows is None:
            place = Place(self.state["epoch"], self.state["shard"], self.state["window"])
            windows, prefetch = self.shards.windows(place, self.state["lost"]), self.shards.config.prefetch
            self._windows = ReadAhead(windows, prefetch) if prefetch else windows
        window = next(self._windows)
        place = asdict(window.place)
        if any(self.state[name] != value for name, value in place.items()):
            self.state |= {**place, "row": 0, "read": False}
        self.state["lost"] = window.num_lost
        return window


class Lane:
    """Rows of a mixture, for ever. `state()` is a plain value; `bad` names what was skipped so far."""

    def __init__(self, lane: int, config: StreamConfig, shards: list[list[str]], seed: int):
        self.lane, self.config, self.seed = lane, config, seed
        self.sources = [SourceLane(each, lane, i, config, seed) for i, each in enumerate(shards)]
        self.count = 0
        self.bad: list[BadSample] = []
        self._open_account(None)

    def _open_account(self, state: dict[str, Any] | None) -> None:
        self.account = Account(self.config.max_bad_fraction, what=f"samples of lane {self.lane}", state=state)

    def state(self) -> dict[str, Any]:
        """The place of the next row, and the account."""
        sources = [dict(source.state) for source in self.sources]
        return {"count": self.count, "account": self.account.state(), "sources": sources}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.count = state["count"]
        self._open_account(state["account"])
        for source, own in zip(self.sources, state["sources"], strict=True):
            source.load_state(own)

    def __iter__(self) -> Iterator[Row]:
        """Raises: TooManyBadSamples, naming the first ones; FileNotFoundError, OSError: a shard out of
        reach."""
        weights = [source.weight for source in self.config.sources]
        while True:
            generator = random.Random(f"{self.seed}/{self.lane}/{self.count}")
            self.count += 1
            source = generator.choices(self.sources, weights)[0]
            raw, damage = source.next()
            for name, reason in damage:
                self.bad.append(self.account.add_bad(name, reason))
            try:
                row = decode(raw, self.config, generator)
            except ValueError as error:
                self.bad.append(self.account.add_bad(f"{short_name(raw[URL])}:{raw[KEY]}", error))
                continue
            self.account.add_good()
            yield row


def decode(raw: dict[str, Any], config: StreamConfig, generator: random.Random) -> Row:
    """A raw sample as a Row.

    Raises: ValueError if it cannot be used.
    """
    record = read_record(raw, config.captions)
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
