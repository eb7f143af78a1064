"""Part of bench/encoder.py: the data path alone, from a JPEG in a shard to the batch that a step takes."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import time
from pathlib import Path

from _table import Row, make_row, seconds
from PIL import Image

from encoder.data.batch import to_pixels
from encoder.data.feed import MicroBatches, StreamFeed
from encoder.data.options import SourceConfig, StreamConfig
from encoder.data.scenes.render import make_scene, render
from encoder.data.scenes.text import org_caption, re_caption
from encoder.data.tars import add_member
from encoder.data.tokenizer import Tokenizer

SIDE, ROWS, NUM_PICTURES = 256, 32, 64  # px, pictures of a batch, of the shard


def _write_shard(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for index in range(NUM_PICTURES):
            scene, picture = make_scene(0, index, "train"), io.BytesIO()
            Image.fromarray(render(scene, SIDE)).save(picture, "JPEG", quality=90)
            texts = json.dumps({"org_caption": org_caption(scene), "re_caption": re_caption(scene)})
            for suffix, data in (("jpg", picture.getvalue()), ("json", texts.encode())):
                add_member(tar, f"{index:05d}.{suffix}", data)


def data_path_rows() -> list[Row]:
    """Pictures a second that one reading process gives, and what handing a batch to the step costs."""
    with tempfile.TemporaryDirectory() as name:
        _write_shard(Path(name) / "00000.tar")
        stream = StreamConfig(
            sources=[SourceConfig(shards=name)], image_size=SIDE, crop="random", num_lanes=1,
            shuffle_window=NUM_PICTURES,
        )  # fmt: skip
        own = MicroBatches(
            batch_size=ROWS, num_micro_batches=1, first=0, count=1, num_pixels=ROWS, with_sentence=True
        )  # fmt: skip
        lengths = {"text_length": 80, "caption_length": 128}
        feed = StreamFeed(stream, own, Tokenizer("scenes"), **lengths, seed=0, keep_all_pixels=True)
        step = iter(range(10**6))
        works = {"read": lambda: feed.micro_batches(next(step))}
        read = seconds(works, repeats=5, clock=time.process_time)["read"] / ROWS
        pictures = feed.micro_batches(next(step))[0].pixels
    works = {"ours": pictures.clone, "baseline": lambda: to_pixels(pictures)}
    moved = seconds(works, repeats=20, clock=time.process_time)
    note = f"no baseline: reading, decoding, cropping {SIDE} px JPEG and tokenising on one core"
    about = (
        f"main process; baseline: floats made there, {pictures.numel() * 4 / ROWS / 2**20:.2f} MiB a "
        "picture; ours: bytes, a quarter, copied once to where the device takes them"
    )
    sides = (1e3 * moved["ours"] / ROWS, 1e3 * moved["baseline"] / ROWS)
    return [
        make_row("stream/one_reader", "images/s", 1 / read, None, note),
        make_row("stream/hand_over", "ms/image", *sides, about, higher_is_better=False),
    ]
