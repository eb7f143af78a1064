"""The linear flow: t=0 is data, t=1 is noise, x_t = (1-t) * latents + t * noise, velocity = noise - latents.

Everything here is a pure function; noise and times come in from generators. Letters: B batch, D channels,
h w latent grid.

Source: RAE (arXiv:2510.11690, Sec. 4; stage2/transport at a4d18c4). The paper's text prints the shift as m/n;
its code and this file take the square root.
"""

import math
from typing import Literal

import torch
from torch import Tensor

T_MAX = 0.999  # RAE draws no time above this in training, and its sampler's grid ends this far from its start
T_MIN = 0.05  # predicted latents are divided by no smaller t: the quotient would be rounding alone

TimeDistribution = Literal["logit_normal", "uniform"]


def interpolate(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t for latents and noise (B D h w) at times t (B,)."""
    t = t.view(-1, *[1] * (latents.ndim - 1))
    return (1 - t) * latents + t * noise


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """dx_t/dt of the linear path: it points from data to noise."""
    return noise - latents


def velocity_of_latents(latents_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The velocity (x_t - latents_hat) / max(t, T_MIN) of predicted latents (B D h w) at times t (B,).

    Source: JiT (arXiv:2511.13720); RAEv2 (arXiv:2605.18324) with the same bound.
    """
    t = t.clamp(min=T_MIN).view(-1, *[1] * (x_t.ndim - 1))
    return (x_t - latents_hat) / t


def flow_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over everything, unweighted, reduced in fp32 or wider: a scalar."""
    return (velocity - target).square().mean(dtype=torch.promote_types(velocity.dtype, torch.float32))


def shift_factor(dim: int, base: int = 4096) -> float:
    """sqrt(dim / base): how far times are pushed towards noise for latents of `dim` numbers in all."""
    return math.sqrt(dim / base)


def training_shift(dim: int) -> float:
    """`shift_factor`, but at least 1: latents smaller than the base are not pushed towards data."""
    return max(1.0, shift_factor(dim))


def shift_time(t: Tensor, shift: float) -> Tensor:
    """shift * t / (1 + (shift - 1) * t): keeps 0 and 1, moves what lies between towards 1 when shift > 1."""
    return shift * t / (1 + (shift - 1) * t)


def sample_time(num_samples: int, generator: torch.Generator, *, distribution: TimeDistribution) -> Tensor:
    """Training times (num_samples,) in [0, 0.999] before the shift, fp32, on the CPU.

    `logit_normal`: logit(t) ~ N(0, 1), cut off at 0.999 by inverting the cumulative distribution.
    """
    u = torch.rand(num_samples, generator=generator, dtype=torch.float64)
    if distribution == "uniform":
        return (u * T_MAX).float()
    highest = torch.special.ndtr(torch.tensor(math.log(T_MAX / (1 - T_MAX)), dtype=torch.float64))
    return torch.sigmoid(torch.special.ndtri(u * highest)).clamp(0, T_MAX).float()
