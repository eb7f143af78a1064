"""Random weights for networks whose architecture is fixed, under given names and shapes."""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

Shape = tuple[int, ...]


def random_weights(shapes: Mapping[str, Shape], seed: int, name: str) -> dict[str, Tensor]:
    """A tensor for each name, fp32: matrices and kernels that keep the size of what passes (He's), norms
    about one, statistics of batch norms about those of unit pictures."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(shape, dtype=torch.int64)
            continue
        draw = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            state[key] = draw.mul_((2 / draw[0].numel()) ** 0.5)
        elif key.endswith(("running_var", "weight")):
            state[key] = draw.mul_(0.1).add_(1).abs_()
        else:
            state[key] = draw.mul_(0.02)
    return state


def layer(name: str, *weight: int) -> dict[str, Shape]:
    """Weight and bias of a linear layer, a convolution or a norm."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
