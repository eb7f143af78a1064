"""The shapes of every network, as configurations. No torch here: the command line reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VAE_DOWNSAMPLE = 8  # of FLUX's VAE: pixels to a latent, on a side, where no VAE is named to ask
SHIFTED = "+shift"  # end of a VAE's folder or hub id whose shift_factor is to be subtracted


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeShape:
    """An AutoencoderKL of FLUX's shape: 8x down, 16 channels, mid-block attention, no quant convolutions.

    FLUX.1 itself: block_out_channels 128-256-512-512, layers_per_block 2, norm_num_groups 32.
    """

    block_out_channels: tuple[int, ...] = (16, 32, 48, 64)
    layers_per_block: int = 1
    latent_channels: int = 16
    norm_num_groups: int = 8

    def __post_init__(self):
        odd = [width for width in self.block_out_channels if width % self.norm_num_groups]
        if odd:
            raise ValueError(
                f"block_out_channels {odd} must be multiples of norm_num_groups {self.norm_num_groups}"
            )

    @property
    def downsample(self) -> int:
        """Pixels to a latent, on a side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTShape:
    """A vision tower. B: 12 layers of 768, L: 24 of 1024 (UCSC-VLAA/OpenVision@6c24e45, vit.py)."""

    image_size: int  # side of the inputs: latents (256 px / 8 = 32) for OpenVision 3, pixels for CLIP
    patch_size: int = 2
    in_channels: int = 16
    width: int = 768
    layers: int = 12
    head_width: int = 64
    mlp_width: int | None = None  # None: 4 x width
    embed_dim: int = 768  # of the pooled, contrastive feature

    def __post_init__(self):
        if self.image_size % self.patch_size:
            sizes = f"image_size {self.image_size}, patch_size {self.patch_size}"
            raise ValueError(f"{sizes}: the first must be a multiple of the second")
        if self.width % self.head_width:
            raise ValueError(f"width {self.width} must be a multiple of head_width {self.head_width}")

    @property
    def grid(self) -> int:
        """Tokens on a side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """The ViT decoder; the paper chooses B/1 (Sec. 5.3, Fig. 6): 12 layers of 768."""

    in_width: int = 768  # of z_u
    width: int = 768
    layers: int = 12
    head_width: int = 64
    patch_size: int = 2  # latents a token side: the encoder's patch
    out_channels: int = 16

    def __post_init__(self):
        if self.width % self.head_width:
            raise ValueError(f"width {self.width} must be a multiple of head_width {self.head_width}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """The text encoder. OpenVision 1's beside a B tower (12 x 512); OpenVision 3 gives no sizes."""

    tokenizer: str = "scenes"  # "scenes", or a BERT vocab.txt, the folder it lies in, or its hub id
    context_length: int = 80
    width: int = 512
    layers: int = 12
    head_width: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionerShape:
    """The caption decoder. OpenVision 1's beside a B tower; OpenVision 3 gives no sizes."""

    # autoregressive: each word from the picture and the words before it (OpenVision 3: "autoregressive").
    # parallel: every word at once, from the picture, the alt text and `context_length` learned queries
    # (OpenVision 1, after CLIPS)
    kind: Literal["autoregressive", "parallel"] = "autoregressive"
    context_length: int = 128
    width: int = 512
    layers: int = 12
    head_width: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVision3Shape:
    """The four towers of OpenVision 3; weights without text towers have neither text nor captioner."""

    encoder: ViTShape
    decoder: DecoderShape
    text: TextShape | None = None
    captioner: CaptionerShape | None = None

    def __post_init__(self):
        if self.decoder.in_width != self.encoder.width:
            widths = f"decoder.in_width {self.decoder.in_width}, encoder.width {self.encoder.width}"
            raise ValueError(f"{widths}: the decoder reads z_u, so they must be equal")
        if (self.text is None) != (self.captioner is None):
            raise ValueError("give both text and captioner, or neither")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """The CLIP baseline: the same vision tower on pixels, and a text encoder."""

    encoder: ViTShape
    text: TextShape | None = None
