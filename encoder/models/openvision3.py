"""OpenVision 3: encoder, decoder, text encoder and captioner (the objective: `encoder.training`)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from encoder.data.tokenizer import Tokenizer
from encoder.models.pretrained import load_pretrained, write_processor, write_towers
from encoder.models.shapes import VAE_DOWNSAMPLE, OpenVision3Shape
from encoder.models.text import Captioner, ParallelCaptioner, TextEncoder
from encoder.models.vit import ViTDecoder, ViTEncoder

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # not clamped in training, as in OpenVision


class OpenVision3(nn.Module):
    """The towers. Without text towers (`shape.text` None) it encodes and decodes only.

    Source: arXiv:2601.15369v2, Sec. 3.
    """

    def __init__(self, shape: OpenVision3Shape):
        super().__init__()
        self.shape = shape
        self.encoder = ViTEncoder(shape.encoder)
        self.decoder = ViTDecoder(shape.decoder)
        if shape.text is not None:
            vocab_size = Tokenizer(shape.text.tokenizer).vocab_size
            self.text = TextEncoder(shape.text, vocab_size, shape.encoder.embed_dim)
            if shape.captioner.kind == "parallel":
                widths = (shape.encoder.width, shape.text.width)
                self.captioner = ParallelCaptioner(shape.captioner, vocab_size, *widths)
            else:
                self.captioner = Captioner(shape.captioner, vocab_size, shape.encoder.width)
            self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def save_pretrained(
        self, folder: Path | str, *, dtype: torch.dtype = torch.float32, text: bool = True
    ) -> None:
        """Write folder/config.json and model.safetensors; without `text`, the vision towers only."""
        write_towers(folder, "openvision3", self, dtype, text=text)
        downsample = 1 if self.shape.encoder.in_channels == 3 else VAE_DOWNSAMPLE
        write_processor(folder, self.shape.encoder.image_size * downsample, (0.0,) * 3, (1.0,) * 3)

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, text: bool = True) -> OpenVision3:
        """Read what `save_pretrained` wrote, in float32; without `text`, the vision side only.

        Raises: FileNotFoundError without the files; ValueError if they are damaged or of another model.
        """
        return load_pretrained(cls, folder, "openvision3", OpenVision3Shape, text=text)
