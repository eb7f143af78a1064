"""Stage: score one set of pictures, reconstructed or generated, against the reference set.

`python -m harness.metrics.score <config.yaml> <out_dir>`; the result is {"metrics": {key: value, stderr,
unit, direction, count, judge}}. Pictures of another size than the reference's are resized to it (bicubic,
antialiased, rounded).
"""

from pathlib import Path

import numpy as np
from PIL import Image

from encoder.metrics.lpips import Lpips
from encoder.runtime.device import require_device
from encoder.runtime.stage import main, progress
from harness.metrics.config import FEATURES, PICTURES, ScoreConfig, lpips_judge
from harness.metrics.features import Features, extract, load_extractor
from harness.metrics.numbers import Against, generation_metrics, lpips_metric, reconstruction_metrics
from harness.metrics.picture_sets import read_pictures
from harness.metrics.reference import published, read_reference


def run(config: ScoreConfig, out_dir: Path) -> dict:
    """The numbers of one set of pictures.

    Raises:
        ValueError: the set and the reference differ in number of pictures.
    """
    folder = Path(config.reference)
    reference, judge = read_reference(folder)
    pictures = read_pictures(Path(config.pictures))
    real = read_pictures(folder / PICTURES)
    if len(pictures) != len(real) and (config.kind == "reconstruction" or reference.statistics is None):
        counts = f"{config.pictures} holds {len(pictures)} pictures, the reference {len(real)}"
        raise ValueError(f"{counts}; both must be as many")
    pictures = resized(pictures, real.shape[1:3])
    device = str(require_device(config.device))
    seen = extract(
        load_extractor(reference, device),
        pictures,
        batch_size=config.batch_size,
        device=device,
        report=lambda done: progress(out_dir, done, len(pictures), "pictures"),
    )
    seen_real = Features.load(folder / FEATURES)
    if config.kind == "generation":
        against = published(folder, reference.statistics) if reference.statistics else Against.of(seen_real)
        return {"metrics": generation_metrics(seen, against, config.kernel_subset_size, judge)}
    metrics = reconstruction_metrics(pictures, real, seen, seen_real, judge)
    if config.lpips is not None:
        network = Lpips(config.lpips_net, config.lpips)
        sizes = {"device": device, "batch_size": config.batch_size}
        metrics |= lpips_metric(network, lpips_judge(config), pictures, real, **sizes)
    return {"metrics": metrics}


def resized(pictures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pictures (N H W 3, uint8) at `size` (rows, columns); those of that size as they are."""
    if pictures.shape[1:3] == size:
        return pictures
    side = (size[1], size[0])
    return np.stack(
        [np.asarray(Image.fromarray(one).resize(side, Image.Resampling.BICUBIC)) for one in pictures]
    )


if __name__ == "__main__":
    main(ScoreConfig, run)
