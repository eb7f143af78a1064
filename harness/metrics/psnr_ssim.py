"""PSNR and SSIM between pictures and their reconstructions, per picture, in float64."""

import torch
from torch import Tensor
from torch.nn import functional

from encoder.metrics.checks import check_pictures
from encoder.metrics.psnr import psnr

__all__ = ["psnr", "ssim"]

_WINDOW, _SIGMA = 11, 1.5  # Wang et al. 2004, Sec. III-C
_K1, _K2 = 0.01, 0.03


def ssim(pixels: Tensor, pixels_hat: Tensor) -> Tensor:
    """Structural similarity of each picture (B,), pixels (B 3 H W) in [0, 1]: mean over colours and over
    the places where the 11 x 11 Gaussian window (sigma 1.5) lies inside the picture.

    Raises:
        ValueError: a side is shorter than the window, the shapes differ, or a picture is not finite.

    Source: Wang et al., IEEE TIP 13(4), 2004, Eq. 13; K1 = 0.01, K2 = 0.03, unweighted colours.
    """
    check_pictures(pixels, pixels_hat)
    if min(pixels.shape[-2:]) < _WINDOW:
        raise ValueError(
            f"SSIM needs pictures of at least {_WINDOW} x {_WINDOW} pixels, got {tuple(pixels.shape[-2:])}"
        )
    x, y = pixels.double(), pixels_hat.double()
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _blur(pixels: Tensor) -> Tensor:
    """Gaussian-weighted local mean, one colour at a time: B C H W -> B C H-10 W-10.

    Two matrix products: torch has no fast convolution in float64.
    """
    return _window_means(pixels.shape[-2]) @ pixels @ _window_means(pixels.shape[-1]).T


def _window_means(side: int) -> Tensor:
    """The linear map from a row of pixels to its local means: side-10 side."""
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    rows = torch.eye(side, dtype=torch.float64)[:, None]  # side 1 side
    return functional.conv1d(rows, (weights / weights.sum())[None, None])[:, 0].T
