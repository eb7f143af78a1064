"""Frechet distance between two sets of features, each seen as a Gaussian. It is the FID only with the 2015
Inception features; with others the extractor is part of the name (`FD-lite0`). Letters: N pictures, D
feature width.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.linalg.blas import dsyrk
from torch import Tensor

_ROWS = 1024  # features that are held in float64 at a time


@dataclasses.dataclass
class Moments:
    """Count, sum and sum of outer products of features, in float64: all that the distance needs, however
    many pictures (33 MB at D = 2048). Those of several processes merge.
    """

    num_samples: int
    total: Tensor  # D
    outer: Tensor  # D D; only the upper triangle is kept

    @classmethod
    def empty(cls, width: int) -> "Moments":
        """Moments of no pictures."""
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))

    def update(self, features: Tensor) -> None:
        """Add a batch (N D)."""
        for part in features.detach().split(_ROWS):
            rows = part.cpu().double()
            self.num_samples += len(rows)
            self.total += rows.sum(dim=0)
            # In place, and half the work of a product: the sum is symmetric. BLAS reads arrays column by
            # column, so both transposes are views and its lower triangle is our upper one.
            dsyrk(1.0, rows.numpy().T, beta=1.0, c=self.outer.numpy().T, lower=1, overwrite_c=1)

    def merge(self, other: "Moments") -> None:
        """Add what another process saw."""
        self.num_samples += other.num_samples
        self.total += other.total
        self.outer += other.outer

    def mean(self) -> Tensor:
        """Mean, D."""
        return self.total / self.num_samples

    def covariance(self) -> Tensor:
        """Unbiased covariance, D D.

        Raises:
            ValueError: fewer than two pictures.
        """
        if self.num_samples < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, got {self.num_samples}")
        covariance = self.outer.triu()
        covariance.addr_(self.mean(), self.mean(), alpha=-self.num_samples).div_(self.num_samples - 1)
        return covariance.triu_().add_(covariance.triu(1).T)

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays by name, for a file or another process."""
        return {
            "num_samples": np.asarray(self.num_samples),
            "total": self.total.numpy(),
            "outer": self.outer.numpy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Moments":
        """From what `arrays` gave."""
        total, outer = (torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in ("total", "outer"))
        return cls(int(arrays["num_samples"]), total, outer)


def moments_of(features: Tensor) -> Moments:
    """Moments of features (N D) that are in memory."""
    moments = Moments.empty(features.shape[1])
    moments.update(features)
    return moments


def frechet_distance(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    """Squared Frechet distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians (means D,
    covariances D D).

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is
    symmetric: exact for singular covariances too, and half the time of the general eigenvalues that
    torch-fidelity takes.

    Source: Heusel et al., arXiv:1706.08500v6, Eq. 6; equal to
    torch_fidelity.metric_fid.fid_statistics_to_metric.
    """
    mean_1, covariance_1, mean_2, covariance_2 = (
        np.asarray(value, dtype=np.float64) for value in (mean_1, covariance_1, mean_2, covariance_2)
    )
    values, vectors = np.linalg.eigh(covariance_1)
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    roots = np.sqrt(np.linalg.eigvalsh(root @ covariance_2 @ root).clip(min=0.0))
    difference = mean_1 - mean_2
    return float(
        difference @ difference + np.trace(covariance_1) + np.trace(covariance_2) - 2.0 * roots.sum()
    )


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
    return frechet_distance(moments.mean(), moments.covariance(), reference.mean, reference.cov)
