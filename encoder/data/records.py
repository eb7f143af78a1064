"""The one reader of LLaVA's records: JSON (a list), JSON lines (one a line) and parquet (one a row).

A record comes out as LLaVA's {id, image?, conversations: [{from: human|gpt|system, value}]}, its picture a
name. It is also read as `messages` of {role: user|assistant|system, content}, `content` a text or a list of
parts ({type: text, text} or {type: image}); as `image` or `images` holding one name in a list; and as a row
of plain text, {id, text}, which is a caption without a question and keeps its `text`.
What cannot be read is refused by name.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pyarrow
from pyarrow import parquet

IMAGE = "<image>"  # stands for the picture in a text
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
_ROWS_AT_ONCE = 10_000  # of parquet that become objects together
_PICTURE_KEYS = ("image", "path", "url")  # of a part that is a picture
Refuse = Callable[[str, str], object]  # takes a record's name and the reason why it cannot be used
Row = tuple[str, Any, str | None]  # its place, its content, why it could not be read


class PictureStore(Protocol):
    """Takes the pictures that parquet files hold, so that they are found by name."""

    def add(self, path: Path) -> list[str | None]:
        """Take a file's pictures; returns each row's picture by name, None where it has none."""


def stop_at(name: str, reason: str) -> NoReturn:
    """Refuse a record by ending the run.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name}: {reason}")


def read_records(
    paths: Sequence[Path], embedded: PictureStore | None = None, refuse: Refuse = stop_at
) -> list[dict]:
    """The records of JSON, JSONL or parquet files in order; a folder stands for its parquet files, in the
    order of their names.

    embedded: takes the pictures that a parquet file holds; its records then name them.
    refuse: told of each record that cannot be read, which is then left out.

    Raises:
        FileNotFoundError: a file is missing, or a folder holds none.
        ValueError: a file is not JSON or parquet, or holds pictures and there is no `embedded`; what `refuse`
            raises.
    """
    records: list[dict] = []
    for place, row, fault in _read_rows(paths, embedded):
        try:
            if fault is not None:
                raise ValueError(fault)
            records.append(_read_record(row, place))
        except ValueError as error:
            refuse(place, str(error))
    return records


def picture_names(paths: Sequence[Path], refuse: Refuse = stop_at) -> list[str]:
    """Names of the pictures of JSON, JSONL or parquet files' records, each once, in order; a record may name
    several and needs no conversation.

    Raises:
        FileNotFoundError, ValueError: as `read_records`.
    """
    names: dict[str, None] = {}
    for place, row, fault in _read_rows(paths, None):
        try:
            if fault is not None:
                raise ValueError(fault)
            names.update(dict.fromkeys(_pictures(_as_mapping(row))))
        except ValueError as error:
            refuse(place, str(error))
    return list(names)


def holds_pictures(path: Path) -> bool:
    """Whether a parquet file's `image` column holds the pictures' bytes.

    Raises:
        ValueError: the file is not parquet.
    """
    try:
        schema = parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not parquet: {error}") from None
    if "image" not in schema.names:
        return False
    kind = schema.field("image").type
    return pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def take_pictures(paths: Sequence[Path], embedded: PictureStore | None) -> None:
    """Give `embedded` the pictures that parquet files hold, as `read_records` does, without their records.

    Raises:
        FileNotFoundError: a file is missing, or a folder holds none.
        ValueError: a file is not parquet, or holds pictures and there is no `embedded`.
    """
    for path in record_files(paths):
        if path.suffix.lower() == ".parquet" and _has_pictures(path, embedded):
            embedded.add(path)


def _has_pictures(path: Path, embedded: PictureStore | None) -> bool:
    has_pictures = holds_pictures(path)
    if has_pictures and embedded is None:
        raise ValueError(f"{path} holds the pictures, which only training on live pictures reads")
    return has_pictures


# ---- files to rows


def record_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files themselves: of a folder its parquet files, in the order of their names.

    Raises:
        FileNotFoundError: a file is missing, or a folder holds none.
    """
    for path in map(Path, paths):
        found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not all(each.is_file() for each in found) or not found:
            what = "no parquet file in the folder" if path.is_dir() else "LLaVA records not found:"
            raise FileNotFoundError(f"{what} {path}")
        yield from found


def _read_rows(paths: Sequence[Path], embedded: PictureStore | None) -> Iterator[Row]:
    for path in record_files(paths):
        if path.suffix.lower() == ".jsonl":
            yield from _read_lines(path)
        elif path.suffix.lower() == ".parquet":
            yield from _read_parquet(path, embedded)
        else:
            yield from ((f"{path} row {i}", row, None) for i, row in enumerate(_read_json(path)))


def _read_lines(path: Path) -> Iterator[Row]:
    """A record a line. Lines end at a line feed alone: JSON may hold U+2028 and its like as they are."""
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    lines = [line for line in data.split(b"\n") if line.strip()]
    for i, line in enumerate(lines):
        place = f"{path} row {i}"
        try:
            yield place, json.loads(line), None
        except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, nested too deep
            yield place, None, f"not JSON: {error}"


def _read_json(path: Path) -> list:
    try:
        rows = json.loads(path.read_bytes())  # a byte order mark tells json the encoding
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; a file of JSON lines is named .jsonl") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of records, got a {type(rows).__name__}")
    return rows


def _read_parquet(path: Path, embedded: PictureStore | None) -> Iterator[Row]:
    has_pictures = _has_pictures(path, embedded)
    try:
        columns = [name for name in parquet.read_schema(path).names if name != "image" or not has_pictures]
        table = parquet.read_table(path, columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    names = embedded.add(path) if has_pictures else None
    for i, (row, fault) in enumerate(_rows(table)):
        if row is not None:
            row = row if names is None else row | {"image": names[i]}
            row = {key: value for key, value in row.items() if value is not None}
        yield f"{path} row {i}", row, fault


def _rows(table: pyarrow.Table) -> Iterator[tuple[dict | None, str | None]]:
    """A table's rows; in place of one whose text is not UTF-8, why it cannot be read."""
    for start in range(0, len(table), _ROWS_AT_ONCE):
        part = table.slice(start, _ROWS_AT_ONCE)
        try:
            yield from ((row, None) for row in part.to_pylist())
        except UnicodeDecodeError as error:
            if len(part) == 1:
                yield None, f"not UTF-8: {error}"
            else:
                yield from (each for i in range(len(part)) for each in _rows(part.slice(i, 1)))


# ---- rows to records


def _as_mapping(row: object) -> Mapping:
    if not isinstance(row, Mapping):
        raise ValueError(f"a record must be an object, got {_show(row)}")
    return row


def _read_record(row: object, place: str) -> dict:
    row = _as_mapping(row)
    pictures = _pictures(row)
    if len(pictures) > 1:
        raise ValueError(f"names {len(pictures)} pictures; samples with several pictures cannot be used")
    name, turns = row.get("id"), [_read_turn(turn, i) for i, turn in enumerate(_turns(row))]
    picture = {"image": pictures[0]} if pictures else {}
    text = {"text": row["text"]} if _is_plain(row) else {}
    return {"id": name if _is_name(name) else place, **text, **picture, "conversations": turns}


def _is_plain(row: Mapping) -> bool:
    return "text" in row and _first(row, "conversations", "messages") is None


def _turns(row: Mapping) -> list:
    for key in ("conversations", "messages"):
        if row.get(key) is not None:
            if not isinstance(row[key], list):
                raise ValueError(f"'{key}' must be a list of turns, got {_show(row[key])}")
            return row[key]
    if _is_plain(row):
        return [{"from": "human", "value": ""}, {"from": "gpt", "value": row["text"]}]
    keys = ", ".join(map(str, row))
    raise ValueError(f"a record needs 'conversations', 'messages' or 'text', got keys {_show(keys)}")


def _read_turn(turn: object, index: int) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"turn {index} must be an object, got {_show(turn)}")
    speaker, value = _first(turn, "from", "role"), _first(turn, "value", "content")
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        raise ValueError(f"turn {index} is by {_show(speaker)}, not by one of {', '.join(_SPEAKERS)}")
    if isinstance(value, list):
        value = "".join(_part_text(part, index) for part in value)
    return {"from": _SPEAKERS[speaker], "value": _check_text(value, f"turn {index} ({speaker})")}


def _part_text(part: object, index: int) -> str:
    """What a part of a turn adds to its text."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "image":
        return IMAGE
    if isinstance(part, Mapping) and part.get("type") == "text":
        return _check_text(part.get("text"), f"a part of turn {index}")
    raise ValueError(f"a part of turn {index} is neither text nor an image: {_show(part)}")


def _pictures(row: Mapping) -> list[str]:
    """Names of a record's pictures; those that its turns' parts give where the record itself names none."""
    names = _as_list(_first(row, "image", "images"))
    if not names:
        turns = _mappings(_first(row, "conversations", "messages"))
        parts = [part for turn in turns for part in _mappings(_first(turn, "value", "content"))]
        pictures = [part for part in parts if part.get("type") == "image"]
        names = [name for part in pictures for name in _as_list(_first(part, *_PICTURE_KEYS))]
    return [_check_text(name, "a picture's name") for name in names if name != ""]


def _first(mapping: Mapping, *keys: str) -> Any:
    """The value of the first of these keys that has one."""
    return next((mapping[key] for key in keys if mapping.get(key) is not None), None)


def _as_list(value: object) -> list:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _mappings(value: object) -> list[Mapping]:
    return [each for each in _as_list(value) if isinstance(each, Mapping)]


def _check_text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, got {_show(value)}")
    if not _is_whole(value):
        raise ValueError(f"{what} holds half of a surrogate pair: {_show(value)}")
    return value


def _is_name(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value != "" and _is_whole(value))


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _show(value: object) -> str:
    """A value in a message; of a container, which may be deep, its kind."""
    if isinstance(value, list | Mapping):
        return f"a {type(value).__name__}"
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
