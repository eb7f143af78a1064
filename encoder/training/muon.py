"""Muon where the processor cannot multiply in bf16."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from encoder.runtime.device import settled_precision


class Muon(torch.optim.Muon):
    """torch's Muon on 2-D weights, whose Newton-Schulz iteration runs in fp32 where its bf16 is emulated.

    torch takes the iteration's products in bf16 whatever the weights are; a processor without instructions
    for them is many times slower so. Where it has them, and on GPUs, this is torch's own step. States are
    interchangeable. Without the closure of torch's step.

    Source: Jordan et al. 2024, "Muon"; torch.optim.Muon (2.14), its "original" scaling of the rate.
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            given = [weight for weight in group["params"] if weight.grad is not None]
            if any(settled_precision("auto", weight.device) == "bf16" for weight in given):
                super().step()
                return
        for group in self.param_groups:
            weights, gradients, momenta = [], [], []
            self._init_group(group, weights, gradients, momenta)
            for weight, gradient, momentum in zip(weights, gradients, momenta, strict=True):
                momentum.lerp_(gradient, 1 - group["momentum"])
                ahead = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                turned = orthogonalise(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                rows, columns = weight.shape
                weight.add_(turned, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonalise(
    matrix: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float
) -> Tensor:
    """U V^T of a matrix U S V^T, roughly (singular values not near 0 end between 0.6 and 1.3), by `num_steps`
    of X <- a X + (b X X^T + c (X X^T)^2) X."""
    a, b, c = coefficients
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=eps)
    for _ in range(num_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T
