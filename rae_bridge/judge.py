"""The Frechet distance of drawn pictures to real ones, as they stream by.

The network that sees them is named in the config (`JudgeConfig`) and found when asked for: metrics live above
this package. Letters: N pictures, S pixels on a side.
"""

import copy
import importlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from encoder.metrics.frechet import Moments, frechet_distance, moments_of
from encoder.runtime.config import ROOT
from rae_bridge.config import JudgeConfig
from rae_bridge.ranks import Ranks


class FrechetJudge:
    """Shows pictures to a network and compares what it sees with a reference file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the network's name leads nowhere, or the file holds neither features nor a Gaussian.
    """

    def __init__(self, config: JudgeConfig, device: str = "cpu") -> None:
        self.network = find_network(config.network).to(device)
        self.device = device
        self.reference = load_reference(ROOT / config.reference)
        self.moments: Moments | None = None  # of no picture yet

    @torch.no_grad()
    def see(self, images: Tensor, batch_size: int = 16) -> None:
        """Take in uint8 images (N S S 3)."""
        for batch in images.split(batch_size):
            features = self.network(batch.permute(0, 3, 1, 2).contiguous().to(self.device)).pooled
            self.moments = self.moments or Moments.empty(features.shape[1])
            self.moments.update(features)

    def again(self) -> "FrechetJudge":
        """The same judge, having seen nothing."""
        fresh = copy.copy(self)
        fresh.moments = None
        return fresh

    def merged(self, ranks: Ranks) -> "FrechetJudge":
        """A judge that has seen what those of all processes have."""
        everyone = self.again()
        for moments in filter(None, ranks.gather(self.moments)):
            everyone.moments = everyone.moments or Moments.empty(len(moments.total))
            everyone.moments.merge(moments)
        return everyone

    def distance(self) -> float:
        """The squared Frechet distance of what was seen to the reference.

        Raises:
            ValueError: fewer than two pictures were seen.
        """
        if self.moments is None:
            raise ValueError("a Frechet distance needs at least 2 pictures, got 0")
        return frechet_distance(self.moments.mean(), self.moments.covariance(), *self.reference)


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
            moments = moments_of(torch.from_numpy(archive["pooled"]))
            return moments.mean().numpy(), moments.covariance().numpy()
        if {"mu", "sigma"} <= set(archive):
            return archive["mu"].astype(np.float64), archive["sigma"].astype(np.float64)
        raise ValueError(f"{path}: expected `pooled`, or `mu` and `sigma`; got {sorted(archive)}")
