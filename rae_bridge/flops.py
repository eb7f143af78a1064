"""Forward FLOPs and weights of the diffusion transformers, from shapes alone; counted as in
`encoder.training.flops`. No torch.
"""

from encoder.training.flops import transformer_flops, transformer_parameters
from rae_bridge.shapes import DiTSize


def part_flops(size: DiTSize, num_tokens: int, in_channels: int) -> list[float]:
    """Of each part of a DiT (backbone, head; a LightningDiT has one) on one picture's latents.

    A head's adaLN works token by token. The last layer, and what brings the backbone's condition to the
    head's width, are the last part's.
    """
    parts = []
    for part, (width, depth) in enumerate(zip(size.hidden_size, size.depth, strict=True)):
        mlp_width = round(1.5 * int(2 / 3 * int(width * size.mlp_ratio)))  # SwiGLU: three matrices, not two
        conditions = 1 if part == 0 else num_tokens
        blocks = transformer_flops(num_tokens, width, depth, mlp_width) + 12.0 * depth * conditions * width**2
        parts.append(blocks + 2.0 * num_tokens * in_channels * width)  # each part embeds x_t
    first, last = size.hidden_size[0], size.hidden_size[-1]
    between = 2.0 * num_tokens * first * last if len(parts) == 2 and first != last else 0.0
    final = 4.0 * last**2 * (num_tokens if len(parts) == 2 else 1)
    parts[-1] += between + final + 2.0 * num_tokens * last * in_channels
    return parts


def dit_parameters(size: DiTSize) -> float:
    """Weights of a DiT's blocks, without embeddings and the last layer."""
    total = 0.0
    for width, depth in zip(size.hidden_size, size.depth, strict=True):
        mlp_width = round(1.5 * int(2 / 3 * int(width * size.mlp_ratio)))
        total += transformer_parameters(width, depth, mlp_width) + 6 * depth * width**2
    return total
