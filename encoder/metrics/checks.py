"""What enters a metric has the right shape and is finite; else it is refused, naming the first bad row or
entry: a NaN that is let in comes out as a number or as another library's error.

Letters: N rows, D feature width.
"""

import numpy as np
from torch import Tensor

_ROWS = 1024  # that are looked at together: what is made on the way stays small
_ASYMMETRY = 1e-5  # of the largest entry: a covariance stored in float32 stays below


def check_features(features: Tensor, what: str = "features", *, least: int = 1, first: int = 0) -> None:
    """Features are N D, at least `least` rows, each finite; `first` is the number of the first one.

    Raises:
        ValueError: they are not.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{what}: expected rows of features (N, D), got {tuple(features.shape)}")
    if len(features) < least:
        raise ValueError(f"{what}: needs at least {least} rows, got {len(features)}")
    for start in range(0, len(features), _ROWS):
        bad = ~features[start : start + _ROWS].isfinite()
        if bool(bad.any()):
            row = int(bad.any(dim=1).nonzero()[0])
            column = int(bad[row].nonzero()[0])
            value = float(features[start + row, column])
            raise ValueError(
                f"{what}: row {first + start + row} is not finite ({value} in column {column}); "
                "no number is defined with it"
            )


def check_widths(one: Tensor, other: Tensor) -> None:
    """Raises: ValueError if two sets of features (N D) differ in D."""
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"features of width {one.shape[1]} and {other.shape[1]} cannot be compared")


def check_pictures(pixels: Tensor, pixels_hat: Tensor) -> None:
    """Two batches of pictures (B 3 H W) are of one shape and finite.

    Raises:
        ValueError: they are not.
    """
    if pixels.ndim != 4 or pixels.shape != pixels_hat.shape:
        raise ValueError(
            f"expected two batches of pictures of one shape (B, 3, H, W), got {tuple(pixels.shape)} and "
            f"{tuple(pixels_hat.shape)}"
        )
    for name, batch in (("pixels", pixels), ("pixels_hat", pixels_hat)):
        bad = ~batch.isfinite().flatten(1).all(dim=1)
        if bool(bad.any()):
            raise ValueError(f"{name}: picture {int(bad.nonzero()[0])} of {len(batch)} is not finite")


def check_gaussian(mean: np.ndarray, cov: np.ndarray, what: str = "mean and covariance") -> None:
    """A mean (D) and a covariance (D D): finite, symmetric, no variance below zero.

    Raises:
        ValueError: they are not.
    """
    if mean.ndim != 1 or len(mean) == 0 or cov.shape != (len(mean), len(mean)):
        raise ValueError(f"{what} {mean.shape} and {cov.shape} are no mean and covariance")
    if not np.isfinite(mean).all():
        i = int((~np.isfinite(mean)).argmax())
        raise ValueError(f"{what}: entry {i} of the mean is not finite ({mean[i]})")
    largest = 0.0
    for start in range(0, len(cov), _ROWS):
        rows = cov[start : start + _ROWS]
        if not np.isfinite(rows).all():
            i, j = (int(index[0]) for index in np.nonzero(~np.isfinite(rows)))
            raise ValueError(
                f"{what}: entry ({start + i}, {j}) of the covariance is not finite ({rows[i, j]})"
            )
        largest = max(largest, float(np.abs(rows).max()))
    if (cov.diagonal() < 0).any():
        i = int(cov.diagonal().argmin())
        raise ValueError(f"{what}: variance {i} is below zero ({cov[i, i]})")
    for start in range(0, len(cov), _ROWS):
        differences = np.abs(cov[start : start + _ROWS] - cov[:, start : start + _ROWS].T)
        if differences.max() > _ASYMMETRY * largest:
            i, j = (int(index) for index in np.unravel_index(differences.argmax(), differences.shape))
            i += start
            raise ValueError(
                f"{what}: the covariance is not symmetric: entry ({i}, {j}) is {cov[i, j]}, ({j}, {i}) is "
                f"{cov[j, i]}"
            )
