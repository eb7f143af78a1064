"""One step's training batch of the flow: its times, its noise, its dropped labels, and the loss on it.

All are drawn from (seed, step, row) alone, so W processes draw what one does.
"""

import dataclasses

import torch
from torch import Tensor, nn

from encoder.runtime import checkpoint
from encoder.training.optim import autocast
from rae_bridge.config import TrainDiTConfig
from rae_bridge.flow import flow_loss, interpolate, sample_time, shift_time, velocity_target


@dataclasses.dataclass(frozen=True, slots=True)
class FlowBatch:
    """One training batch: x_t, target B D h w; t, y (B,), some classes replaced by the null class."""

    x_t: Tensor
    t: Tensor
    y: Tensor
    target: Tensor

    def split(self, size: int) -> list["FlowBatch"]:
        """Micro-batches of at most `size` samples."""
        parts = (tensor.split(size) for tensor in (self.x_t, self.t, self.y, self.target))
        return [FlowBatch(*part) for part in zip(*parts, strict=True)]


def noise_of_step(seed: int, step: int, rows: range, like: Tensor, what: str = "noise") -> Tensor:
    """Standard normal noise of `like`'s shape (B D h w): row i from (seed, step, what, i) alone."""
    noise, generator = torch.empty_like(like), torch.Generator(like.device)
    for row, i in zip(noise, rows, strict=True):
        row.normal_(
            generator=generator.manual_seed(
                checkpoint.step_generator(seed, step, f"{what}/{i}").initial_seed()
            )
        )
    return noise


def draw_batch(
    latents: Tensor, y: Tensor, config: TrainDiTConfig, shift: float, step: int, part: slice | None = None
) -> FlowBatch:
    """Draw times, noise and dropped labels of one step for normalised latents (B D h w) of classes y (B,).

    part: which rows of the step's `batch_size` they are; None: these are all.
    """
    size = len(latents) if part is None else config.batch_size
    rows = range(size)[part or slice(None)]
    draw = checkpoint.step_generator(config.seed, step, "time")
    t = shift_time(sample_time(size, draw, distribution=config.time_distribution), shift)
    is_dropped = torch.rand(size, generator=draw) < config.class_dropout_prob
    t, is_dropped = (value[rows.start : rows.stop].to(latents.device) for value in (t, is_dropped))
    noise = noise_of_step(config.seed, step, rows, latents)
    y = torch.where(is_dropped, config.num_classes, y)
    return FlowBatch(interpolate(latents, noise, t), t, y, velocity_target(latents, noise))


def batch_loss(model: nn.Module, batch: FlowBatch, precision: str) -> Tensor:
    """The flow-matching loss of a batch: a scalar."""
    with autocast(precision, batch.x_t.device.type):
        velocity = model(batch.x_t, batch.t, batch.y)
    return flow_loss(velocity, batch.target)
