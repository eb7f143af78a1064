"""The peak signal-to-noise ratio, in float64. Letters: B pictures."""

import math

from torch import Tensor

from encoder.metrics.checks import check_pictures


def psnr(pixels: Tensor, pixels_hat: Tensor, *, highest: float = math.inf) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB (B,), both B 3 H W in [0, 1]; pixels_hat is clamped.
    `highest` where nothing differs: a mean over pictures needs a finite one.

    Raises:
        ValueError: the shapes differ, or a picture is not finite.
    """
    check_pictures(pixels, pixels_hat)
    error = (pixels_hat.double().clamp(0, 1) - pixels.double()).square().mean(dim=(1, 2, 3))
    return (-10.0 * error.log10()).clamp(max=highest)
