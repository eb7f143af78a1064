"""Weights, gradients and optimiser states sharded over processes (FSDP2), and whole again for checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

_SCALE = "logit_scale"  # the one parameter without a dimension, which FSDP2 cannot shard


def shard(module: nn.Module, model: nn.Module, block: type[nn.Module]) -> nn.Module:
    """Shard `module` over processes by FSDP2, each `block` in it by itself. `model` in it holds logit_scale,
    which gets a dimension; checkpoints keep it without."""
    model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1))
    for each in module.modules():
        if isinstance(each, block):
            fully_shard(each)
    return fully_shard(module)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a sharded model, whole, in every process, as `model.state_dict()` is before sharding."""
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return weights | {_SCALE: weights[_SCALE].reshape(())}


def whole_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state of a sharded model, whole, by parameter names, on the first process's CPU."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(model, optimiser, options=options)


def load_whole(
    model: nn.Module, optimiser: torch.optim.Optimizer, weights: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Put whole weights and optimiser state (of `whole_weights`, `whole_optimiser`) into a sharded model."""
    set_state_dict(
        model,
        optimiser,
        model_state_dict=weights | {_SCALE: weights[_SCALE].reshape(1)},
        optim_state_dict=state,
        options=StateDictOptions(full_state_dict=True),
    )
