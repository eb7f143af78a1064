"""The vision towers: ViTEncoder (z_vae or pixels -> z_u) and ViTDecoder (z_u -> z_vae_hat).

The encoder's parameter names are those of the released OpenVision files, so loading them is strict and plain.
Positions are the fixed 2-D sin-cos table of MoCo v3 with a zero row for the class token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from encoder.models.shapes import DecoderShape, ViTShape

EPS = 1e-6  # of every LayerNorm. Source: UCSC-VLAA/OpenVision@6c24e45, where it is hard-coded


@dataclass(frozen=True, slots=True)
class EncoderOutput:
    """z_u (B N D): the last block's output, before the final norm; pooled (B E): norm(mean z_u) @ proj."""

    z_u: Tensor
    pooled: Tensor


@lru_cache(maxsize=16)
def sin_cos_positions(height: int, width: int, dim: int) -> Tensor:
    """Positions (height * width, dim), rows in raster order: [sin x, cos x, sin y, cos y], a quarter each.

    Frequencies 10000^(-i / (dim/4 - 1)). Source: UCSC-VLAA/OpenVision@6c24e45, vit.py posemb_sincos_2d (the
    MoCo v3 form; the common MAE form divides by dim/4 and differs by up to 0.03).
    Raises: ValueError if dim is not a multiple of 4, at least 8.
    """
    if dim % 4 or dim < 8:
        raise ValueError(f"width {dim} must be a multiple of 4, at least 8, for sin-cos positions")
    quarter = dim // 4
    cpu = torch.device("cpu")  # whatever device is the default: the first caller's must not decide
    omega = 10000 ** (-torch.arange(quarter, dtype=torch.float64, device=cpu) / (quarter - 1))
    rows, columns = torch.arange(height, device=cpu), torch.arange(width, device=cpu)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()


@lru_cache(maxsize=16)
def positions_on(device: torch.device, height: int, width: int, dim: int) -> Tensor:
    """`sin_cos_positions` on a device: copied there once, not at each forward pass."""
    return sin_cos_positions(height, width, dim).to(device)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention (B H N d each); mask (N N), True where a row may look.

    Fused, except under autograd on a CPU: torch 2.14's backward kernel there takes up to 6 times as long in
    bf16 as the plain form (12.7 against 2.0 ms for 64 x 3 x 17 x 64 on one core).
    """
    if q.device.type != "cpu" or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    similarity = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        similarity = similarity.masked_fill(~mask, float("-inf"))
    return similarity.softmax(dim=-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Multi-head self-attention with one fused q, k, v projection (rows in that order)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(qkv, "B N (three H d) -> three B H N d", three=3, H=self.num_heads)
        return self.out_proj(rearrange(attend(q, k, v, mask), "B H N d -> B N (H d)"))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, gelu: str):
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate=self.gelu))


class Block(nn.Module):
    """Pre-norm transformer block. `gelu`: "none" is exact (vision), "tanh" the approximation (text)."""

    def __init__(self, width: int, num_heads: int, mlp_width: int, gelu: str = "none"):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, num_heads)
        self.ln_2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, mlp_width, gelu)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks, started as OpenVision's are: a vision tower, or (`is_text`) a text tower.

    Source: UCSC-VLAA/OpenVision@6c24e45, standard deviations measured on its initial weights at B. Deviation:
    the vision tower's 0.02 is (0.3072 / width)^0.5 here, the same at B, so that narrow towers start as well.
    """

    def __init__(
        self, width: int, layers: int, head_width: int, mlp_width: int | None = None, *, is_text: bool = False
    ):
        super().__init__()
        gelu, heads, mlp_width = "tanh" if is_text else "none", width // head_width, mlp_width or 4 * width
        self.resblocks = nn.ModuleList(Block(width, heads, mlp_width, gelu) for _ in range(layers))
        qkv = fc = out = (0.3072 / width) ** 0.5
        if is_text:
            qkv, fc, out = width**-0.5, (2 * width) ** -0.5, (2 * layers * width) ** -0.5
        for block in self.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=qkv)
            nn.init.normal_(block.mlp.c_fc.weight, std=fc)
            for layer in (block.attn.out_proj, block.mlp.c_proj):
                nn.init.normal_(layer.weight, std=out)
                nn.init.zeros_(layer.bias)
            nn.init.zeros_(block.mlp.c_fc.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class ViTEncoder(nn.Module):
    """OpenVision's vision tower: inputs (B C h w; VAE latents at patch 2, pixels at patch 16) -> tokens.

    The class token is attended through all blocks, then dropped; pooling ignores it.
    Source: arXiv:2601.15369v2, Sec. 3.1; UCSC-VLAA/OpenVision@6c24e45 (state dict, forward).
    """

    def __init__(self, shape: ViTShape):
        super().__init__()
        self.shape = shape
        grid, width = shape.grid, shape.width
        self.conv1 = nn.Conv2d(shape.in_channels, width, shape.patch_size, shape.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * 1e-6)
        positions = F.pad(sin_cos_positions(grid, grid, width), (0, 0, 1, 0))  # the class token's row: zeros
        self.register_buffer("positional_embedding", positions)
        self.transformer = Transformer(width, shape.layers, shape.head_width, shape.mlp_width)
        self.ln_post = nn.LayerNorm(width, eps=EPS)
        self.proj = nn.Parameter(torch.randn(width, shape.embed_dim) * width**-0.5)
        nn.init.kaiming_uniform_(self.conv1.weight)

    def positions(self, height: int, width: int) -> Tensor:
        """Positions (1 + height * width, D), class row first: the stored table, or computed.

        Raises: ValueError off the stored grid if the stored table is not the sin-cos one.
        """
        stored, grid = self.positional_embedding, self.shape.grid
        if (height, width) == (grid, grid):
            return stored
        own = positions_on(stored.device, grid, grid, stored.shape[1]).to(stored)
        if not torch.allclose(stored[1:], own, atol=8e-3):  # the table may have been rounded to bf16
            raise ValueError(
                f"a {height}x{width} grid needs positions to be computed, but this tower's table "
                f"({grid}x{grid}) is not the sin-cos one; feed it {grid * self.shape.patch_size} wide inputs"
            )
        computed = positions_on(stored.device, height, width, stored.shape[1])
        return torch.cat([stored[:1], computed.to(stored)])

    def tokens(self, inputs: Tensor, *, skip_last: int = 0) -> Tensor:
        """inputs (B C h w) -> tokens (B N D) after all blocks but the last `skip_last`.

        Raises: ValueError if the channels or the side do not fit.
        """
        patch, channels = self.shape.patch_size, self.shape.in_channels
        if inputs.ndim != 4 or inputs.shape[1] != channels:
            raise ValueError(f"the tower takes B {channels} h w, got {tuple(inputs.shape)}")
        if inputs.shape[2] % patch or inputs.shape[3] % patch:
            raise ValueError(f"input {tuple(inputs.shape[2:])} must be a multiple of patch size {patch}")
        x = self.conv1(inputs)  # B D h w
        positions = self.positions(*x.shape[2:])
        x = rearrange(x, "B D h w -> B (h w) D")
        x = torch.cat([self.class_embedding.to(x).expand(len(x), 1, -1), x], dim=1) + positions  # B 1+N D
        for block in self.transformer.resblocks[: self.shape.layers - skip_last]:
            x = block(x)
        return x[:, 1:]

    def pool(self, tokens: Tensor) -> Tensor:
        """tokens (B N D) -> pooled (B E), not normalised."""
        return self.ln_post(tokens.mean(dim=1)) @ self.proj

    def forward(self, inputs: Tensor) -> EncoderOutput:
        """inputs (B C h w) -> z_u (B N D) and pooled (B E)."""
        z_u = self.tokens(inputs)
        return EncoderOutput(z_u, self.pool(z_u))


class ViTDecoder(nn.Module):
    """z_u (B N D) -> z_vae_hat (B C 2h 2w): a ViT of patch size 1, then one linear layer, unshuffled.

    Source: arXiv:2601.15369v2, Sec. 3.1 ("patch size 1x1" and a linear layer). The final norm and the order
    of the linear layer's outputs (p q C) are ours; the paper shows neither.
    """

    def __init__(self, shape: DecoderShape):
        super().__init__()
        self.shape = shape
        self.embed = nn.Linear(shape.in_width, shape.width)
        self.transformer = Transformer(shape.width, shape.layers, shape.head_width)
        self.ln_post = nn.LayerNorm(shape.width, eps=EPS)
        self.head = nn.Linear(shape.width, shape.patch_size**2 * shape.out_channels)

    def forward(self, z_u: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """z_u (B N D) -> z_vae_hat (B C h w). `grid`: rows and columns of tokens; a square if not given.

        Raises: ValueError if N tokens do not fill the grid.
        """
        side = round(z_u.shape[1] ** 0.5)
        height, width = grid or (side, side)
        if height * width != z_u.shape[1]:
            raise ValueError(f"{z_u.shape[1]} tokens do not fill a {height}x{width} grid")
        x = self.embed(z_u)
        positions = positions_on(x.device, height, width, self.shape.width)
        x = self.transformer(x + positions.to(x))
        return rearrange(
            self.head(self.ln_post(x)),
            "B (h w) (p q C) -> B C (h p) (w q)",
            h=height,
            p=self.shape.patch_size,
            q=self.shape.patch_size,
        )
