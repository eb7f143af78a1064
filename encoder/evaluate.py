"""Held-out numbers of an encoder in training. Pure functions, reduced in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(pixels: Tensor, pixels_hat: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture, dB (B,). Both B 3 H W in [0, 1]; pixels_hat is clamped
    here."""
    error = (pixels_hat.double().clamp(0, 1) - pixels.double()).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error.clamp_min(1e-12))
