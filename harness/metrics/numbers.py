"""The generation suite's numbers under their names, with unit, direction, count and standard error.

The judge is EfficientNet-lite0, so its name is in each key. `stderr` is over the pictures: of a mean for
PSNR and SSIM; of a share for precision and recall (the other set's manifold held fixed); by the delete-d
jackknife over the random subsets for the kernel distance; none for the Frechet distance, whose spread only
other seeds can show.
"""

import dataclasses
import math

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from harness.metrics import fid, psnr_ssim
from harness.metrics.config import Metric
from harness.metrics.features import Features
from harness.metrics.inception_score import inception_score
from harness.metrics.kid import kernel_distance
from harness.metrics.precision_recall import precision_recall

_BATCH_SIZE = 100  # pictures that PSNR and SSIM hold in float64 at a time


def generation_metrics(seen: Features, seen_real: Features, kernel_subset_size: int) -> dict[str, dict]:
    """How generated pictures compare with as many real ones, as plain values by key."""
    num = len(seen.pooled)
    kernel = kernel_distance(seen.pooled, seen_real.pooled, subset_size=kernel_subset_size)
    shares = precision_recall(seen.pooled, seen_real.pooled)
    score = inception_score(seen.logits)
    metrics = {
        "gFD-lite0": Metric(
            value=_frechet(seen, seen_real), unit="", higher_is_better=False, num_samples=num
        ),
        "KID-lite0": Metric(
            value=kernel.mean,
            stderr=_jackknife(kernel.std, kernel_subset_size, num),
            unit="",
            higher_is_better=False,
            num_samples=num,
        ),
        "precision-lite0": _share(shares.precision, num),
        "recall-lite0": _share(shares.recall, len(seen_real.pooled)),
        "IS-lite0": Metric(value=score.mean, unit="", higher_is_better=True, num_samples=num),
    }
    return {key: dataclasses.asdict(metric) for key, metric in metrics.items()}


def reconstruction_metrics(
    pictures: np.ndarray, real: np.ndarray, seen: Features, seen_real: Features
) -> dict[str, dict]:
    """How reconstructions compare with their originals (both N H W 3 uint8, in one order), as plain values
    by key."""
    psnrs, ssims = [], []
    for start in range(0, len(pictures), _BATCH_SIZE):
        pixels, pixels_hat = (_pixels(part[start : start + _BATCH_SIZE]) for part in (real, pictures))
        psnrs.append(psnr_ssim.psnr(pixels, pixels_hat))
        ssims.append(psnr_ssim.ssim(pixels, pixels_hat))
    metrics = {
        "rFD-lite0": Metric(
            value=_frechet(seen, seen_real), unit="", higher_is_better=False, num_samples=len(pictures)
        ),
        "PSNR": _mean(torch.cat(psnrs), "dB"),
        "SSIM": _mean(torch.cat(ssims), ""),
    }
    return {key: dataclasses.asdict(metric) for key, metric in metrics.items()}


def _frechet(seen: Features, seen_real: Features) -> float:
    return fid.distance(fid.moments_of(seen.pooled), fid.moments_of(seen_real.pooled))


def _mean(values: Tensor, unit: str) -> Metric:
    """Mean of a value per picture, with its standard error; undefined where a picture's value is infinite."""
    num = len(values)
    if not bool(values.isfinite().all()):
        return Metric(value=None, unit=unit, higher_is_better=True, num_samples=num)
    stderr = float(values.std()) / math.sqrt(num) if num > 1 else None
    return Metric(
        value=float(values.mean()), stderr=stderr, unit=unit, higher_is_better=True, num_samples=num
    )


def _share(share: float, num: int) -> Metric:
    return Metric(
        value=share,
        stderr=math.sqrt(share * (1 - share) / num),
        unit="",
        higher_is_better=True,
        num_samples=num,
    )


def _jackknife(std: float, subset_size: int, num: int) -> float | None:
    """Standard error of a mean of smooth statistics from its spread over subsets drawn without replacement.

    Source: Shao and Wu, Annals of Statistics 17(3), 1989, Eq. 1.3 (delete-d jackknife, d = num -
    subset_size).
    """
    return std * math.sqrt(subset_size / (num - subset_size)) if num > subset_size else None


def _pixels(pictures: np.ndarray) -> Tensor:
    return rearrange(torch.from_numpy(pictures), "n h w c -> n c h w").double() / 255
