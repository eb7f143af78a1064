"""A look at LLaVA's and LLaVA-NeXT's records, and at some of their pictures."""

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

from harness.paper.headers import first_rows, opens, parquet_nulls, parquet_rows, picture_fault, read_json

PRETRAIN_JSON, MIX_JSON = "blip_laion_cc_sbu_558k.json", "llava_v1_5_mix665k.json"
OPEN_JSON = "open-llava-next/open-llava-next_instruct_mix1M.json"
_LOOKED_AT = 200  # records of a JSON whose pictures are looked for
_OPENED = 8  # of these, pictures whose header is read; of parquet, files whose first rows are
_ROWS = 8
_MAX_MISSING = 0.01  # what the trainer tolerates too
Look = tuple[dict[str, int], list[str]]


def llava_pretrain(path: Path) -> Look:
    """The JSON of captions, and its pictures in images/."""
    return _records(path / PRETRAIN_JSON, path / "images", has_sets=False)


def llava_mix(path: Path) -> Look:
    """The JSON of conversations, and the sets of pictures beside it."""
    return _records(path / MIX_JSON, path)


def open_next_mix(path: Path) -> Look:
    """Open-LLaVA-NeXT's JSON of conversations in a folder of its own, among the sets of pictures."""
    return _records(path / OPEN_JSON, path)


def next_mix(path: Path) -> Look:
    """LLaVA-NeXT's parquet files, a record a row, which hold their pictures."""
    files = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    if not files:
        raise ValueError(f"{path} has no parquet files, and none in data")
    num_records = parquet_rows(files, ("id", "conversations", "image"))
    faults = [fault for file in files[:: max(1, len(files) // _OPENED)] for fault in _first_rows(file)]
    num_text = parquet_nulls(files, "image.path")
    counts = {"without a picture": num_text} if num_text is not None else {}
    return {"records": num_records} | counts, faults


def _first_rows(file: Path) -> list[str]:
    """The first fault of a parquet file's first rows."""
    for number, row in enumerate(first_rows(file, _ROWS, ("conversations", "image"))):
        fault = _fault({"conversations": row["conversations"]}) or _picture_fault(row["image"])
        if fault is not None:
            return [f"{file}: row {number} {fault}"]
    return []


def _picture_fault(picture: Any) -> str | None:
    """Of a row's picture as `datasets` stores it, {bytes, path}; a row of text has none."""
    if picture is None or (isinstance(picture, dict) and not any(picture.values())):
        return None
    if not isinstance(picture, dict) or not picture.get("bytes"):
        return "does not hold its picture"
    fault = picture_fault(io.BytesIO(picture["bytes"]))
    return None if fault is None else f"holds what {fault}"


def _records(file: Path, folder: Path, *, has_sets: bool = True) -> Look:
    """has_sets: the pictures lie in several folders, each of which is looked at."""
    records = read_json(file)
    if not isinstance(records, list) or not records:
        raise ValueError(f"{file} is not a list of records")
    for number, record in enumerate(records):
        if fault := _fault(record):
            raise ValueError(f"{file}: record {number} {fault}")
    pictured = [record["image"] for record in records if "image" in record]
    by_set = defaultdict(list)
    for name in pictured:
        by_set["/".join(name.split("/")[:-1]) if has_sets else ""].append(name)
    faults = []
    for place, names in sorted(by_set.items()):
        tried = names[:: max(1, len(names) // _LOOKED_AT)]
        missing = [name for name in tried if not (folder / name).is_file()]
        if len(missing) > _MAX_MISSING * len(tried):
            where = folder / place if place else folder
            faults.append(
                f"{where}: {len(missing)} of {len(tried)} pictures are not there, first {missing[0]}"
            )
        there = [name for name in tried if name not in missing]
        faults += [fault for name in there[:_OPENED] for fault in opens(folder / name)]
    return {"records": len(records), "without a picture": len(records) - len(pictured)}, faults


def _fault(record: Any) -> str | None:
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        return "has no list of conversations"
    turns = record["conversations"]
    if not turns or not all(isinstance(turn, dict) and {"from", "value"} <= turn.keys() for turn in turns):
        return "has a turn without from and value"
    if not isinstance(record.get("image", ""), str):
        return f"names no picture: image is {record['image']!r}"
    return None
