"""Pictures inside parquet files, as the hub's data sets hold them: an `image` column of {bytes, path}.

Parquet is read a row group at a time and training visits the rows in any order, so each file's pictures are
copied once, a row group in memory, to one plain file that is then mapped: KEY.pictures, and KEY.json with the
names and places. KEY follows the parquet file's path, size and time of change. A picture's name holds its
content's hash, so a hash of the records covers the pictures.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet

from encoder.data.roots import find_picture
from encoder.runtime.files import locked, replacing
from encoder.runtime.stage import write_json

_ROWS_AT_ONCE = 64
_BUFFER_BYTES = 1 << 20  # of a column's pages read at once; 0 would be a whole row group


class EmbeddedPictures:
    """Picture files' bytes by name. folder: where the copies are kept, for later runs too."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.places: dict[str, tuple[np.memmap, int, int]] = {}  # name -> its file, first byte, end

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __getitem__(self, name: str) -> bytes:
        data, start, end = self.places[name]
        return data[start:end].tobytes()

    def add(self, path: Path) -> list[str | None]:
        """Make a file's pictures readable; returns each row's picture by name (its path where the row has no
        bytes), None where it has none.

        Raises:
            ValueError: the file is not parquet, or damaged.
        """
        path = path.resolve()
        state = path.stat()
        identity = f"{path} {state.st_size} {state.st_mtime_ns}"
        key = hashlib.sha256(identity.encode()).hexdigest()[:24]
        copy, index = self.folder / f"{key}.pictures", self.folder / f"{key}.json"
        with locked(self.folder / f"{key}.lock", "picture_cache"):  # one process copies
            if not index.is_file():
                names, places = _copy(path, copy)
                write_json(index, {"parquet": str(path), "names": names, "places": places})
        found = json.loads(index.read_text())
        data = np.memmap(copy, np.uint8, "r") if found["places"] else None
        self.places |= {name: (data, start, end) for name, (start, end) in found["places"].items()}
        return found["names"]


def refuse_outside_pictures(path: Path) -> None:
    """Look for rows of a parquet file that name a picture without holding it: `datasets` would open the file
    of that name, wherever it is.

    Raises:
        ValueError: a name leads out of the parquet file's folder (see `encoder.data.roots`), or there is no
            such file; or the file is damaged.
    """
    path = path.resolve()
    try:
        with parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            for column in _picture_columns(file):
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column]):
                    for picture in _flat(batch.column(0).to_pylist()):
                        if not picture.get("bytes") and picture.get("path"):
                            find_picture(picture["path"], [path.parent])
    except FileNotFoundError as error:
        raise ValueError(f"{path} names a picture that it does not hold: {error}") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    except ValueError as error:
        reason = str(error).split(";")[0]
        raise ValueError(f"{path}: {reason}; write the picture itself into the file") from None


def _picture_columns(file: parquet.ParquetFile) -> set[str]:
    """The columns of {bytes, path}, or of lists of them, in which some bytes are missing by the file's own
    count."""
    found, metadata = set(), file.metadata
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    for i, name in enumerate(paths):
        if not name.endswith(".bytes") or f"{name.removesuffix('bytes')}path" not in paths:
            continue
        for group in range(metadata.num_row_groups):
            counted = metadata.row_group(group).column(i).statistics
            if counted is None or not counted.has_null_count or counted.null_count:
                found.add(name.split(".")[0])
    return found


def _flat(values: list) -> Iterator[dict]:
    for value in values:
        yield from _flat(value) if isinstance(value, list) else [value or {}]


def _copy(path: Path, copy: Path) -> tuple[list[str | None], dict[str, tuple[int, int]]]:
    """Write the pictures, equal ones once; returns each row's name, and where each name's bytes are."""
    names, places, end = [], {}, 0
    by_content: dict[str, str] = {}
    with replacing(copy) as temporary, temporary.open("wb") as file:
        for row, picture in enumerate(_pictures(path)):
            data = (picture or {}).get("bytes")
            name = (picture or {}).get("path") or None
            if data:
                content = hashlib.sha256(data).hexdigest()[:32]
                name = by_content.setdefault(content, f"{path.name}#{row}:{content}")
                if name not in places:
                    places[name] = (end, end + file.write(data))
                    end = places[name][1]
            names.append(name)
    return names, places


def _pictures(path: Path) -> Iterator[dict | None]:
    try:
        with parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["image"]):
                yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
