"""A look at the data sets of pictures and questions: ImageNet, Recap-DataComp-1B, the five benchmarks."""

import itertools
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.paper.headers import opens, parquet_rows

COLUMNS = {  # data set -> folder, split, the columns that lmms-eval reads
    "SEED-Bench": (
        "data",
        "test",
        "question choice_a choice_b choice_c choice_d answer data_type question_id image",
    ),
    "POPE": ("data", "test", "question answer question_id category image"),
    "MME": ("data", "test", "question answer question_id category image"),
    "GQA": ("testdev_balanced_instructions", "testdev", "id imageId question answer"),
    "GQA pictures": ("testdev_balanced_images", "testdev", "id image"),
    "ScienceQA": ("ScienceQA-FULL", "test", "image question choices answer hint"),
    "ScienceQA-IMG": ("ScienceQA-IMG", "test", "image question choices answer hint"),
}
_FOLDERS = {"GQA pictures": "GQA", "ScienceQA-IMG": "ScienceQA"}
_OPENED = 8  # classes of whose pictures one is opened
_CLASSES, _PUBLISHED = 1000, {"train": 1_281_167, "val": 50_000}
_PICTURES = (".jpeg", ".jpg", ".png", ".webp")
_TAR_BLOCK, _MEMBERS = 512, 3  # bytes; files of a sample: picture, text and JSON
_CAPTIONS = ("org_caption", "re_caption")
_HELD_OUT = {"held-out shards": "held_out/val"}
Look = tuple[dict[str, int], list[str]]


def imagenet(path: Path) -> Look:
    """Folders of synsets, the hub's parquet, or shards; train and val (or validation)."""
    files = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    if files:
        counts = {}
        for split in ("train", "validation"):
            of_split = [file for file in files if file.name.startswith(f"{split}-")]
            if not of_split:
                raise ValueError(f"{path} has no {split}-*.parquet")
            counts[split] = parquet_rows(of_split, ("image", "label"))
        return counts, []
    shards = {split: sorted((path / split).glob("*.tar")) for split in ("train", "val")}
    if all(shards.values()):
        return {f"{split} shards": len(of_split) for split, of_split in shards.items()}, []
    return _synsets(path)


def recap_datacomp(path: Path) -> Look:
    """Shards as img2dataset writes them, to train on and held out: each with a tar's end; the first and last
    begin with a picture and its two captions."""
    return _shards(path, {"shards": "train", **_HELD_OUT})


def recap_held_out(path: Path) -> Look:
    """Those that are held out alone."""
    return _shards(path, _HELD_OUT)


def _shards(path: Path, places: Mapping[str, str]) -> Look:
    counts = {}
    for name, place in places.items():
        shards = sorted((path / place).glob("*.tar"))
        if not shards:
            raise ValueError(f"{path} has no shards (*.tar) in {place}")
        for shard in shards:
            if not _has_end(shard):
                raise ValueError(f"{shard} is empty or cut off: it has no end; download it again")
        for shard in dict.fromkeys((shards[0], shards[-1])):
            _look_at_sample(shard)
        counts[name] = len(shards)
    return counts, []


def _has_end(shard: Path) -> bool:
    """Whether a tar ends in two blocks of zeros, as each does that was written whole."""
    with shard.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * _TAR_BLOCK))
        return file.read() == bytes(2 * _TAR_BLOCK)


def _look_at_sample(shard: Path) -> None:
    """Raises: ValueError: a shard's first sample is no picture with JSON that holds its captions."""
    try:
        with tarfile.open(shard, "r:") as tar:
            members = list(itertools.islice((member for member in tar if member.isreg()), _MEMBERS))
            held = {Path(member.name).suffix: member for member in members}
            about = json.load(tar.extractfile(held[".json"])) if ".json" in held else {}
    except (tarfile.TarError, ValueError, OSError) as error:
        raise ValueError(f"{shard} is damaged or cut off: {str(error).splitlines()[0][:120]}") from None
    if not any(suffix.lower() in _PICTURES for suffix in held):
        raise ValueError(f"{shard} begins without a picture: it holds {', '.join(m.name for m in members)}")
    if missing := [key for key in _CAPTIONS if key not in about]:
        raise ValueError(
            f"{shard}: the first sample's JSON has no {missing[0]}; name it in img2dataset's "
            "save_additional_columns"
        )


def _synsets(path: Path) -> Look:
    classes, counts, faults = {}, {}, []
    for split in ("train", "val"):
        folder = path / split
        if not folder.is_dir():
            raise ValueError(f"{path} has no folder {split}, no parquet and no shards")
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        names = [entry.name for entry in entries if entry.is_dir()]
        if not names:
            flat = sum(entry.name.lower().endswith(_PICTURES) for entry in entries)
            raise ValueError(f"{folder} holds {flat} pictures and no class folders: sort them into synsets")
        num_of = {name: sum(not entry.is_dir() for entry in os.scandir(folder / name)) for name in names}
        classes[split], counts[f"{split} pictures"] = set(names), sum(num_of.values())
        faults += [f"{folder / name} is empty" for name, num in num_of.items() if not num][:3]
        for name in names[:: max(1, len(names) // _OPENED)]:
            faults += [fault for file in sorted((folder / name).iterdir())[:1] for fault in opens(file)]
    if classes["train"] != classes["val"]:
        odd = sorted(classes["train"] ^ classes["val"])
        faults.append(f"{path}: {len(odd)} classes are in one of train and val alone, first {odd[0]}")
    if len(classes["train"]) == _CLASSES:
        for split, num in _PUBLISHED.items():
            if counts[f"{split} pictures"] != num:
                got = counts[f"{split} pictures"]
                faults.append(f"{path / split} holds {got:,} pictures, ImageNet-1k has {num:,}")
    return {"classes": len(classes["train"]), **counts}, faults


def benchmarks(path: Path) -> Look:
    """The parquet of each, with the columns that its task reads; each is counted whatever befalls another."""
    counts, faults = {}, []
    for name, (config, split, columns) in COLUMNS.items():
        folder = path / _FOLDERS.get(name, name)
        try:
            counts[name] = parquet_rows(_files(folder, config, split), columns.split())
        except (ValueError, OSError) as error:
            faults.append(f"{name}: {error}")
    return counts, faults


def _files(folder: Path, config: str, split: str) -> Sequence[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    files = sorted((folder / config).glob(f"{split}-*.parquet"))
    if not files:
        raise FileNotFoundError(f"no {split}-*.parquet in {folder / config}")
    return files
