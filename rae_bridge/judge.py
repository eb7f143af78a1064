"""The Frechet distance of drawn pictures to real ones, as they stream by.

The network that sees them is named in the config (`JudgeConfig`). Letters: N pictures, S pixels on a side.
"""

import copy

import torch
from torch import Tensor

from encoder.metrics.frechet import Moments
from encoder.metrics.networks import load_network
from encoder.metrics.statistics import Statistics, distance
from encoder.runtime.config import ROOT
from encoder.runtime.ranks import Ranks
from rae_bridge.watch_config import JudgeConfig


class FrechetJudge:
    """Shows pictures to a network and compares what it sees with a reference file.

    Raises:
        FileNotFoundError: there is no such file, or the network's weights are not there.
        ValueError: the network's name leads nowhere, or a file is damaged or holds something else.
    """

    def __init__(self, config: JudgeConfig, device: str = "cpu") -> None:
        self.network = load_network(config.network, config.weights).to(device)
        self.device = device
        self.reference = Statistics.load(ROOT / config.reference)
        self.moments = Moments.empty(len(self.reference.mean))

    @torch.no_grad()
    def see(self, images: Tensor, batch_size: int = 16) -> None:
        """Take in uint8 images (N S S 3).

        Raises:
            ValueError: the network's features are of another width than the reference's, or not finite.
        """
        for batch in images.split(batch_size):
            features = self.network(batch.permute(0, 3, 1, 2).contiguous().to(self.device)).pooled
            self.moments.update(features)

    def again(self) -> "FrechetJudge":
        """The same judge, having seen nothing."""
        fresh = copy.copy(self)
        fresh.moments = Moments.empty(len(self.reference.mean))
        return fresh

    def merged(self, ranks: Ranks) -> "FrechetJudge":
        """A judge that has seen what those of all processes have."""
        everyone = self.again()
        for moments in ranks.gather(self.moments):
            everyone.moments.merge(moments)
        return everyone

    def distance(self) -> float:
        """The squared Frechet distance of what was seen to the reference.

        Raises:
            ValueError: fewer than two pictures were seen.
        """
        return distance(self.moments, self.reference)
