"""Stage: score one set of pictures, reconstructed or generated, against the reference set.

`python -m harness.metrics.score <config.yaml> <out_dir>`; the result is {"metrics": {key: value, stderr,
unit, direction, count}}.
"""

from pathlib import Path

import numpy as np

from encoder.stage import main, progress
from harness.metrics.config import ScoreConfig
from harness.metrics.features import Features, Lite0, extract
from harness.metrics.numbers import generation_metrics, reconstruction_metrics
from harness.metrics.reference import FEATURES, PICTURES


def run(config: ScoreConfig, out_dir: Path) -> dict:
    """The numbers of one set of pictures.

    Raises:
        ValueError: the set and the reference differ in number or size of pictures.
    """
    pictures = read_pictures(Path(config.pictures))
    real = read_pictures(Path(config.reference) / PICTURES)
    if pictures.shape != real.shape:
        raise ValueError(
            f"{config.pictures} holds pictures {pictures.shape}, the reference {real.shape}; "
            "both must be as many and as large"
        )
    seen = extract(Lite0(), pictures, report=lambda done: progress(out_dir, done, len(pictures), "pictures"))
    seen_real = Features.load(Path(config.reference) / FEATURES)
    if config.kind == "reconstruction":
        return {"metrics": reconstruction_metrics(pictures, real, seen, seen_real)}
    return {"metrics": generation_metrics(seen, seen_real, config.kernel_subset_size)}


def read_pictures(path: Path) -> np.ndarray:
    """Pictures (N H W 3, uint8) of an npz file.

    Raises:
        ValueError: the file holds no such array.
    """
    with np.load(path, allow_pickle=False) as archive:
        pictures = archive.get("arr_0")
    if pictures is None or pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise ValueError(f"{path}: expected arr_0 of uint8 pictures (N, H, W, 3)")
    return pictures


if __name__ == "__main__":
    main(ScoreConfig, run)
