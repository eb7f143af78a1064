"""Sets of pictures on disk: npz files in ADM's layout (arr_0: N H W 3 uint8) with labels. No torch here."""

from pathlib import Path

import numpy as np


def read_pictures(path: Path) -> np.ndarray:
    """Pictures (N H W 3, uint8) of a file.

    Raises:
        ValueError: the file holds no such array.
    """
    pictures = _read(path).get("arr_0")
    if pictures is None or pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise ValueError(f"{path}: expected arr_0 of uint8 pictures (N, H, W, 3)")
    return pictures


def read_labels(path: Path) -> np.ndarray:
    """The class (N) of each picture of a file."""
    return _read(path)["labels"]


def read_class_names(path: Path) -> dict[int, str]:
    """The classes of a reference file, by label."""
    content = _read(path)
    return {
        int(label): str(name)
        for label, name in zip(content["class_labels"], content["class_names"], strict=True)
    }


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)
