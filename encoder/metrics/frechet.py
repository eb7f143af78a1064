"""The Frechet distance between two sets of features, each seen as a Gaussian: the mathematics that the judges
of training and the metrics of the harness share. Letters: N pictures, D feature width.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.linalg import eigh
from scipy.linalg.blas import dsyrk, dtrmm
from scipy.linalg.lapack import dpotrf
from torch import Tensor

from encoder.metrics.checks import check_features, check_gaussian

_ROWS = 1024  # features that are held in float64 at a time
_NEGATIVE = 1e-3  # of the largest eigenvalue: what rounding makes of a zero stays far below


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
        """Add a batch (N D).

        Raises:
            ValueError: it is of another width, or a row is not finite (rows are counted over all batches).
        """
        check_features(features, first=self.num_samples)
        self._check_width(features.shape[1])
        for part in features.detach().split(_ROWS):
            rows = part.cpu().double()
            self.num_samples += len(rows)
            self.total += rows.sum(dim=0)
            # In place, and half the work of a product: the sum is symmetric. BLAS reads arrays column by
            # column, so both transposes are views and its lower triangle is our upper one.
            dsyrk(1.0, rows.numpy().T, beta=1.0, c=self.outer.numpy().T, lower=1, overwrite_c=1)

    def merge(self, other: "Moments") -> None:
        """Add what another process saw.

        Raises:
            ValueError: it is of another width.
        """
        self._check_width(len(other.total))
        self.num_samples += other.num_samples
        self.total += other.total
        self.outer += other.outer

    def _check_width(self, width: int) -> None:
        if width != len(self.total):
            raise ValueError(f"features of width {width} cannot be added to those of width {len(self.total)}")

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
        for i in range(len(covariance)):  # the lower triangle, without another matrix in memory
            covariance[i + 1 :, i] = covariance[i, i + 1 :]
        return covariance

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays by name, for a file or another process."""
        return {
            "num_samples": np.asarray(self.num_samples),
            "total": self.total.numpy(),
            "outer": self.outer.numpy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Moments":
        """From what `arrays` gave.

        Raises:
            ValueError: a sum is missing, is of another shape, or is not finite.
        """
        missing = {"num_samples", "total", "outer"} - set(arrays)
        if missing:
            raise ValueError(f"moments without {sorted(missing)}")
        total, outer = (np.ascontiguousarray(arrays[name], np.float64) for name in ("total", "outer"))
        if total.ndim != 1 or outer.shape != (len(total), len(total)):
            raise ValueError(f"moments of shapes {total.shape} and {outer.shape}, expected (D,) and (D, D)")
        if not (np.isfinite(total).all() and np.isfinite(outer).all()):
            raise ValueError("moments that are not finite; the features they are of were not")
        total, outer = torch.from_numpy(total), torch.from_numpy(outer)
        return cls(int(arrays["num_samples"]), total, outer)


def moments_of(features: Tensor) -> Moments:
    """Moments of features (N D) that are in memory.

    Raises:
        ValueError: they are no rows of features, or one is not finite.
    """
    check_features(features)
    moments = Moments.empty(features.shape[-1])
    moments.update(features)
    return moments


def frechet_distance(
    mean_1: ArrayLike, cov_1: ArrayLike, mean_2: ArrayLike, cov_2: ArrayLike, *, overwrite_first: bool = False
) -> float:
    """Squared Frechet distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians (means D,
    covariances D D).

    overwrite_first: `cov_1` may be used as working space, if it is a float64 array.

    Raises:
        ValueError: a mean or covariance is not finite, is of another shape, or is no covariance.

    Source: Heusel et al., arXiv:1706.08500v6, Eq. 6; equal to
    torch_fidelity.metric_fid.fid_statistics_to_metric.
    """
    mean_1, mean_2, cov_2 = (np.asarray(each, np.float64) for each in (mean_1, mean_2, cov_2))
    cov_1 = (np.asarray if overwrite_first else np.array)(cov_1, np.float64)
    check_gaussian(mean_1, cov_1, "the first set's mean and covariance")
    check_gaussian(mean_2, cov_2, "the second set's mean and covariance")
    if len(mean_1) != len(mean_2):
        raise ValueError(f"Gaussians over {len(mean_1)} and {len(mean_2)} features cannot be compared")
    difference = mean_1 - mean_2
    traces = np.trace(cov_1) + np.trace(cov_2)
    return float(difference @ difference + traces - 2.0 * _trace_of_root(cov_1, cov_2))


def _trace_of_root(cov_1: np.ndarray, cov_2: np.ndarray) -> float:
    """tr (C1 C2)^(1/2), C1 overwritten: the roots of the eigenvalues of L' C2 L, symmetric, with C1 = L L'.

    Less than the time of the general eigenvalues that torch-fidelity takes, and one matrix beside the two.
    Where C1 is singular (fewer pictures than features) L is C1^(1/2).
    """
    diagonal = cov_1.diagonal().copy()
    lower, failed = dpotrf(cov_1.T, lower=1, clean=0, overwrite_a=1)  # LAPACK reads a transpose; so C1 itself
    product = np.array(cov_2, order="F")
    if failed:
        np.fill_diagonal(cov_1, diagonal)  # with the triangle that was not touched, C1 again
        values, vectors = np.linalg.eigh(cov_1, UPLO="L")
        root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
        product = root @ product @ root
    else:
        product = dtrmm(1.0, lower, product, side=0, lower=1, trans_a=1, overwrite_b=1)
        product = dtrmm(1.0, lower, product, side=1, lower=1, overwrite_b=1)
    values = eigh(product, eigvals_only=True, overwrite_a=True, check_finite=False, driver="ev")
    if values.min() < -_NEGATIVE * values.max():
        raise ValueError("one of the two covariances is none: a direction has a variance below zero")
    return float(np.sqrt(values.clip(min=0.0)).sum())
