"""Part of bench/encoder.py: what a slow file system costs a step, with and without reading ahead.

Lanes stand at different places in their windows, as those of many processes do, so that at almost every step
one of them needs its next window. The file system and the step's computation are pauses: neither depends on
the machine.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
from _table import Row, make_row
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from encoder.data.options import SourceConfig, StreamConfig
from encoder.data.stream import Lane, find_stream_shards
from encoder.data.tars import add_member

NUM_LANES, WINDOW, ROWS = 4, 128, 8  # rows: of each lane in a step
NUM_STEPS = 3 * WINDOW // ROWS
STEP_SECONDS, REFILL_SECONDS = 0.1, 0.4


class _SlowFile(io.RawIOBase):
    def __init__(self, file: io.RawIOBase, seconds_per_byte: float):
        self.file, self.seconds_per_byte = file, seconds_per_byte

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        time.sleep(len(data) * self.seconds_per_byte)
        return data

    def close(self) -> None:
        self.file.close()


class SlowFileSystem(LocalFileSystem):
    """Files of this machine, as if read from far away."""

    protocol = "slow"
    seconds_per_byte = 0.0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("slow://"))

    def open(self, path: str, mode: str = "rb", **_: object) -> _SlowFile:
        return _SlowFile(super().open(path, mode), self.seconds_per_byte)


def _write_shards(folder: Path) -> None:
    pixels = np.random.default_rng(0)
    for shard in range(2 * NUM_LANES):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index in range(2 * WINDOW):
                picture = io.BytesIO()
                Image.fromarray(pixels.integers(0, 256, (64, 64, 3), np.uint8)).save(picture, "JPEG")
                for suffix, data in (("jpg", picture.getvalue()), ("json", b'{"caption": "noise"}')):
                    add_member(tar, f"{index:05d}.{suffix}", data)


def _lanes(folder: Path, prefetch: int) -> list[Iterator]:
    config = StreamConfig(
        sources=[SourceConfig(shards=f"slow://{folder}/{{00000..{2 * NUM_LANES - 1:05d}}}.tar")],
        image_size=64,
        num_lanes=NUM_LANES,
        shuffle_window=WINDOW,
        prefetch=prefetch,
    )
    shards = find_stream_shards(config)
    lanes = [iter(Lane(number, config, shards, seed=0)) for number in range(NUM_LANES)]
    for number, lane in enumerate(lanes):
        for _ in range(1 + number * WINDOW // NUM_LANES):
            next(lane)
    return lanes


def slow_disk_rows() -> list[Row]:
    """Seconds a step, of which STEP_SECONDS compute: windows read ahead, and read when they are needed."""
    fsspec.register_implementation("slow", SlowFileSystem, clobber=True)
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_shards(folder)
        num_bytes = (folder / "00000.tar").stat().st_size / 2  # of a window
        SlowFileSystem.seconds_per_byte = REFILL_SECONDS / num_bytes
        for prefetch in (1, 0):
            lanes = _lanes(folder, prefetch)
            time.sleep(2 * REFILL_SECONDS)  # a run that has begun
            start = time.perf_counter()
            for _ in range(NUM_STEPS):
                for lane in lanes:
                    for _ in range(ROWS):
                        next(lane)
                time.sleep(STEP_SECONDS)
            seconds[prefetch] = (time.perf_counter() - start) / NUM_STEPS
    waits = {prefetch: 1 - STEP_SECONDS / value for prefetch, value in seconds.items()}
    note = (
        f"baseline: prefetch 0; {NUM_LANES} de-phased lanes, windows of {WINDOW} in {REFILL_SECONDS} s, "
        f"{STEP_SECONDS} s of computing a step; a step waits {waits[1]:.0%}, baseline {waits[0]:.0%}"
    )
    return [make_row("stream/slow_disk", "s/step", seconds[1], seconds[0], note, higher_is_better=False)]
