"""The Frechet distance of drawn pictures to real ones, as they stream by.

The network that sees them is named in the config (`JudgeConfig`) and found when asked for: metrics live above
this package. Letters: N pictures, S pixels on a side, D feature width.
"""

import copy
import importlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from encoder.config import ROOT
from rae_bridge.config import JudgeConfig
from rae_bridge.ranks import Ranks


class FeatureMoments:
    """Count, sum and sum of outer products of features, in float64; those of several processes merge."""

    def __init__(self) -> None:
        self.count, self.total, self.outer = 0, torch.zeros(()), torch.zeros(())

    def update(self, features: Tensor) -> None:
        """Take in features (N D)."""
        features = features.cpu().double()
        self.count += len(features)
        self.total = self.total + features.sum(dim=0)
        self.outer = self.outer + features.T @ features

    def merge(self, other: "FeatureMoments") -> None:
        """Take in all that another has seen."""
        self.count += other.count
        self.total, self.outer = self.total + other.total, self.outer + other.outer

    def gaussian(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (D,) and unbiased covariance (D D).

        Raises:
            ValueError: fewer than two pictures.
        """
        if self.count < 2:
            raise ValueError(f"a Frechet distance needs at least 2 pictures, got {self.count}")
        mean = self.total / self.count
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return mean.numpy(), covariance.numpy()


def frechet_distance(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """Squared distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians (mean D, covariance D D).

    Source: Heusel et al., arXiv:1706.08500v6, Eq. 6.
    """
    (mean_1, cov_1), (mean_2, cov_2) = first, second
    values, vectors = np.linalg.eigh(cov_1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_2 @ root).clip(min=0)).sum()
    return float(((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1) + np.trace(cov_2) - 2 * cross)


class Judge:
    """Shows pictures to a network and compares what it sees with a reference file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the network's name leads nowhere, or the file holds neither features nor a Gaussian.
    """

    def __init__(self, config: JudgeConfig, device: str = "cpu") -> None:
        self.network = find_network(config.network).to(device)
        self.device = device
        self.reference = load_reference(ROOT / config.reference)
        self.moments = FeatureMoments()

    @torch.no_grad()
    def see(self, images: Tensor, batch_size: int = 16) -> None:
        """Take in uint8 images (N S S 3)."""
        for batch in images.split(batch_size):
            self.moments.update(self.network(batch.permute(0, 3, 1, 2).contiguous().to(self.device)).pooled)

    def again(self) -> "Judge":
        """The same judge, having seen nothing."""
        fresh = copy.copy(self)
        fresh.moments = FeatureMoments()
        return fresh

    def merged(self, ranks: Ranks) -> "Judge":
        """A judge that has seen what those of all processes have."""
        everyone = self.again()
        for moments in ranks.gather(self.moments):
            everyone.moments.merge(moments)
        return everyone

    def distance(self) -> float:
        """The squared Frechet distance of what was seen to the reference."""
        return frechet_distance(self.moments.gaussian(), self.reference)


def find_network(name: str) -> torch.nn.Module:
    """An instance of `module:Class`."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"judge network '{name}' is not an importable module:Class ({error})") from None


def load_reference(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance from an npz file of features (`pooled` N D) or of a Gaussian (`mu`, `sigma`)."""
    if not path.is_file():
        raise FileNotFoundError(f"reference not found: {path}; harness.metrics.reference writes one")
    with np.load(path, allow_pickle=False) as archive:
        if "pooled" in archive:
            moments = FeatureMoments()
            moments.update(torch.from_numpy(archive["pooled"]))
            return moments.gaussian()
        if {"mu", "sigma"} <= set(archive):
            return archive["mu"].astype(np.float64), archive["sigma"].astype(np.float64)
        raise ValueError(f"{path}: expected `pooled`, or `mu` and `sigma`; got {sorted(archive)}")
