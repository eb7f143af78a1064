"""Several facts read from frozen features at once, by one layer or by a small network: a table's probe.

A *fact* has a number of values (a colour: 8); each gets logits of its own from the same features. A sample in
which a fact is not defined (the colour of nothing) teaches nothing about it. Letters: N samples, D feature
width, F facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoder.metrics.checks import check_features, check_widths

UNDEFINED = -1  # as a fact's value: it teaches nothing
_LEAST_STD = 1e-6  # of a feature; one that never moves is 0 after standardising


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadoutConfig:
    """How a readout is fitted: by AdamW, its rate falling to 0 along a cosine."""

    hidden: int = 0  # units between; 0: linear
    num_epochs: int = 12
    batch_size: int = 250
    learning_rate: float = 1e-3
    weight_decay: float = 0.3

    def __post_init__(self) -> None:
        if self.hidden < 0 or self.num_epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"hidden {self.hidden} must be 0 or more, num_epochs {self.num_epochs} and batch_size "
                f"{self.batch_size} 1 or more"
            )


class Readout(nn.Module):
    """Standardised features (N D) -> logits of each fact's values."""

    def __init__(self, mean: Tensor, std: Tensor, num_values: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.num_values = list(num_values)
        last = nn.Linear(hidden or len(mean), sum(num_values))
        self.layers = (
            nn.Sequential(nn.Linear(len(mean), hidden), nn.GELU(), last) if hidden else nn.Sequential(last)
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits (N values) of each fact."""
        return list(self.layers((features - self.mean) / self.std).split(self.num_values, dim=1))

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> list[Tensor]:
        """Of each fact's values (N values each, float64); they sum to 1."""
        check_widths(features, self.mean[None])
        return [logits.double().softmax(dim=1) for logits in self(features.float())]


def fit_readout(
    features: Tensor, facts: Tensor, num_values: Sequence[int], config: ReadoutConfig, seed: int = 0
) -> Readout:
    """A readout fitted to features (N D) and facts (N F, each from 0 to its number of values - 1, or
    `UNDEFINED`); the loss is the sum of the facts' mean cross-entropies.

    Raises:
        ValueError: a feature is not finite, the shapes do not fit, or a fact has a value that it cannot have.
    """
    check_features(features, "features to fit the probe on", least=2)
    _check_facts(facts, len(features), num_values)
    features = features.float()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        std = features.std(dim=0)
        std = torch.where(std > _LEAST_STD, std, torch.ones_like(std))
        readout = Readout(features.mean(dim=0), std, num_values, config.hidden)
    optimiser = torch.optim.AdamW(
        readout.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    num_steps = config.num_epochs * -(-len(features) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    for _ in range(config.num_epochs):
        for rows in torch.randperm(len(features), generator=generator).split(config.batch_size):
            loss = _loss(readout(features[rows]), facts[rows])
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
    return readout.eval().requires_grad_(False)


def _loss(logits: Sequence[Tensor], facts: Tensor) -> Tensor:
    losses = [
        functional.cross_entropy(each, fact, ignore_index=UNDEFINED)
        for each, fact in zip(logits, facts.T, strict=True)
        if bool((fact != UNDEFINED).any())
    ]
    return torch.stack(losses).sum() if losses else 0.0 * logits[0].sum()


def _check_facts(facts: Tensor, num_samples: int, num_values: Sequence[int]) -> None:
    """Raises: ValueError if they are not (N F) of values that exist."""
    if facts.shape != (num_samples, len(num_values)):
        raise ValueError(
            f"facts are {tuple(facts.shape)}, expected {num_samples} samples x {len(num_values)} facts"
        )
    for number, (fact, count) in enumerate(zip(facts.T, num_values, strict=True)):
        low, high = int(fact.min()), int(fact.max())
        if low < UNDEFINED or high >= count:
            raise ValueError(
                f"fact {number} has values {low} to {high}; it can have 0 to {count - 1}, or {UNDEFINED}"
            )
