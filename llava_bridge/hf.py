"""Registration with transformers: `import llava_bridge.hf`, then `AutoModelForImageTextToText` and
`AutoProcessor` load our folders.

Also the tower's image processor. Importing this module is what has the side effect, and only this one.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from encoder.data.pictures import MAX_PIXELS, as_rgb
from llava_bridge.tower import FrozenTower, FrozenTowerConfig


class UnitImageProcessor(BaseImageProcessor):
    """Pictures to pixels in [0, 1] at one square size (bicubic, antialiased). It does not normalise: the
    encoder does.

    aspect: `stretch` ignores the picture's own; `crop` takes the centre square; `pad` makes the picture
    square with `fill` (RGB, 0 to 255) around it, as LLaVA-1.5 does in stage 2.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers' own attribute

    def __init__(
        self,
        image_size: int = 224,
        aspect: str = "stretch",
        fill: tuple[int, int, int] = (127, 127, 127),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.image_size = image_size
        self.aspect = aspect
        self.fill = tuple(fill)

    def preprocess(
        self, images: Image.Image | list[Image.Image], return_tensors: str = "pt", **kwargs
    ) -> BatchFeature:
        """Pictures of any mode -> {"pixel_values": B 3 S S, float32 in [0, 1]}."""
        images = images if isinstance(images, list | tuple) else [images]
        pixels = torch.cat([self._to_pixels(image) for image in images])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def _to_pixels(self, image: Image.Image) -> torch.Tensor:
        image = _SQUARES[self.aspect](as_rgb(image), self.fill)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        size = (self.image_size, self.image_size)
        if pixels.shape[-2:] == size:
            return pixels
        return interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def _pad(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    side = max(image.size)
    if side * side > MAX_PIXELS:  # a long line, whose square would be too large
        most = math.isqrt(MAX_PIXELS)
        image = image.resize(
            tuple(max(1, each * most // side) for each in image.size), Image.Resampling.BICUBIC
        )
        side = most
    square = Image.new("RGB", (side, side), fill)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _crop(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    side = min(image.size)  # before the resize, not after: the same centre square
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


_SQUARES = {"stretch": lambda image, fill: image, "crop": _crop, "pad": _pad}

AutoConfig.register(FrozenTowerConfig.model_type, FrozenTowerConfig, exist_ok=True)
AutoModel.register(FrozenTowerConfig, FrozenTower, exist_ok=True)
AutoImageProcessor.register(FrozenTowerConfig, slow_image_processor_class=UnitImageProcessor, exist_ok=True)
