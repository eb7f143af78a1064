"""Stage: score one set of pictures, reconstructed or generated, against the reference set.

`python -m harness.metrics.score <config.yaml> <out_dir>`; the result is {"metrics": {key: value, stderr,
unit, direction, count, judge}}. Pictures of another size than the reference's are resized to it (bicubic,
antialiased, rounded).
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from encoder.metrics.lpips import Lpips
from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device
from encoder.runtime.stage import main, progress
from encoder.token_store import TokenStore
from harness.metrics.config import FEATURES, PICTURES, Judge, ReferenceConfig, ScoreConfig, lpips_judge
from harness.metrics.features import Features, extract, load_extractor
from harness.metrics.numbers import (
    Against,
    generation_metrics,
    lpips_metric,
    reconstruction_metrics,
    token_metric,
)
from harness.metrics.picture_sets import read_labels, read_pictures
from harness.metrics.reference import published, read_reference
from harness.metrics.token_distance import FlatTokens


def run(config: ScoreConfig, out_dir: Path) -> dict:
    """The numbers of one set of pictures; see `scores`."""
    reference, judge = read_reference(Path(config.reference))
    metrics = scores(config, reference, judge, out_dir)
    return {"metrics": {reference.prefix + key: metric for key, metric in metrics.items()}}


def scores(config: ScoreConfig, reference: ReferenceConfig, judge: Judge, out_dir: Path) -> dict[str, dict]:
    """Each number by its key, without the reference's prefix.

    Raises:
        ValueError: the set and the reference differ in number of pictures.
    """
    folder = Path(config.reference)
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
        labels = _labels(Path(config.pictures))
        against = (
            published(folder, reference.statistics)
            if reference.statistics
            else Against.of(seen_real, _labels(folder / PICTURES))
        )
        metrics = generation_metrics(seen, against, config.kernel_subset_size, judge, labels)
        return metrics | _token_metrics(config, len(pictures))
    metrics = reconstruction_metrics(pictures, real, seen, seen_real, judge)
    if config.lpips is not None:
        network = Lpips(config.lpips_net, config.lpips)
        sizes = {"device": device, "batch_size": config.batch_size}
        metrics |= lpips_metric(network, lpips_judge(config), pictures, real, **sizes)
    return metrics


def _labels(path: Path) -> Tensor | None:
    """The classes (N) of a file's pictures, where it says them."""
    labels = read_labels(path)
    return None if labels is None else torch.from_numpy(np.array(labels)).long()


def _token_metrics(config: ScoreConfig, num_pictures: int) -> dict[str, dict]:
    """Of the set's tokens, where they are kept."""
    if config.tokens is None or config.real_tokens is None:
        return {}
    ours, real = (TokenStore(ROOT / folder) for folder in (config.tokens, config.real_tokens))
    return token_metric(FlatTokens.of(ours, config.tokens_first, num_pictures), FlatTokens.of(real))


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
