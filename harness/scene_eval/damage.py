"""Generic damage to pictures, so that the judge reads more than perfect renders: blur, noise, JPEG. None of
it is an encoder's. Letters: B pictures, S pixels on a side."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_MOST_BLUR, _MOST_NOISE, _WORST_JPEG, _BEST_JPEG = 1.2, 0.08, 35, 95  # px; of 1; quality


def damage(images: np.ndarray, generator: torch.Generator, blur: float, noise: float, jpeg: float) -> Tensor:
    """Images (B S S 3 uint8) -> pixels (B 3 S S in [0, 1]), each damaged in each way with these
    probabilities: JPEG first, then a Gaussian blur, then white noise."""
    num = len(images)
    share = torch.rand(3, num, generator=generator)
    amount = torch.rand(3, num, generator=generator)
    packed = share[0] < jpeg
    images = np.stack([
        _through_jpeg(image, round(_WORST_JPEG + (_BEST_JPEG - _WORST_JPEG) * float(amount[0, i])))
        if packed[i] else image
        for i, image in enumerate(images)
    ])  # fmt: skip
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    sigma = torch.where(share[1] < blur, _MOST_BLUR * amount[1], 0.0)
    pixels = blurred(pixels, sigma)
    strength = torch.where(share[2] < noise, _MOST_NOISE * amount[2], 0.0)
    drawn = torch.randn(pixels.shape, generator=generator)
    return (pixels + strength[:, None, None, None] * drawn).clamp(0, 1)


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def blurred(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Pixels (B 3 S S), each under a Gaussian of its own width sigma (B,) in pixels; 0: as it is."""
    reach = 3
    places = torch.arange(-reach, reach + 1).float()
    kernel = torch.exp(-places.square() / (2 * sigma.clamp(min=1e-3).square()[:, None]))  # B 7
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(pixels.shape[1], dim=0)
    shape = pixels.shape
    x = pixels.reshape(1, -1, *shape[2:])  # 1 B*3 S S
    for view, pad in (((-1, 1, 1, 2 * reach + 1), (reach, reach, 0, 0)),
                      ((-1, 1, 2 * reach + 1, 1), (0, 0, reach, reach))):  # fmt: skip
        x = F.conv2d(F.pad(x, pad, mode="replicate"), kernel.reshape(view), groups=x.shape[1])
    return x.reshape(shape)
