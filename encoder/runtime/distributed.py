"""What the trainers need of other processes: rows with their gradients, sums, counts, shared work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """How many processes train together; 1 outside a launch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_number() -> int:
    """This process's place among those that train together, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def share_out(do: Callable[[int], Any], number: int) -> list[Any]:
    """[do(0), ..., do(number - 1)] in every process, each computed by one of them, in turns.

    The values travel pickled: small tensors on the CPU, numbers.

    Raises:
        Exception: what `do` raises; of several processes a RuntimeError in all, so that none waits for one
            that failed.
    """
    world, own = num_processes(), process_number()
    if world == 1:
        return [do(index) for index in range(number)]
    done, fault = {}, None
    try:
        for index in range(own, number, world):
            done[index] = do(index)
    except Exception as error:  # of any kind: it is raised below, everywhere
        fault = f"process {own}: {type(error).__name__}: {error}"
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, (done, fault))
    if faults := [fault for _, fault in parts if fault is not None]:
        raise RuntimeError(faults[0])
    done = {index: value for part, _ in parts for index, value in part.items()}
    return [done[index] for index in range(number)]


def from_first(value: Any) -> Any:
    """The first process's value, in every process; it travels pickled."""
    if num_processes() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


class _GatherRows(torch.autograd.Function):
    """Forward: every process's rows, in rank order. Backward: the sum over processes of their gradients, of
    the own rows."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """rows (B D) of each of W processes -> all rows (W B, D), differentiable through every process.

    B must be the same everywhere. A loss averaged over processes (as DDP averages gradients) then has the
    gradient of the global loss.
    """
    return _GatherRows.apply(rows) if num_processes() > 1 else rows


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over processes (not differentiable)."""
    if num_processes() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value
