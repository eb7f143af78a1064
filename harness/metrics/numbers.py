"""The generation suite's numbers under their names, with unit, direction, count and standard error.

The judge's name is in each key that depends on it; the 2015 Inception alone has the reserved ones (FID, IS).
`stderr` is over the pictures: of a mean for PSNR, SSIM and LPIPS; of a share for precision and recall (the
other set's manifold held fixed); by the delete-d jackknife over the random subsets for the kernel distance;
over the ten chunks for the Inception score; none for the Frechet distances, whose spread only other seeds
can show.
"""

import dataclasses
import math

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from encoder.metrics.lpips import Lpips
from encoder.metrics.networks import LITE0
from encoder.metrics.probes import linear_probe
from harness.metrics import fid, psnr_ssim
from harness.metrics.config import TOKEN_DISTANCE, Judge, Metric
from harness.metrics.features import Features
from harness.metrics.inception_score import inception_score
from harness.metrics.kid import kernel_distance
from harness.metrics.picture_sets import check_sets
from harness.metrics.precision_recall import precision_recall
from harness.metrics.token_distance import Rows, relative_token_distance

_BATCH_SIZE = 100  # pictures that PSNR and SSIM hold in float64 at a time
_NUM_CHUNKS = 10  # of the Inception score
LITE0_JUDGE = Judge(extractor=LITE0, label=LITE0)


@dataclasses.dataclass(frozen=True)
class Against:
    """What generated pictures are compared with: moments, and features where single pictures are there."""

    moments: fid.Moments | fid.Statistics
    spatial: fid.Moments | fid.Statistics | None = None
    pooled: Tensor | None = None  # N D, for KID, precision and recall
    labels: Tensor | None = None  # N, the classes of these
    name: str | None = None  # of published statistics

    @classmethod
    def of(cls, seen: Features, labels: Tensor | None = None) -> "Against":
        """A set of pictures with their classes (N; none where one has none)."""
        has_labels = labels is not None and bool((labels >= 0).all())
        return cls(fid.moments_of(seen.pooled), seen.spatial, seen.pooled, labels if has_labels else None)


def generation_metrics(
    seen: Features,
    against: Against,
    kernel_subset_size: int,
    judge: Judge = LITE0_JUDGE,
    labels: Tensor | None = None,
) -> dict[str, dict]:
    """How generated pictures, asked to be of classes `labels` (N), compare with real ones, as plain values by
    key."""
    num = len(seen.pooled)
    down = {"unit": "", "higher_is_better": False, "num_samples": num}
    up = down | {"higher_is_better": True}
    metrics = {"gFD": Metric(value=fid.distance(fid.moments_of(seen.pooled), against.moments), **down)}
    if seen.spatial is not None and against.spatial is not None:
        metrics["sFD"] = Metric(value=fid.distance(seen.spatial, against.spatial), **down)
    if against.pooled is not None:
        kernel = kernel_distance(seen.pooled, against.pooled, subset_size=kernel_subset_size)
        stderr = _jackknife(kernel.std, kernel_subset_size, num)
        metrics["KID"] = Metric(value=kernel.mean, stderr=stderr, **down)
        shares = precision_recall(seen.pooled, against.pooled)
        metrics["precision"] = _share(shares.precision, num)
        metrics["recall"] = _share(shares.recall, len(against.pooled))
        if against.labels is not None and labels is not None:
            metrics["class-accuracy"] = class_accuracy(seen.pooled, labels, against.pooled, against.labels)
    metrics = {judge.key(name): metric for name, metric in metrics.items()}
    if seen.logits is not None:
        score = inception_score(seen.logits, _NUM_CHUNKS)
        stderr = score.std / math.sqrt(_NUM_CHUNKS - 1)  # score.std is of these ten, not unbiased
        key = judge.key("IS")
        metrics[key] = Metric(value=score.mean, stderr=stderr, **up)
        metrics[f"{key}/std"] = Metric(value=score.std, **down | {"higher_is_better": None})
    return _plain(metrics, judge, against.name)


def class_accuracy(features: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> Metric:
    """% of pictures (features N D) that a linear probe on what the judge sees, fitted to real pictures (M D,
    M), takes for the class that they were asked to be of (labels N)."""
    value, num = linear_probe(real, real_labels, features, labels), len(labels)
    stderr = math.sqrt(value * (100 - value) / num)
    return Metric(value=value, stderr=stderr, unit="%", higher_is_better=True, num_samples=num)


def token_metric(tokens: Rows, real: Rows) -> dict[str, dict]:
    """How far tokens (M F) are from real ones (R F), as plain values by key."""
    value = relative_token_distance(tokens, real)
    metric = Metric(value=value, unit="", higher_is_better=False, num_samples=len(tokens))
    return _plain({TOKEN_DISTANCE: metric})


def reconstruction_metrics(
    pictures: np.ndarray,
    real: np.ndarray,
    seen: Features,
    seen_real: Features,
    judge: Judge = LITE0_JUDGE,
) -> dict[str, dict]:
    """How reconstructions compare with their originals (both N H W 3 uint8, in one order), as plain values
    by key.

    Raises:
        ValueError: the sets are not of one shape, or a feature is not finite.
    """
    check_sets(real, pictures)
    psnrs, ssims = [], []
    for start in range(0, len(pictures), _BATCH_SIZE):
        pixels, pixels_hat = (_pixels(part[start : start + _BATCH_SIZE]) for part in (real, pictures))
        psnrs.append(psnr_ssim.psnr(pixels, pixels_hat))
        ssims.append(psnr_ssim.ssim(pixels, pixels_hat))
    value = fid.distance(fid.moments_of(seen.pooled), fid.moments_of(seen_real.pooled))
    distance = Metric(value=value, unit="", higher_is_better=False, num_samples=len(pictures))
    means = {
        "PSNR": _mean(torch.cat(psnrs), "dB", higher_is_better=True),
        "SSIM": _mean(torch.cat(ssims), "", higher_is_better=True),
    }
    return _plain({judge.key("rFD"): distance}, judge) | _plain(means)


def lpips_metric(
    network: Lpips, judge: Judge, pictures: np.ndarray, real: np.ndarray, *, device: str, batch_size: int
) -> dict[str, dict]:
    """LPIPS of reconstructions (both N H W 3 uint8, in one order), as plain values by key."""
    check_sets(real, pictures)
    network, values = network.to(device), []
    for start in range(0, len(pictures), batch_size):
        part = slice(start, start + batch_size)
        pixels, pixels_hat = (_pixels(each[part]).float().to(device) for each in (real, pictures))
        values.append(network(pixels, pixels_hat).double().cpu())
    return _plain({judge.key("LPIPS"): _mean(torch.cat(values), "", higher_is_better=False)}, judge)


def _plain(
    metrics: dict[str, Metric], judge: Judge | None = None, against: str | None = None
) -> dict[str, dict]:
    by = {"judge": None if judge is None else str(judge), "against": against}
    return {key: dataclasses.asdict(metric) | by for key, metric in metrics.items()}


def _mean(values: Tensor, unit: str, *, higher_is_better: bool) -> Metric:
    """Mean of a value per picture, with its standard error; undefined where a picture's value is infinite.

    Raises:
        ValueError: a picture's value is not a number.
    """
    num = len(values)
    if bool(values.isnan().any()):
        raise ValueError(f"the value of picture {int(values.isnan().nonzero()[0])} is not a number")
    if not bool(values.isfinite().all()):
        return Metric(value=None, unit=unit, higher_is_better=higher_is_better, num_samples=num)
    stderr = float(values.std()) / math.sqrt(num) if num > 1 else None
    return Metric(
        value=float(values.mean()),
        stderr=stderr,
        unit=unit,
        higher_is_better=higher_is_better,
        num_samples=num,
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
    return rearrange(torch.from_numpy(np.array(pictures)), "n h w c -> n c h w").double() / 255
