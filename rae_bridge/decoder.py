"""RAE's pixel decoder: a ViT-MAE decoder from frozen tokens straight to pixels.

For encoders that cannot decode by themselves. Letters: B batch, N tokens, C token width, D decoder width,
p pixels along each side of a patch. State dicts are RAE's, key for key.

Source: RAE (arXiv:2510.11690, Sec. 3; stage1/decoders at a4d18c4). Deviations: fused attention; in autocast
the residual stream and the last linear map stay fp32. diffusers' `RAEDecoder` draws the same pixels on
16 x 16 tokens only (its positions are scaled to that grid), has other names and no strict loading.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from encoder.models.pretrained import load_pretrained, write_pretrained
from rae_bridge.blocks import attend, sincos_positions
from rae_bridge.shapes import DecoderConfig


class DecoderLayer(nn.Module):
    """Pre-norm transformer block with separate query, key and value maps and a GELU MLP: B N D -> B N D."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, hidden = config.decoder_hidden_size, config.decoder_intermediate_size
        self.num_heads = config.decoder_num_attention_heads
        names = ("query", "key", "value")
        self.attention = nn.ModuleDict(
            {
                "attention": nn.ModuleDict({name: nn.Linear(width, width) for name in names}),
                "output": nn.ModuleDict({"dense": nn.Linear(width, width)}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = nn.ModuleDict({"dense": nn.Linear(hidden, width)})
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.layernorm_before(x)
        maps = self.attention["attention"].values()  # query, key, value
        q, k, v = (rearrange(linear(normed), "b n (h d) -> b h n d", h=self.num_heads) for linear in maps)
        attended = rearrange(attend(q, k, v), "b h n d -> b n (h d)")
        x = x + self.attention["output"]["dense"](attended)
        hidden = F.gelu(self.intermediate["dense"](self.layernorm_after(x)))
        return x + self.output["dense"](hidden)


class PixelDecoder(nn.Module):
    """Tokens of a frozen encoder (B N C) -> pixels (B 3 H W), nominally in [0, 1], not clamped."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder_hidden_size
        positions = F.pad(sincos_positions(width, config.grid), (0, 0, 1, 0))  # a zero row for the cls token
        self.decoder_pos_embed = nn.Parameter(positions[None], requires_grad=False)
        self.trainable_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_embed = nn.Linear(config.hidden_size, width)
        self.decoder_layers = nn.ModuleList(
            DecoderLayer(config) for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(width, 3 * config.patch_size**2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Another square number of tokens than the decoder's own is resized to it bilinearly, as RAE does."""
        x = self.resize(self.decoder_embed(tokens))  # B N D
        x = torch.cat([self.trainable_cls_token.expand(len(x), -1, -1), x], dim=1) + self.decoder_pos_embed
        for layer in self.decoder_layers:
            x = layer(x)
        with torch.autocast(x.device.type, enabled=False):
            patches = self.decoder_pred(self.decoder_norm(x)[:, 1:])  # B N p*p*3
        size = {"h": self.config.grid, "p": self.config.patch_size, "c": 3}
        pixels = rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", **size, q=size["p"])
        mean, std = pixels.new_tensor([self.config.image_mean, self.config.image_std])[:, :, None, None]
        return pixels * std + mean

    def resize(self, x: Tensor) -> Tensor:
        """B n D -> B N D on the decoder's own grid; nothing happens when the grids are equal."""
        grid = self.config.grid
        if x.shape[1] == grid * grid:
            return x
        side = round(x.shape[1] ** 0.5)
        if side * side != x.shape[1]:
            raise ValueError(f"{x.shape[1]} tokens are not a square grid; the decoder is for {grid} x {grid}")
        x = rearrange(x, "b (h w) d -> b d h w", h=side)
        x = F.interpolate(x, size=(grid, grid), mode="bilinear", align_corners=False)
        return rearrange(x, "b d h w -> b (h w) d")

    def save_pretrained(self, folder: Path | str, *, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors."""
        write_pretrained(folder, "pixel_decoder", self.config, self.state_dict(), dtype)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "PixelDecoder":
        """Read what `save_pretrained` wrote: fp32, eval mode, CPU.

        Raises:
            FileNotFoundError: without the files.
            ValueError: damaged, of another model, or tensors that do not fit config.json.
        """
        return load_pretrained(cls, folder, "pixel_decoder", DecoderConfig).eval()
