"""Recap-DataComp-1B as img2dataset downloads it: shards of pictures, alt texts and JSON, to train an encoder.

Source: rom1504/img2dataset, `writer.py` and `downloader.py` (00000.tar with 000000000.jpg, .txt, .json;
00000.parquet with a row for each address, those that failed too; 00000_stats.json); reference sheet
"Official OpenVision repository", Sec. 2.4, and the columns of UCSC-VLAA/Recap-DataComp-1B (re_caption,
org_caption, ...), which img2dataset copies into the JSON when they are named in `save_additional_columns`.
The names and the order of keys and columns are from memory. train/ and held_out/val/ are this project's own
cut (configs/recipes/paper_b.yaml).
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from encoder.data.scenes.scene import Split
from encoder.data.scenes.text import org_caption, re_caption
from encoder.runtime.stage import write_json
from harness.replica.config import ReplicaConfig
from harness.replica.mark import README, readme
from harness.replica.pictures import draw, jpeg, scenes, size_of

FOLDER, TRAIN, HELD_OUT = "recap-datacomp", "train", "held_out/val"
_FAILED_EVERY = 12  # one address in so many is dead, as addresses are
_DEAD = "<urlopen error [Errno -2] Name or service not known>"
_MEASURED = ("width", "height", "original_width", "original_height", "exif", "sha256")


def write(root: Path, config: ReplicaConfig) -> str:
    """The shards, the last of them held out."""
    total = 0
    for number in range(config.num_shards):
        is_held_out = number == config.num_shards - 1
        folder = root / FOLDER / (HELD_OUT if is_held_out else TRAIN)
        folder.mkdir(parents=True, exist_ok=True)
        shard = 0 if is_held_out else number
        total += _write_shard(folder, shard, config, "val" if is_held_out else "train", number)
    (root / FOLDER / README).write_text(
        readme("Recap-DataComp-1B, downloaded by img2dataset", "hub: UCSC-VLAA/Recap-DataComp-1B")
    )
    return f"{config.num_shards} shards, {total} pictures"


def _write_shard(folder: Path, shard: int, config: ReplicaConfig, split: Split, number: int) -> int:
    rows = list(_samples(config, shard, split, number))
    with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
        for row, picture in rows:
            if picture is not None:
                _add(tar, f"{row['key']}.jpg", picture)
                _add(tar, f"{row['key']}.txt", row["caption"].encode())
                _add(tar, f"{row['key']}.json", json.dumps(row, indent=4).encode())
    parquet.write_table(pa.Table.from_pylist([row for row, _ in rows]), folder / f"{shard:05d}.parquet")
    good = sum(picture is not None for _, picture in rows)
    write_json(folder / f"{shard:05d}_stats.json", {
        "count": len(rows), "successes": good, "failed_to_download": len(rows) - good, "failed_to_resize": 0,
        "duration": 1.0, "start_time": 1700000000.0, "end_time": 1700000001.0,
        "status_dict": {"success": good, _DEAD: len(rows) - good},
    })  # fmt: skip
    return good


def _samples(
    config: ReplicaConfig, shard: int, split: Split, number: int
) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    stream = scenes(config.seed, f"{FOLDER}/{number}", split)
    for place in range(config.shard_samples):
        scene = next(stream)
        url = f"https://example.com/{number}/{place}.jpg"
        short, dense = org_caption(scene), re_caption(scene)
        is_dead = place % _FAILED_EVERY == _FAILED_EVERY - 1
        row: dict[str, Any] = {
            "url": url, "caption": short, "re_caption": dense, "org_caption": short,
            "re_clip_score": 0.3, "org_clip_score": 0.2, "re_length": len(dense.split()),
            "org_length": len(short.split()), "key": f"{shard:05d}{place:04d}",
            "status": "failed_to_download" if is_dead else "success",
            "error_message": _DEAD if is_dead else None,
        }  # fmt: skip
        if is_dead:
            yield row | dict.fromkeys(_MEASURED), None
            continue
        width, height = size_of(place)
        picture = jpeg(draw(scene, (width, height)))
        digest = hashlib.sha256(picture).hexdigest()
        yield row | dict(zip(_MEASURED, (width, height, width, height, "{}", digest), strict=True)), picture


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
