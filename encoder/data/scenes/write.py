"""Stage `python -m encoder.data.scenes.write CONFIG OUT`: Scenes on disk, laid out as real data is.

{train,val,test}/SHARD.tar (img2dataset's WebDataset layout), llava/{pretrain,instruct}.json and llava/images,
lmms/scenes_{seed,pope}.parquet, text.jsonl, layouts.jsonl if asked for, contact_sheet.png, card.json. The
same config gives the same bytes.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from encoder.data.options import Composition, ScenesConfig
from encoder.data.scenes.compose import SCENES_VERSION, make_scene
from encoder.data.scenes.conversations import (
    instruct_record,
    layout_record,
    pretrain_record,
    text_record,
)
from encoder.data.scenes.drawing import Drawing
from encoder.data.scenes.objects import KINDS
from encoder.data.scenes.parquet import png, write_pope, write_seed
from encoder.data.scenes.render import render
from encoder.data.scenes.scene import Scene, Split
from encoder.data.scenes.text import org_caption, re_caption
from encoder.data.tars import add_member
from encoder.runtime.config import resolve
from encoder.runtime.files import replacing
from encoder.runtime.stage import main, progress, sha256_file, sha256_json, write_json

SHEET_COLUMNS, SHEET_ROWS, SHEET_SIZE = 8, 5, 160
TEXT_FIRST_INDEX = 5_000_000  # scenes of the text corpus: train split, never drawn
LAYOUTS = "layouts.jsonl"
LAYOUTS_FIRST_INDEX = 7_000_000  # scenes that are laid out: likewise
_CHUNK = 500  # pictures or rows a piece of work
Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of work of one process: scenes `first` to `first + count` of a split, for `path`."""

    config: ScenesConfig
    split: Split
    first: int
    count: int
    path: Path

    @property
    def indices(self) -> range:
        """The numbers of its scenes."""
        return range(self.first, self.first + self.count)

    def scene(self, index: int) -> Scene:
        """The scene of this number."""
        composition = self.config.composition_of(self.split, index)
        return make_scene(self.config.seed, index, self.split, composition, self.config.held_out)

    def named(self, index: int) -> tuple[Scene, str]:
        """The scene of this number and its name in records."""
        return self.scene(index), f"{index:09d}"


def run(config: ScenesConfig, out_dir: Path) -> dict[str, Any]:
    """Write everything; files that are complete are kept. Returns the counts and the hash of all data
    files."""
    total = config.num_train + config.num_val + config.num_test
    total += config.num_llava_images + config.num_text + config.num_layouts
    done = 0

    def count(pieces: Iterable[int]) -> None:
        nonlocal done
        for number in pieces:
            done += number
            progress(out_dir, done, total, "scenes")

    with _mapper(config.num_workers) as mapper:
        for split, number in (
            ("train", config.num_train),
            ("val", config.num_val),
            ("test", config.num_test),
        ):
            count(mapper(_write_shard, _shards(config, out_dir / split, split, number)))
        _write_llava(config, out_dir / "llava", mapper, count)
        text, layouts = out_dir / "text.jsonl", out_dir / LAYOUTS
        _write_rows(config, text, _text_rows, TEXT_FIRST_INDEX, config.num_text, mapper, count)
        if config.num_layouts:
            _write_rows(config, layouts, _layout_rows, LAYOUTS_FIRST_INDEX, config.num_layouts, mapper, count)
        lmms, seed, how = out_dir / "lmms", config.seed, drawing(config)
        lmms.mkdir(exist_ok=True)
        num_seed = write_seed(lmms / "scenes_seed.parquet", seed, config.num_seed_questions, how, mapper)
        num_pope = write_pope(lmms / "scenes_pope.parquet", seed, config.num_pope_pairs, how, mapper)
    contact_sheet(config.seed, composition=config.composition).save(out_dir / "contact_sheet.png")
    counts = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    counts |= {"llava_images": config.num_llava_images, "text": config.num_text}
    counts |= {"layouts": config.num_layouts} if config.num_layouts else {}
    counts |= {"seed_questions": num_seed, "pope_questions": num_pope}
    card = {"name": "Scenes", "version": SCENES_VERSION, "counts": counts, "classes": list(KINDS)}
    card |= {"config": resolve(config), "sha256": _sha256_of_data(out_dir)}
    write_json(out_dir / "card.json", card)
    return {"counts": counts, "version": SCENES_VERSION, "sha256": card["sha256"]}


def drawing(config: ScenesConfig) -> Drawing:
    """How its pictures are drawn."""
    return Drawing(size=config.image_size, object_scale=config.object_scale, rendered_at=config.rendered_at)


def sample_record(scene: Scene, index: int, how: Drawing | int) -> tuple[str, dict[str, Any], bytes]:
    """One sample of a shard: alt text, JSON record, PNG."""
    how = Drawing.of(how)
    record = {
        "key": f"{index:09d}",
        "width": how.size,
        "height": how.size,
        "org_caption": org_caption(scene),
        "re_caption": re_caption(scene),
        "label": scene.label,
        "class_name": KINDS[scene.label],
        "scene": scene.truth(),
    }
    return record["org_caption"], record, png(scene, how)


def contact_sheet(
    seed: int, split: Split = "test", composition: Composition = "scene_centric"
) -> Image.Image:
    """The first scenes of a split side by side."""
    scenes = [make_scene(seed, i, split, composition) for i in range(SHEET_COLUMNS * SHEET_ROWS)]
    pictures = [render(scene, SHEET_SIZE) for scene in scenes]
    rows = [
        np.concatenate(pictures[i : i + SHEET_COLUMNS], axis=1)
        for i in range(0, len(pictures), SHEET_COLUMNS)
    ]
    return Image.fromarray(np.concatenate(rows))


def _shards(config: ScenesConfig, folder: Path, split: Split, number: int) -> Iterator[Piece]:
    folder.mkdir(exist_ok=True)
    for shard, first in enumerate(range(0, number, config.shard_size)):
        count = min(config.shard_size, number - first)
        path = folder / f"{shard:05d}.tar"
        yield Piece(config, split, first, count, path)


def _write_shard(piece: Piece) -> int:
    """A shard and, as img2dataset does, its `_stats.json`, which says that the shard is complete."""
    stats_path = piece.path.with_name(f"{piece.path.stem}_stats.json")
    how = drawing(piece.config)
    stats = {"version": SCENES_VERSION, "seed": piece.config.seed, "image_size": how.size}
    stats |= {"first": piece.first}
    stats |= {"count": piece.count, "successes": piece.count}
    if piece.path.is_file() and stats_path.is_file() and json.loads(stats_path.read_text()) == stats:
        return piece.count
    with (
        replacing(piece.path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for index in piece.indices:
            text, record, picture = sample_record(piece.scene(index), index, how)
            add_member(tar, f"{record['key']}.json", json.dumps(record).encode())
            add_member(tar, f"{record['key']}.png", picture)
            add_member(tar, f"{record['key']}.txt", text.encode())
    write_json(stats_path, stats)
    return piece.count


def _write_llava(config: ScenesConfig, folder: Path, mapper: Callable, count: Callable) -> None:
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    pieces = _pieces(config, config.num_train, config.num_llava_images, images)
    pretrain: list[dict] = []
    instruct: list[dict] = []
    for plain, turns in mapper(_llava_records, pieces):
        pretrain += plain
        instruct += turns
        count([len(plain)])
    write_json(folder / "pretrain.json", pretrain)
    write_json(folder / "instruct.json", instruct)


def _llava_records(piece: Piece) -> tuple[list[dict], list[dict]]:
    pretrain, instruct = [], []
    for index in piece.indices:
        scene, name = piece.named(index)
        (piece.path / f"{name}.png").write_bytes(png(scene, drawing(piece.config)))
        image = f"images/{name}.png"
        pretrain.append(pretrain_record(scene, name, image))
        instruct.append(instruct_record(scene, name, image, piece.config.seed))
    return pretrain, instruct


def _write_rows(
    config: ScenesConfig,
    path: Path,
    rows_of: Callable,
    first: int,
    number: int,
    mapper: Callable,
    count: Callable,
) -> None:
    """A JSONL file of a row for each of `number` scenes of the train split."""
    with replacing(path) as temporary, temporary.open("w") as file:
        for rows in mapper(rows_of, _pieces(config, first, number, path)):
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
            count([len(rows)])


def _text_rows(piece: Piece) -> list[dict]:
    return [text_record(*piece.named(index), piece.config.seed) for index in piece.indices]


def _layout_rows(piece: Piece) -> list[dict]:
    config = piece.config
    return [layout_record(*piece.named(i), config.seed, config.layout_grid) for i in piece.indices]


def _pieces(config: ScenesConfig, first: int, number: int, path: Path) -> Iterator[Piece]:
    for start in range(first, first + number, _CHUNK):
        yield Piece(config, "train", start, min(_CHUNK, first + number - start), path)


@contextmanager
def _mapper(
    num_workers: int,
) -> Iterator[Callable[[Callable[[Piece], Done], Iterable[Piece]], Iterable[Done]]]:
    """`map` over one process or several; results come in order.

    Raises: OSError if one of them is killed.
    """
    if num_workers == 1:
        yield map
        return
    try:
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            yield pool.map
    except BrokenProcessPool:
        raise OSError(
            f"one of {num_workers} drawing processes was killed (out of memory?); lower num_workers, or "
            "start again: whole shards are kept"
        ) from None


def _sha256_of_data(out_dir: Path) -> str:
    names = [*out_dir.glob("*/*.tar"), *out_dir.glob("llava/*.json"), *out_dir.glob("lmms/*.parquet")]
    names += [out_dir / "text.jsonl", *out_dir.glob(LAYOUTS)]
    return sha256_json({str(path.relative_to(out_dir)): sha256_file(path) for path in names})


if __name__ == "__main__":
    main(ScenesConfig, run)
