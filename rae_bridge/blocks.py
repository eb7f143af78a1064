"""The layers of RAE's diffusion transformers: embeddings, rotary attention, SwiGLU, adaLN blocks.

Letters: B batch, N tokens, D width, H heads, P = N (per-token condition) or 1 (per-sample condition).
Parameter names are those of the released RAE checkpoints. The layers take dtypes as they come: under bf16
autocast only the matrix products inside a block are bf16, while `x` (the residual stream) stays fp32.

Source: RAE, github.com/bytetriper/RAE at a4d18c4; LightningDiT (arXiv:2501.01423).
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension with a learnable gain, computed in fp32 or wider."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """norm(x) * (1 + scale) + shift, with x fp32 or wider: the gains meet first, since they are small.

        `scale` is widened before the 1 is added: in bf16 every |scale| < 0.004 would be lost.
        """
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        gain = self.weight * (1 + scale.to(x.dtype))
        return torch.addcmul(shift.to(x.dtype), x * torch.rsqrt(mean_square + self.eps), gain)


class PatchEmbed(nn.Module):
    """One linear map per latent position. Stored as a 1 x 1 convolution because the checkpoints are."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=1)
        nn.init.xavier_uniform_(self.proj.weight.view(width, in_channels))
        nn.init.zeros_(self.proj.bias)

    def forward(self, x_t: Tensor) -> Tensor:
        """B C h w -> B N D"""
        tokens = rearrange(x_t, "b c h w -> b (h w) c")
        return F.linear(tokens, self.proj.weight.flatten(1), self.proj.bias)


class TimeEmbedding(nn.Module):
    """Gaussian Fourier features of t in [0, 1] through a two-layer MLP: (B,) -> B D.

    The frequencies are a frozen parameter, not a buffer, and t is not scaled by 1000.
    """

    def __init__(self, width: int, num_frequencies: int = 256) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(num_frequencies), requires_grad=False)
        self.mlp = nn.Sequential(nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.normal_(self.mlp[0].weight, std=0.02)
        nn.init.normal_(self.mlp[2].weight, std=0.02)

    def forward(self, t: Tensor) -> Tensor:
        phase = t[:, None] * self.W[None, :] * (2 * math.pi)  # B 256
        return self.mlp(torch.cat([phase.sin(), phase.cos()], dim=-1))


CLASS_INIT_STD = 0.02  # RAE's


class LabelEmbedding(nn.Module):
    """Class embedding; with `has_null` one more row, index `num_classes`, stands for "no class"."""

    def __init__(self, num_classes: int, width: int, *, has_null: bool) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + has_null, width)
        nn.init.normal_(self.embedding_table.weight, std=CLASS_INIT_STD)

    def forward(self, y: Tensor) -> Tensor:
        """(B,) -> B D"""
        return self.embedding_table(y)


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed 2-D sine-cosine positions, (side * side, width): the first half of the channels says the column.

    Source: MAE's and DiT's table. Note that the rotary embedding below puts the row first.
    """
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    phase = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # side D/4
    line = torch.cat([phase.sin(), phase.cos()], dim=1)  # side D/2
    column, row = repeat(line, "w d -> (h w) d", h=side), repeat(line, "h d -> (h w) d", w=side)
    return torch.cat([column, row], dim=1).float()


class RotaryEmbedding(nn.Module):
    """Axial rotary positions: the first half of each head turns with the row, the second with the column.

    Pairs are neighbouring channels (2i, 2i + 1). The tables are persistent buffers, as in the checkpoints.
    """

    def __init__(self, head_width: int, side: int) -> None:
        super().__init__()
        axis_width = head_width // 2
        frequencies = 1.0 / 10000 ** (torch.arange(0, axis_width, 2).float() / axis_width)
        line = torch.arange(side).float()[:, None] * frequencies
        line = repeat(line, "p d -> p (d two)", two=2)  # side D/2
        row, column = repeat(line, "h d -> (h w) d", w=side), repeat(line, "w d -> (h w) d", h=side)
        angles = torch.cat([row, column], dim=1)
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        """B H N D -> B H N D, at least fp32.

        Uncompiled, each pair is turned as a complex number: one pass where the real form, which a compiler
        fuses, takes six (forward and backward in 0.4 of the time on a CPU).
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        cos, sin = self.freqs_cos.to(x.dtype), self.freqs_sin.to(x.dtype)
        pairs = x.unflatten(-1, (-1, 2))
        if not torch.compiler.is_compiling():
            turn = torch.complex(cos[:, ::2], sin[:, ::2])  # N D/2
            return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2)
        even, odd = pairs.unbind(-1)
        turned = torch.stack([-odd, even], dim=-1).flatten(-2)
        return torch.addcmul(x * cos, turned, sin)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions, optionally an RMSNorm on each query and key."""

    def __init__(self, width: int, num_heads: int, *, use_qknorm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // num_heads) if use_qknorm else nn.Identity()
        self.k_norm = RMSNorm(width // num_heads) if use_qknorm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: RotaryEmbedding) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        q, k = rope(self.q_norm(q)), rope(self.k_norm(k))
        return self.proj(rearrange(attend(q, k, v), "b h n d -> b n (h d)"))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, all B H N D, in the dtype of v; on a CPU in fp32 at least.

    There torch's bf16 kernel takes seven times as long backward as its fp32 one (2.14, AMX).
    """
    dtype = torch.promote_types(v.dtype, torch.float32) if v.device.type == "cpu" else v.dtype
    with torch.autocast(v.device.type, enabled=False):
        return F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype))


class SwiGLU(nn.Module):
    """Gated MLP: silu(first half) times the second half."""

    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(2 / 3 * int(width * mlp_ratio))
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """Pre-norm transformer block under adaLN: x (B N D) with a condition (B P D), P = 1 or N."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, *, use_qknorm: bool) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.norm2 = RMSNorm(width)
        self.attn = Attention(width, num_heads, use_qknorm=use_qknorm)
        self.mlp = SwiGLU(width, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zeros(nn.Linear(width, 6 * width)))

    def forward(self, x: Tensor, condition: Tensor, rope: RotaryEmbedding) -> Tensor:
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(
            condition
        ).chunk(6, dim=-1)
        x = torch.addcmul(x, gate_attn, self.attn(self.norm1.modulate(x, shift_attn, scale_attn), rope))
        return torch.addcmul(x, gate_mlp, self.mlp(self.norm2.modulate(x, shift_mlp, scale_mlp)))


class FinalLayer(nn.Module):
    """Norm, adaLN without a gate, and the linear map to the velocity: B N D -> B N C, never below fp32."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = zeros(nn.Linear(width, out_channels))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zeros(nn.Linear(width, 2 * width)))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        x = self.norm_final.modulate(x, shift, scale)
        with torch.autocast(x.device.type, enabled=False):
            return self.linear(x)


def zeros(layer: nn.Linear) -> nn.Linear:
    """The same layer with weight and bias 0: what follows it starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
