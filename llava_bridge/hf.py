"""Registration with transformers: `import llava_bridge.hf`, then `AutoModelForImageTextToText` and
`AutoProcessor` load our folders.

Also the tower's image processor. Importing this module is what has the side effect, and only this one.
"""

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from llava_bridge.tower import FrozenTower, FrozenTowerConfig


class UnitImageProcessor(BaseImageProcessor):
    """Pictures to pixels in [0, 1] at one square size (bicubic, antialiased). It does not normalise: the
    encoder does."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers' own attribute

    def __init__(self, image_size: int = 224, **kwargs):
        super().__init__(**kwargs)
        self.image_size = image_size

    def preprocess(
        self, images: Image.Image | list[Image.Image], return_tensors: str = "pt", **kwargs
    ) -> BatchFeature:
        """RGB pictures -> {"pixel_values": B 3 S S, float32 in [0, 1]}."""
        images = images if isinstance(images, list | tuple) else [images]
        pixels = torch.cat([self._to_pixels(image) for image in images])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def _to_pixels(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        size = (self.image_size, self.image_size)
        if pixels.shape[-2:] == size:
            return pixels
        return interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


AutoConfig.register(FrozenTowerConfig.model_type, FrozenTowerConfig, exist_ok=True)
AutoModel.register(FrozenTowerConfig, FrozenTower, exist_ok=True)
AutoImageProcessor.register(FrozenTowerConfig, slow_image_processor_class=UnitImageProcessor, exist_ok=True)
