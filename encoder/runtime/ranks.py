"""Processes that work together: started by `accelerate launch` or `torchrun`, or one alone.

Each draws the whole step's times and labels and the noise of its own rows, so that W processes learn and
sample what one does. Gradients are averaged by DDP, which accelerate's launch environment describes.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from encoder.runtime.device import Device, require_device


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's number, how many there are, and the device it computes on."""

    rank: int
    world: int
    device: str

    @staticmethod
    def start(device: Device) -> "Ranks":
        """Join the processes of this launch: one alone unless WORLD_SIZE says more.

        Raises: ValueError where the device is a GPU and torch sees none.
        """
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return Ranks(0, 1, str(require_device(device)))
        state = PartialState(cpu=require_device(device).type == "cpu")
        return Ranks(state.process_index, state.num_processes, str(state.device))

    @property
    def is_main(self) -> bool:
        """Whether this is the first process, which alone writes the shared files."""
        return self.rank == 0

    def part(self, num: int) -> slice:
        """The rows of `num` that are this process's.

        Raises:
            ValueError: they do not divide evenly.
        """
        if num % self.world:
            raise ValueError(f"batch_size {num} must be a multiple of the {self.world} processes")
        size = num // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` with its gradients averaged over processes."""
        return DistributedDataParallel(model) if self.world > 1 else model

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in rank order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()


def no_sync(model: nn.Module, is_last: bool) -> AbstractContextManager:
    """Gradients stay in their process until the last micro-batch."""
    return nullcontext() if is_last or not isinstance(model, DistributedDataParallel) else model.no_sync()


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of `Ranks.wrap`."""
    return model.module if isinstance(model, DistributedDataParallel) else model
