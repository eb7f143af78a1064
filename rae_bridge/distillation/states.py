"""The states that a step learns from: times, x_t of real latents, the inner flow's noise.

All are drawn from (seed, step, row) alone, so W processes draw what one does. Letters: B batch, C latent
channels, h w grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from encoder.runtime import checkpoint
from rae_bridge.distillation.config import DistillConfig
from rae_bridge.flow import interpolate, shift_time, velocity_target
from rae_bridge.flow_batch import noise_of_step
from rae_bridge.sample import time_grid

MIN_S = 1e-3  # the mean velocity of the inner flow is a quotient by s


@dataclass(frozen=True, slots=True)
class Grids:
    """A student's times: both grids fall from 1 to 0."""

    times: list[float]  # M + 1
    inner_times: list[float]  # N + 1
    shift: float  # of `times`, and of meanflow's t
    inner_shift: float
    s_shift: float  # of the uniform s in stage 1

    @staticmethod
    def of(config: DistillConfig, teacher_shift: float) -> "Grids":
        """As configured; what is left out is the teacher's."""
        given = (config.shift, config.inner_shift, config.matching.s_shift)
        shift, inner, s = (teacher_shift if each is None else each for each in given)
        return Grids(
            time_grid(config.steps, shift, "zero"),
            time_grid(config.inner_steps, inner, "zero"),
            shift,
            inner,
            s,
        )


@dataclass(frozen=True, slots=True)
class States:
    """A step's rows. t, r, s (B,); y (B,), in stage 1 some replaced by the null class; the rest B C h w.

    r: where the mean velocity leads to, from t (meanflow) or from s (tmd).
    """

    latents: Tensor
    noise: Tensor
    x_t: Tensor
    t: Tensor
    y: Tensor
    s: Tensor
    r: Tensor
    inner_noise: Tensor

    @property
    def velocity(self) -> Tensor:
        """noise - latents: TMD's w."""
        return velocity_target(self.latents, self.noise)


def below(points: list[float], s: Tensor) -> Tensor:
    """The largest of `points` under each s (B,); 0 where there is none."""
    grid = torch.tensor(points, dtype=s.dtype)
    return torch.where(grid < s[:, None], grid, 0).amax(dim=1)


def draw_states(
    latents: Tensor,
    y: Tensor,
    config: DistillConfig,
    grids: Grids,
    step: int,
    part: slice,
    *,
    null: int,
    what: str = "",
) -> States:
    """States of normalised latents (B C h w) of classes y (B,), rows `part` of the step's `batch_size`.

    null: the class that stands for none, in stage 1; what: of several batches of one step, which one.
    """
    size, rows = config.batch_size, range(config.batch_size)[part]
    draw = checkpoint.step_generator(config.seed, step, f"{what}times")
    t = torch.tensor(grids.times[:-1])[torch.randint(config.steps, (size,), generator=draw)]
    s = shift_time(torch.rand(size, generator=draw), grids.s_shift).clamp(min=MIN_S)
    drawn = shift_time(torch.rand(2, size, generator=draw), grids.shift).clamp(min=MIN_S)
    is_dropped = torch.rand(size, generator=draw) < config.class_dropout_prob
    is_warming = step < config.matching.warmup_steps and config.matching.warmup == "matching"
    is_same = bool(torch.rand((), generator=draw) < config.matching.same_time_share) or is_warming
    if config.method == "meanflow":
        t, r = drawn.amax(dim=0), drawn.amin(dim=0)
        r = t if is_same else r
    elif config.stage == 1:
        r = s if is_same else below(grids.inner_times, s)
    else:
        s = torch.tensor(grids.inner_times[:-1])[torch.randint(config.inner_steps, (size,), generator=draw)]
        r = torch.zeros_like(s)
    t, s, r, is_dropped = (each[rows.start : rows.stop].to(latents.device) for each in (t, s, r, is_dropped))
    if config.stage == 1:
        y = torch.where(is_dropped, null, y)
    noise, inner = (
        noise_of_step(config.seed, step, rows, latents, f"{what}{name}") for name in ("noise", "inner")
    )
    return States(latents, noise, interpolate(latents, noise, t), t, y, s, r, inner)
