"""Stage: score one set of pictures, reconstructed or generated, against the reference set.

`python -m harness.metrics.score <config.yaml> <out_dir>`; the result is {"metrics": {key: value, stderr,
unit, direction, count}}.
"""

from pathlib import Path

from encoder.stage import main, progress
from harness.metrics.config import FEATURES, PICTURES, ScoreConfig
from harness.metrics.features import Features, Lite0, extract
from harness.metrics.numbers import generation_metrics, reconstruction_metrics
from harness.metrics.pictures import read_pictures


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


if __name__ == "__main__":
    main(ScoreConfig, run)
