"""The CLIP baseline: the same vision tower on pixels and a text encoder, contrastive loss only."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from encoder.data.tokenizer import Tokenizer
from encoder.models.openvision3 import INITIAL_LOGIT_SCALE
from encoder.models.pretrained import (
    CLIP_MEAN,
    CLIP_STD,
    load_pretrained,
    write_processor,
    write_towers,
)
from encoder.models.shapes import ClipShape
from encoder.models.text import TextEncoder
from encoder.models.vit import ViTEncoder


class Clip(nn.Module):
    """pixels (B 3 H W, normalised by `normalise`) -> tokens and pooled features; texts -> features.

    Source: arXiv:2103.00020; tower, pooling and temperature are those of our OpenVision 3, so that only the
    input and the objective differ.
    """

    def __init__(self, shape: ClipShape):
        super().__init__()
        self.shape = shape
        self.encoder = ViTEncoder(shape.encoder)
        if shape.text is not None:
            vocab_size = Tokenizer(shape.text.tokenizer).vocab_size
            self.text = TextEncoder(shape.text, vocab_size, shape.encoder.embed_dim)
            self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def save_pretrained(
        self, folder: Path | str, *, dtype: torch.dtype = torch.float32, text: bool = True
    ) -> None:
        """Write folder/config.json and model.safetensors; without `text`, the vision tower only."""
        write_towers(folder, "clip", self, dtype, text=text)
        write_processor(folder, self.shape.encoder.image_size, CLIP_MEAN, CLIP_STD)

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, text: bool = True) -> Clip:
        """Read what `save_pretrained` wrote, in float32; without `text`, the vision side only.

        Raises: FileNotFoundError without the files; ValueError if they are damaged or of another model.
        """
        return load_pretrained(cls, folder, "clip", ClipShape, text=text)


def normalise(pixels: Tensor) -> Tensor:
    """pixels in [0, 1] -> what our CLIP tower takes: [-1, 1]."""
    return pixels * 2 - 1
