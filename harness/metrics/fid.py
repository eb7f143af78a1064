"""The FID: the Frechet distance with the 2015 Inception features; with others the extractor is part of the
name (`FD-lite0`). Letter: D feature width.
"""

import dataclasses
from pathlib import Path

import numpy as np

from encoder.metrics.frechet import Moments, frechet_distance, moments_of

__all__ = ["Moments", "Statistics", "distance", "frechet_distance", "moments_of"]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A Gaussian as papers publish it: ADM's `mu` and `sigma`, or its `mu_s` and `sigma_s` for sFID."""

    mean: np.ndarray  # D, float64
    cov: np.ndarray  # D D, float64

    @classmethod
    def load(cls, path: Path, mean: str = "mu", cov: str = "sigma") -> "Statistics":
        """Two arrays of an npz file; nothing is unpickled.

        Raises:
            ValueError: the file is damaged, or its arrays are no mean and covariance.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                mu, sigma = (np.asarray(archive[name], dtype=np.float64) for name in (mean, cov))
        except Exception as error:  # zip, zlib and numpy each raise their own kinds for a damaged file
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise ValueError(f"statistics damaged or unsafe: {path} ({reason})") from None
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not np.isfinite(sigma).all():
            raise ValueError(f"{path}: {mean} {mu.shape} and {cov} {sigma.shape} are no mean and covariance")
        return cls(mu, sigma)


def distance(moments: Moments, reference: Moments | Statistics) -> float:
    """Squared Frechet distance of a set of features to another set, or to published statistics.

    Raises:
        ValueError: they are of features of another width.
    """
    width = len(moments.total)
    if isinstance(reference, Moments):
        reference = Statistics(reference.mean().numpy(), reference.covariance().numpy())
    if len(reference.mean) != width:
        raise ValueError(f"statistics of {len(reference.mean)} features, the extractor gives {width}")
    mean, cov = moments.mean().numpy(), moments.covariance().numpy()
    return frechet_distance(mean, cov, reference.mean, reference.cov, overwrite_first=True)
