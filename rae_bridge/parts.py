"""Pictures that many processes make batch by batch: a file for each batch, kept over a kill until all are
there, then joined to ADM's npz.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from encoder.runtime import checkpoint
from encoder.runtime.ranks import Ranks

PARTS = "parts"  # folder of the files, below the stage's
IMAGES = "images"


def batches(indices: range, batch_size: int) -> list[range]:
    """Consecutive indices, `batch_size` at a time."""
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def own(parts: Sequence[range], ranks: Ranks) -> list[range]:
    """Those of the batches that are this process's."""
    return list(parts[ranks.rank :: ranks.world])


def path_of(folder: Path, part: range) -> Path:
    """Where the stage in `folder` keeps a batch."""
    return folder / PARTS / f"{part.start:08d}.safetensors"


def write_npz(path: Path, parts: Sequence[Path], labels: Tensor, name: str = IMAGES) -> None:
    """ADM's file (arr_0: uint8 M S S 3; labels M) from the tensors `name` of batches, one in memory at a
    time."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for i, part in enumerate(parts):
                images = checkpoint.load_tensors(part)[name].numpy()
                if i == 0:
                    shape = {"shape": (len(labels), *images.shape[1:])}
                    header = shape | {"fortran_order": False, "descr": images.dtype.str}
                    np.lib.format.write_array_header_2_0(file, header)
                file.write(images.tobytes())
        with archive.open("labels.npy", "w") as file:
            np.lib.format.write_array(file, labels.numpy())
