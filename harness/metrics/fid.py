"""Frechet distance between two sets of features, each seen as a Gaussian. It is the FID only with the 2015
Inception features; with others the extractor is part of the name (`FD-lite0`). Letters: N pictures, D
feature width.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor


@dataclasses.dataclass
class Moments:
    """Count, sum and sum of outer products of features, in float64: all that the distance needs, however
    many pictures.
    """

    num_samples: int
    total: Tensor  # D
    outer: Tensor  # D D

    @classmethod
    def empty(cls, width: int) -> "Moments":
        """Moments of no pictures."""
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))

    def update(self, features: Tensor) -> None:
        """Add a batch (N D)."""
        features = features.detach().cpu().double()
        self.num_samples += len(features)
        self.total += features.sum(dim=0)
        self.outer += features.T @ features

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
        mean = self.mean()
        return (self.outer - self.num_samples * torch.outer(mean, mean)) / (self.num_samples - 1)


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


def distance(moments_1: Moments, moments_2: Moments) -> float:
    """Squared Frechet distance between two sets of features, from their moments."""
    return frechet_distance(
        moments_1.mean(), moments_1.covariance(), moments_2.mean(), moments_2.covariance()
    )
