"""The frozen teacher, asked for velocities, features and paths, and what stage 1 learns from it.

Letters: B batch, C latent channels, h w grid, N tokens, D_e backbone width.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from encoder.runtime import checkpoint
from encoder.training.optim import autocast
from rae_bridge.distillation.config import DistillConfig
from rae_bridge.distillation.states import Grids, States
from rae_bridge.dit import DiTDH
from rae_bridge.sample import time_grid


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen DiT-DH under cfg of one scale (1: none)."""

    model: DiTDH
    scale: float
    precision: str

    @torch.no_grad()
    def velocity(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The guided velocity, B C h w: one forward pass, under guidance two."""
        with autocast(self.precision, x_t.device.type):
            with_class = self.model(x_t, t, y)
            return with_class if self.scale == 1 else with_class + self._pushed(with_class, x_t, t)

    @torch.no_grad()
    def push(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """(scale - 1) (velocity with the class - without): what guidance adds, B C h w; 0 for no class."""
        if self.scale == 1:
            return torch.zeros_like(x_t)
        with autocast(self.precision, x_t.device.type):
            return self._pushed(self.model(x_t, t, y), x_t, t)

    def _pushed(self, with_class: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        null = torch.full((len(x_t),), self.model.num_classes, device=x_t.device)
        return (self.scale - 1) * (with_class - self.model(x_t, t, null))

    def features(self, x_t: Tensor, t: Tensor, y: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """What comes out of some blocks of the backbone (B N D_e each); gradients go through to x_t."""
        with autocast(self.precision, x_t.device.type):
            return self.model.backbone(x_t, t, y, taps=taps)[1]

    def path(self, noise: Tensor, y: Tensor, times: Sequence[float]) -> list[Tensor]:
        """The states (B C h w each) of an Euler path at `times`, which fall from 1."""
        states = [noise]
        for t, r in itertools.pairwise(times):
            at = torch.full((len(noise),), t, dtype=noise.dtype, device=noise.device)
            states.append(states[-1] + (r - t) * self.velocity(states[-1], at, y))
        return states


def lesson(
    teacher: Teacher, states: States, config: DistillConfig, grids: Grids, step: int, part: slice
) -> tuple[States, Tensor, bool]:
    """What a step of stage 1 teaches: its states, the velocity there, and whether that is a mean velocity.

    tmd: a sample of w at x_t, moved by guidance, so that its mean is the guided velocity. meanflow: the
    teacher's velocity, or the same sample.
    """
    matching = config.matching
    if step < matching.warmup_steps and matching.warmup == "teacher_pairs":
        return *teacher_pairs(teacher, states, config, grids, step, part), True
    x_t, t, y = states.x_t, states.t, states.y
    if config.method == "meanflow" and matching.velocity == "teacher":
        return states, teacher.velocity(x_t, t, y), False
    return states, states.velocity + teacher.push(x_t, t, y), False


def teacher_pairs(
    teacher: Teacher, states: States, config: DistillConfig, grids: Grids, step: int, part: slice
) -> tuple[States, Tensor]:
    """Two states of a teacher's path from the step's noise, and the mean velocity between them.

    meanflow: any two. tmd: any one and the last, for what is generated from x_t is the end.
    Source: CMT in arXiv:2511.13019. Deviation: the states bear the times of their own, shifted grid, which
    its code labels with the unshifted one.
    """
    times = time_grid(config.matching.pair_steps, grids.shift, "zero")
    path = torch.stack(teacher.path(states.noise, states.y, times))  # K+1 B C h w
    draw = checkpoint.step_generator(config.seed, step, "pairs")
    num = len(times)
    two = torch.rand(config.batch_size, num, generator=draw).argsort(dim=1)[part, :2].sort(dim=1).values
    first, last = two.to(states.t.device).unbind(1)
    if config.method == "tmd":
        first, last = first.clamp(max=num - 2), torch.full_like(last, num - 1)
    rows, grid = torch.arange(len(first), device=first.device), torch.tensor(times, dtype=states.t.dtype)
    grid = grid.to(first.device)
    x_t, x_r, t, end = path[first, rows], path[last, rows], grid[first], grid[last]
    mean = (x_t - x_r) / (t - end)[:, None, None, None]
    return replace(states, x_t=x_t, t=t, r=end if config.method == "meanflow" else states.r), mean
