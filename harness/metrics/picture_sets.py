"""Sets of pictures on disk: npz files in ADM's layout (arr_0: N H W 3 uint8) with labels. No torch here.

Pictures are mapped, not read, where the file holds them uncompressed: 50,000 at 256 px are 10 GB.
"""

import zipfile
from pathlib import Path

import numpy as np

_LOCAL_HEADER = 30  # bytes before a zip member's name, whose lengths stand in the last four


def check_sets(*sets: np.ndarray) -> None:
    """Sets of pictures (N H W 3, uint8), at least one picture, all of one shape.

    Raises:
        ValueError: one is not.
    """
    for pictures in sets:
        is_set = pictures.dtype == np.uint8 and pictures.ndim == 4 and pictures.shape[-1] == 3
        if not is_set or len(pictures) == 0:
            raise ValueError(
                f"expected uint8 pictures (N, H, W, 3), got {pictures.dtype} of shape {pictures.shape}"
            )
    if len({pictures.shape for pictures in sets}) > 1:
        shapes = " and ".join(str(pictures.shape) for pictures in sets)
        raise ValueError(f"sets of pictures of shapes {shapes} cannot be compared picture by picture")


def read_pictures(path: Path) -> np.ndarray:
    """Pictures (N H W 3, uint8) of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds no such array.
    """
    pictures = _array(path, "arr_0")
    if pictures is None or pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise ValueError(f"{path}: expected arr_0 of uint8 pictures (N, H, W, 3)")
    return pictures


def read_labels(path: Path) -> np.ndarray | None:
    """The class (N) of each picture of a file; None where it names none."""
    return _array(path, "labels")


def read_class_names(path: Path) -> dict[int, str]:
    """The classes of a reference file, by label."""
    labels, names = _array(path, "class_labels"), _array(path, "class_names")
    return {int(label): str(name) for label, name in zip(labels, names, strict=True)}


def _array(path: Path, name: str) -> np.ndarray | None:
    """One array of an npz file, mapped where it can be; None where the file has none of that name."""
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                return None
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                return _mapped(path, member.header_offset, member.file_size)
            with archive.open(member) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # zip, zlib, numpy's header parser and seek each raise their own kinds
        raise ValueError(f"{path}: damaged or no npz file of arrays ({str(error)[:120]})") from None


def _mapped(path: Path, start: int, size: int) -> np.ndarray:
    """The array of a stored zip member that begins at byte `start`."""
    with path.open("rb") as file:
        file.seek(start)
        header = file.read(_LOCAL_HEADER)
        member = start + _LOCAL_HEADER + int.from_bytes(header[26:28], "little")
        member += int.from_bytes(header[28:30], "little")
        file.seek(member)
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"npy format {version}, expected 1.0 or 2.0")
        shape, is_fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("holds Python objects, which would have to be unpickled")
        num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if file.tell() - member + num_bytes > size:
            raise ValueError(f"an array of {shape} does not fit into {size} bytes")
        if num_bytes == 0 or is_fortran:
            file.seek(member)
            return np.lib.format.read_array(file, allow_pickle=False)
        return np.memmap(path, dtype, "r", file.tell(), shape)
