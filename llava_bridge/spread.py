"""Weights that the first process of a launch has read, brought to all others.

The others build the model without weights (torch's meta device) and receive them parameter by parameter: no
other process opens the weights' files, and under ZeRO-3 none but the first ever holds more than its share and
one parameter. With GPUs the weights are received there, and leave the first process's memory as they go.
"""

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

Outline = list[tuple[str, tuple[int, ...], torch.dtype]]


def spread_weights(model: nn.Module, tower: nn.Module, zero: dict | None) -> None:
    """Give every process the weights of the first one. Every process of a launch calls, with the same model:
    the first one with weights, the others on the meta device but for the tower.

    tower: a part of the model that every process holds whole, in its place. zero: DeepSpeed's settings where
    they split the model (ZeRO-3), by which each parameter is split as it comes.

    Raises:
        ValueError: this process built another model than the first one read.
    """
    device = _meeting_place()
    outlines = [_outline(model)]
    dist.broadcast_object_list(outlines, src=0, device=device)
    dtypes = _compare(_outline(model), outlines[0])
    for tensor in (*tower.parameters(), *tower.buffers()):
        _receive_in_place(tensor, device)
    in_tower = set(tower.modules())
    done: dict[nn.Parameter, nn.Parameter] = {}  # tied ones are received once
    for prefix, module in model.named_modules():
        if module in in_tower:
            continue
        path = f"{prefix}." if prefix else ""
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in done:
                placed = _place(parameter, dtypes.get(path + name), device)
                if zero is None:
                    _broadcast(placed)
                else:
                    _split(placed, zero, next(iter(done.values()), None))
                done[parameter] = placed
            module._parameters[name] = done[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _place(buffer, dtypes[path + name], device)
                _broadcast(module._buffers[name])


def _meeting_place() -> torch.device:
    """Where this process's backend takes tensors."""
    is_on_gpus = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if is_on_gpus else torch.device("cpu")


def _outline(model: nn.Module) -> Outline:
    named = [*model.named_parameters(), *model.named_buffers(remove_duplicate=False)]
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in named]


def _compare(own: Outline, first: Outline) -> dict[str, torch.dtype]:
    """The first process's types by name."""
    for mine, theirs in zip(own, first, strict=False):
        if mine[:2] != theirs[:2]:
            raise ValueError(
                f"process 0 has read {theirs[0]} {theirs[1]}, process {dist.get_rank()} expects {mine[0]} "
                f"{mine[1]}; give all processes the same config.json, tokenizer and encoder"
            )
    if len(own) != len(first):
        raise ValueError(
            f"process 0 has read {len(first)} tensors, process {dist.get_rank()} expects {len(own)}; give "
            "all processes the same config.json, tokenizer and encoder"
        )
    return {name: dtype for name, _, dtype in first}


def _place(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """This tensor on the device: the first process's own, elsewhere an empty one in its place."""
    if not tensor.is_meta:
        tensor.data = tensor.data.to(device).contiguous()
        return tensor
    empty = torch.empty(tensor.shape, dtype=dtype, device=device)
    return (
        nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    )


def _receive_in_place(tensor: Tensor, device: torch.device) -> None:
    sent = tensor.detach().to(device).contiguous()
    _broadcast(sent)
    if dist.get_rank() != 0 and sent.data_ptr() != tensor.data_ptr():
        tensor.detach().copy_(sent)


def _broadcast(tensor: Tensor) -> None:
    dist.broadcast(tensor.detach().view(-1).view(torch.uint8), src=0)  # bytes: gloo does not know every type


def _split(parameter: nn.Parameter, zero: dict, sibling: nn.Parameter | None) -> None:
    """Broadcast a parameter and keep this process's share; `sibling` was split before."""
    if sibling is not None:
        sibling.convert_to_zero_parameters(param_list=[parameter])
        return
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero["zero_optimization"]}
    settings["bf16"] = {"enabled": parameter.dtype == torch.bfloat16}
    deepspeed.zero.Init(nn.ParameterList([parameter]), config_dict_or_path=settings, dtype=parameter.dtype)
