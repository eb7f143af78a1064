"""Headers of files: names, shapes and numbers of rows, without reading what they hold."""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

Shape = tuple[int, ...]
_OF = re.compile(r"-(\d{5})-of-(\d{5})(-[0-9a-f]+)?$")  # some end in a hash


def read_json(path: Path) -> Any:
    """Raises: FileNotFoundError, ValueError: it is missing, or no JSON."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def fields(config: Any, names: Iterable[str], path: Path) -> Mapping[str, Any]:
    """The mapping that a file holds, with all of these keys.

    Raises: ValueError: it holds something else, or lacks one.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{path} holds a {type(config).__name__}, expected a mapping")
    if missing := [name for name in names if name not in config]:
        raise ValueError(f"{path} has no {missing[0]}")
    return config


def parquet_rows(files: Sequence[Path], columns: Iterable[str]) -> int:
    """Rows of parquet files, which are all there and have these columns.

    Raises:
        ValueError: one is cut off or damaged, misses a column, or parts of a set are missing.
    """
    from pyarrow import ArrowException, parquet

    num, wanted = 0, set(columns)
    for path in files:
        try:
            meta = parquet.read_metadata(path)
        except (ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged or cut off: {str(error).splitlines()[0][:120]}") from None
        missing = wanted - set(meta.schema.to_arrow_schema().names)
        if missing:
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}")
        num += meta.num_rows
    _check_parts(files)
    return num


def parquet_nulls(files: Sequence[Path], column: str) -> int | None:
    """How often a column of parquet files, `a.b` within a structure, has no value, by the files' own count;
    None where one does not count."""
    from pyarrow import parquet

    num = 0
    for path in files:
        meta = parquet.read_metadata(path)
        names = [meta.schema.column(place).path for place in range(meta.num_columns)]
        for group in range(meta.num_row_groups):
            counted = meta.row_group(group).column(names.index(column)).statistics
            if counted is None or not counted.has_null_count:
                return None
            num += counted.null_count
    return num


def first_rows(path: Path, num: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The first rows of a parquet file.

    Raises: ValueError: they are damaged.
    """
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            batch = next(file.iter_batches(num, columns=list(columns)), None)
            return batch.to_pylist() if batch is not None else []
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0][:120]}") from None


def _check_parts(files: Sequence[Path]) -> None:
    """Raises: ValueError: of files called `<split>-00000-of-00004` some are missing."""
    found, of = Counter(), {}
    for path in files:
        if match := _OF.search(path.stem):
            split = path.with_name(path.stem[: match.start()])
            found[split] += 1
            of[split] = int(match[2])
    for split, num in found.items():
        if num != of[split]:
            raise ValueError(f"{split}-*.parquet: {num} of {of[split]} files are there")


def tensor_shapes(path: Path) -> dict[str, Shape]:
    """Names and shapes of a file of weights: safetensors, or torch's.

    Raises:
        FileNotFoundError, ValueError: it is missing, cut off, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return _of_safetensors(path) if path.suffix == ".safetensors" else _of_torch(path)


def _of_safetensors(path: Path) -> dict[str, Shape]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(size if size < 100e6 else 0))
            tensors = {name: value for name, value in header.items() if name != "__metadata__"}
            end = 8 + size + max((value["data_offsets"][1] for value in tensors.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(
                f"{path} is not safetensors: damaged, or a pointer in place of the file"
            ) from None
    if path.stat().st_size != end:
        raise ValueError(f"{path} is cut off: {path.stat().st_size} bytes of {end}")
    return {name: tuple(value["shape"]) for name, value in tensors.items()}


def _of_torch(path: Path) -> dict[str, Shape]:
    """Old files, from before torch 1.6, are no zip files and are read whole."""
    import pickle

    import torch

    is_zip = zipfile.is_zipfile(path)
    try:
        state = torch.load(path, map_location="meta" if is_zip else "cpu", weights_only=True, mmap=is_zip)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{path} is no state dict, damaged or cut off: {why}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a state dict of tensors")
    return {name: tuple(value.shape) for name, value in state.items()}


def opens(file: Path) -> list[str]:
    """What is wrong with a picture's header, if anything."""
    fault = picture_fault(file)
    return [f"{file} {fault}"] if fault is not None else []


def picture_fault(file: Path | BinaryIO) -> str | None:
    """As `opens`, without the file's name."""
    try:
        with Image.open(file) as picture:
            picture.verify()
    except Exception as error:  # of any kind: Pillow's readers raise whatever the bytes make them
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"is not a picture: {reason[:120]}"
    return None


def npz_shapes(path: Path) -> dict[str, Shape]:
    """Names and shapes of the arrays of an .npz.

    Raises:
        ValueError: it is no .npz, or cut off.
    """
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    version = np.lib.format.read_magic(file)
                    read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                        version, np.lib.format.read_array_header_2_0
                    )
                    shapes[name.removesuffix(".npy")] = read(file)[0]
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ValueError(f"{path} is not an .npz, damaged or cut off: {error}") from None
    return shapes


def require(shapes: dict[str, Shape], wanted: dict[str, Shape], path: Path, what: str) -> None:
    """Raises: ValueError for the first tensor that is missing or of another shape."""
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            got = f"is {shapes[name]}" if name in shapes else "is missing"
            raise ValueError(f"{path} is not {what}: {name} {got}, must be {shape}")
