"""A frozen encoder of one's own in twenty lines: mean colours of 8 x 8 patches. See docs/own_encoder.md."""

import torch
from einops import rearrange
from torch import Tensor

from encoder import FrozenEncoder


class PatchColours(FrozenEncoder):
    """Every token holds the 4 x 4 mean colours of its patch; what is left decodes to a coarse picture."""

    def __init__(self, *, features: str | None = None, vae: str | None = None):
        super().__init__(name="patch-colours", image_size=32, grid=(4, 4), width=48, features=features)
        self.register_buffer("gain", torch.tensor(4.0))  # weights would be loaded here, from a file

    def _tokens(self, inputs: Tensor) -> Tensor:  # B 3 32 32, resized and normalised by the base class
        cells = torch.nn.functional.avg_pool2d(inputs, 2)
        return self.gain * rearrange(cells, "b c (h i) (w j) -> b (h w) (c i j)", i=4, j=4)  # B N D

    can_decode = property(lambda self: self.features == "last")

    def _decode(self, z_u: Tensor) -> Tensor:
        cells = rearrange(z_u / self.gain, "b (h w) (c i j) -> b c (h i) (w j)", h=4, i=4, j=4)
        return torch.nn.functional.interpolate(cells, scale_factor=2, mode="bilinear")
