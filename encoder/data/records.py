"""The one reader of LLaVA's records: JSON (a list), JSON lines (one a line) and parquet (one a row).

A record is LLaVA's {id, image?, conversations: [{from: human|gpt, value}]}; a row of plain text, {id, text},
is a caption without a question.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow
from pyarrow import parquet


class PictureStore(Protocol):
    """Takes the pictures that parquet files hold, so that they are found by name."""

    def add(self, path: Path) -> list[str | None]:
        """Take a file's pictures; returns each row's picture by name, None where it has none."""


def read_records(paths: Sequence[Path], embedded: PictureStore | None = None) -> list[dict]:
    """The records of JSON, JSONL or parquet files in order; a folder stands for its parquet files, in the
    order of their names.

    embedded: takes the pictures that a parquet file holds; its records then name them.

    Raises:
        FileNotFoundError: a file is missing, or a folder holds none.
        ValueError: a file is not JSON, a record has neither conversations nor text, or a file holds pictures
            and there is no `embedded`.
    """
    records: list[dict] = []
    for path in _files(paths):
        rows = _read_parquet(path, embedded) if path.suffix == ".parquet" else _read_json(path)
        records += [_as_conversation(row, f"{path} row {i}") for i, row in enumerate(rows)]
    return records


def picture_names(paths: Sequence[Path]) -> list[str]:
    """Names of the pictures of JSON, JSONL or parquet files' records, each once, in order.

    Raises:
        FileNotFoundError, ValueError: as `read_records`, though a record needs no conversations.
    """
    names: dict[str, None] = {}
    for path in _files(paths):
        rows = _read_parquet(path, None) if path.suffix == ".parquet" else _read_json(path)
        for row in rows:
            images = row.get("image") or []
            names.update(dict.fromkeys([images] if isinstance(images, str) else images))
    return list(names)


def holds_pictures(path: Path) -> bool:
    """Whether a parquet file's `image` column holds the pictures' bytes.

    Raises:
        ValueError: the file is not parquet.
    """
    try:
        schema = parquet.read_schema(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not parquet: {error}") from None
    if "image" not in schema.names:
        return False
    kind = schema.field("image").type
    return pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not all(each.is_file() for each in found) or not found:
            what = "no parquet file in the folder" if path.is_dir() else "LLaVA records not found:"
            raise FileNotFoundError(f"{what} {path}")
        yield from found


def _read_json(path: Path) -> list[dict]:
    try:
        text = path.read_text()
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of records, got a {type(rows).__name__}")
    return rows


def _read_parquet(path: Path, embedded: PictureStore | None) -> list[dict]:
    if not holds_pictures(path):
        rows = parquet.read_table(path).to_pylist()
    elif embedded is None:
        raise ValueError(f"{path} holds the pictures, which only training on live pictures reads")
    else:
        columns = [name for name in parquet.read_schema(path).names if name != "image"]
        rows = parquet.read_table(path, columns=columns).to_pylist()
        rows = [row | {"image": name} for row, name in zip(rows, embedded.add(path), strict=True)]
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def _as_conversation(row: Mapping, place: str) -> dict:
    if "conversations" in row:
        return {"id": place, **row}
    if "text" in row:
        return {
            "id": place,
            **row,
            "conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": row["text"]}],
        }
    raise ValueError(f"{place}: a record needs 'conversations' or 'text', got keys {sorted(row)}")
