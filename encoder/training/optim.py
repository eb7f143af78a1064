"""The optimiser of every trainer here: AdamW, warm-up and cosine, clipping, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from encoder.runtime.device import Precision, settled_precision
from encoder.training.finite import FiniteSteps
from encoder.training.muon import Muon
from encoder.training.options import OptimConfig


def build_adamw(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW whose weight decay acts on kernels only (matrices of linear and convolution layers).

    Embeddings, positions, class tokens, temperatures, biases and norms are not decayed.
    Source: UCSC-VLAA/OpenVision@6c24e45 (optax mask on names ending in /kernel).
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    kernels = {id(layer.weight) for layer in layers}
    bare = ("in_proj_weight", "proj")  # kernels that are parameters of their module, not of a layer in it
    kernels |= {id(p) for name, p in module.named_parameters() if name.rsplit(".", 1)[-1] in bare}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in kernels], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) not in kernels], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


class MuonWithAdamW:
    """Muon on the blocks' matrices, AdamW on the rest (embeddings, norms, head), as one optimiser.

    Source: Jordan et al. 2024, "Muon".
    """

    def __init__(self, matrices: list[Tensor], rest: list[Tensor], config: OptimConfig, muon_lr: float):
        muon = Muon([{"params": matrices, "peak_lr": muon_lr}], lr=muon_lr, weight_decay=0.0)
        adamw = torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, weight_decay=0.0, fused=True)
        self.parts = (muon, adamw)

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict) -> None:
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])


def rate_factor(config: OptimConfig, step: int, num_steps: int) -> float:
    """Factor on the peak learning rate at a step: linear warm-up and a cosine to `final_lr`.

    The two are multiplied, as in OpenVision's optax chain, or follow each other (`cosine_after_warmup`), as
    in RAE's (bytetriper/RAE@a4d18c4, utils/optim_utils.py). The first step has 1/warmup_steps of the rate,
    not 0.
    """
    first = config.warmup_steps if config.cosine_after_warmup else 0
    cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - first) / max(1, num_steps - first)))
    least = config.final_lr / config.lr if config.lr else 0.0
    return (least + (1 - least) * cosine) * min(1.0, (step + 1) / max(1, config.warmup_steps))


def update(
    optimiser: torch.optim.Optimizer,
    loss: Tensor,
    config: OptimConfig,
    step: int,
    num_steps: int,
    probe: Collection[nn.Parameter] = (),
    finite: FiniteSteps | None = None,
) -> float:
    """Backward, then `apply_gradients`, found finite or not at once; returns the norm before clipping.

    Raises: ValueError if the loss or its gradient is not finite, naming the step, unless `finite` still
    allows to leave such a step out; the weights are then those before it.
    """
    finite = finite or FiniteSteps()
    loss.backward()
    norm = apply_gradients(optimiser, loss, config, step, num_steps, finite, probe)
    finite.settle()
    return norm.item()


def apply_gradients(
    optimiser: torch.optim.Optimizer,
    loss: Tensor,
    config: OptimConfig,
    step: int,
    num_steps: int,
    finite: FiniteSteps,
    probe: Collection[nn.Parameter] = (),
) -> Tensor:
    """Clip, step unless `loss` or its gradient is not finite, zero the gradients; returns the norm of the
    gradient before clipping, on its device. `finite.settle()` tells later whether the step was applied.

    Parameters of a `probe` are clipped by a norm of their own, so that they cannot shorten the others' step;
    the norm returned is the others'.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    apart = {id(parameter) for parameter in probe}
    max_norm = config.clip_norm if config.clip_norm is not None else math.inf
    norm = _clip([each for each in parameters if id(each) not in apart], max_norm)
    others = _clip([each for each in parameters if id(each) in apart], max_norm) if apart else 0.0
    for group in optimiser.param_groups:
        group["lr"] = group.get("peak_lr", config.lr) * rate_factor(config, step, num_steps)
    step_if_finite(optimiser, finite.look(step, loss, norm + others))
    optimiser.zero_grad(set_to_none=True)
    return norm


def _clip(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded weights


def step_if_finite(optimiser: torch.optim.Optimizer | MuonWithAdamW, is_bad: Tensor) -> None:
    """`optimiser.step()`, unless `is_bad` (a number on the device) is 1.

    Fused optimisers read it on the device, as they do for torch's GradScaler: nothing of theirs changes, the
    count of steps included. Others are asked to step or not, which waits for the number.
    """
    if getattr(optimiser, "_step_supports_amp_scaling", False):
        optimiser.found_inf = is_bad
        optimiser.step()
        del optimiser.found_inf
    elif not is_bad:
        optimiser.step()


@torch.no_grad()
def average_weights(averaged: Iterable[Tensor], current: Iterable[Tensor], decay: float, step: int) -> None:
    """averaged = d averaged + (1 - d) current, in place, with d = min(decay, (1 + step) / (10 + step)).

    The smaller d of the first steps keeps the random initial weights from lingering.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averaged), [tensor.detach() for tensor in current], weight)


def autocast(precision: Precision, device: str = "cpu") -> AbstractContextManager:
    """bf16 mixed precision where `precision` is, or is settled as, bf16; else nothing."""
    return torch.autocast(device, torch.bfloat16, enabled=settled_precision(precision, device) == "bf16")
