"""What the trainers need of other processes: rows with their gradients, sums, counts, shared work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Part:
    """What a process brings where all meet: the work it is in, whether it has ended it, its values by number,
    what failed."""

    work: str
    has_ended: bool
    done: dict[int, Any]
    fault: str | None


def share_out(do: Callable[[int], Any], number: int, work: str = "") -> list[Any]:
    """[do(0), ..., do(number - 1)] in every process, each computed by one of them, in turns.

    The values travel pickled: small tensors on the CPU, numbers. work: a name for what is computed.

    Raises:
        Exception: what `do` raises; of several processes a RuntimeError in all, so that none waits for one
            that failed, here or outside (`end_together`), and none takes values of other work for its own.
    """
    world, own = num_processes(), process_number()
    if world == 1:
        return [do(index) for index in range(number)]
    done, fault = {}, None
    try:
        for index in range(own, number, world):
            done[index] = do(index)
    except Exception as error:  # of any kind: it is raised below, everywhere
        fault = f"{type(error).__name__}: {error}"
    parts = _meet(_Part(work, False, done, fault))
    for rank, part in enumerate(parts):
        if part.fault is not None:
            raise RuntimeError(f"process {rank}: {part.fault}")
    if any(part.has_ended or part.work != work for part in parts):
        raise RuntimeError(_parting(parts))
    done = {index: value for part in parts for index, value in part.done.items()}
    return [done[index] for index in range(number)]


def end_together(work: str, fault: str | None) -> str | None:
    """Meet the others at the end of some work, in which each may have called `share_out`; returns why it
    failed, the same in all: the first process's own fault, or another's; None: it went well everywhere.

    fault: why it failed here. A process that ends early fails the others' calls of `share_out` until they
        come here.
    """
    if num_processes() == 1:
        return fault
    while True:
        parts = _meet(_Part(work, True, {}, fault))
        if all(part.has_ended for part in parts):
            break
        fault = fault or _parting(parts)
    for rank, part in enumerate(parts):
        if part.fault is not None:
            return f"process {rank}: {part.fault}" if rank else part.fault
    return None if {part.work for part in parts} == {work} else _parting(parts)


def _meet(own: _Part) -> list[_Part]:
    parts: list[Any] = [None] * num_processes()
    dist.all_gather_object(parts, own)
    return parts


def _parting(parts: list[_Part]) -> str:
    """Processes that are not in the same work, in words."""
    where = (
        f"process {rank} {'has ended' if part.has_ended else 'is in'} '{part.work}'"
        for rank, part in enumerate(parts)
    )
    return f"the processes went apart: {', '.join(where)}"


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
