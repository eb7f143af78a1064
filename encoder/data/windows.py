"""Windows of samples: what a lane of a stream reads at once and mixes.

Where a window lies and how it is mixed follows from (seed, epoch, shard, window) alone.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from encoder.data.options import StreamConfig
from encoder.data.tars import OpenShard, Unreachable, short_name

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Of a window; `shard` counts within the lane's part of the epoch."""

    epoch: int
    shard: int
    window: int


@dataclass(frozen=True, slots=True)
class Window:
    """Raw samples of a shard, mixed; the damage found among them; shards lost in this epoch so far."""

    place: Place
    url: str
    rows: list[dict[str, Any]]
    damage: list[str]
    num_lost: int


@dataclass(frozen=True, slots=True)
class LaneShards:
    """One source's shards as one lane reads them: another part in another order each epoch."""

    shards: list[str]
    lane: int
    seed: str
    config: StreamConfig

    def part(self, epoch: int) -> list[str]:
        """The lane's shards of an epoch, in order."""
        order = list(self.shards)
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order[self.lane :: self.config.num_lanes]

    def windows(self, place: Place, num_lost: int) -> Iterator[Window]:
        """All windows from a place on, for ever; `num_lost` shards of its epoch were lost before.

        Raises: FileNotFoundError: a local shard is missing; OSError: more remote ones than allowed stay away.
        """
        shard: OpenShard | None = None
        while True:
            part = self.part(place.epoch)
            url = part[place.shard]
            try:
                shard, rows, damage = self._read(url, place, shard)
                is_last = len(rows) < self.config.shuffle_window
            except Unreachable as error:
                num_lost += 1
                if num_lost > self.config.max_lost_shards:
                    allowed = f"stream.max_lost_shards allows {self.config.max_lost_shards} an epoch"
                    raise OSError(f"{error}; {allowed}") from None
                shard, rows, damage, is_last = None, [], [str(error)], True
            random.Random(f"{self.seed}/{short_name(url)}/{place.epoch}/{place.window}").shuffle(rows)
            yield Window(place, url, rows, damage, num_lost)
            if not is_last:
                place = Place(place.epoch, place.shard, place.window + 1)
            elif place.shard + 1 < len(part):
                place = Place(place.epoch, place.shard + 1, 0)
            else:
                place, num_lost = Place(place.epoch + 1, 0, 0), 0

    def _read(
        self, url: str, place: Place, shard: OpenShard | None
    ) -> tuple[OpenShard, list[dict[str, Any]], list[str]]:
        """The shard, open at the window's end, its samples in the shard's order, and the damage among them.

        Raises: FileNotFoundError: a local shard is missing; Unreachable: it cannot be read after all retries.
        """
        start = place.window * self.config.shuffle_window
        for attempt in range(self.config.retries + 1):
            try:
                if shard is None or (shard.url, shard.position) != (url, start):
                    shard = OpenShard(url)
                    shard.take(start)
                num_known = len(shard.damage)  # told with an earlier window
                rows = shard.take(self.config.shuffle_window)
                return shard, rows, shard.damage[num_known:]
            except Exception as error:  # every file system has its own kinds
                if isinstance(error, FileNotFoundError) and url.startswith(("/", "file:")):
                    raise FileNotFoundError(f"shard not found: {url}") from None
                shard, reason = None, f"{type(error).__name__} {error}".splitlines()[0][:200]
            if attempt < self.config.retries:
                _log.warning("reading %s again: %s", url, reason)
                time.sleep(self.config.retry_seconds * 2**attempt)
        raise Unreachable(f"shard cannot be read after {attempt + 1} attempts: {url} ({reason})")
