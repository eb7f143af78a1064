"""From noise to latents along a learned velocity field, by Euler or Heun, with or without guidance.

t runs from 1 (noise) to 0 (data). A model is any callable (x_t, t, y) -> velocity; with class-free guidance
it has `num_classes`, the index of its null class.

Source: RAE (stage2/transport and sample.py at a4d18c4). Deviations: the grid may end at 0, which RAE's never
reaches; guidance costs a second forward only where it acts.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from rae_bridge.flow import T_MAX, shift_time

VelocityModel = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """velocity = weaker + scale * (stronger - weaker) wherever interval[0] <= t <= interval[1].

    kind `cfg`: weaker is the same model without the class. kind `autoguidance`: weaker is `model`, a smaller
    or less trained one, with the same class (arXiv:2406.02507).
    """

    kind: Literal["cfg", "autoguidance"]
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    model: VelocityModel | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("cfg", "autoguidance"):
            raise ValueError(f"guidance kind '{self.kind}' is unknown; choices: cfg, autoguidance")
        if not self.interval[0] < self.interval[1]:
            raise ValueError(f"guidance interval {self.interval} must be (t_min, t_max) with t_min < t_max")
        if (self.kind == "autoguidance") != (self.model is not None):
            raise ValueError("autoguidance needs the weaker model as `model`; cfg takes none")


def time_grid(num_intervals: int, shift: float, end: Literal["rae", "zero"]) -> list[float]:
    """num_intervals + 1 falling times from 1: to exactly 0 (`zero`), or RAE's own grid (`rae`).

    RAE's maps linspace(0, 0.999) to 1 - u, then shifts: at shift 6.93 it ends at t = 0.0069.
    """
    last = {"rae": T_MAX, "zero": 1.0}.get(end)
    if last is None:
        raise ValueError(f"end '{end}' is unknown; choices: rae, zero")
    u = torch.linspace(0, last, num_intervals + 1, dtype=torch.float64)
    return shift_time(1 - u, shift).tolist()


@torch.no_grad()
def sample(
    model: VelocityModel,
    noise: Tensor,
    y: Tensor,
    *,
    num_steps: int,
    shift: float,
    guidance: Guidance | None = None,
    solver: Literal["euler", "heun"] = "euler",
    end: Literal["rae", "zero"] = "zero",
) -> Tensor:
    """Integrate from noise (B D h w) at t=1 to latents of the same shape, for classes y (B,).

    `num_steps` counts calls of `model`, a doubled guidance batch being one; Heun spends two an interval.
    `shift` is the factor itself (1: none). RAE's "50 steps" are num_steps=49, end="rae".

    Raises:
        ValueError: num_steps below 1, or odd with Heun; an unknown solver or end.
    """
    calls_per_interval = {"euler": 1, "heun": 2}.get(solver)
    if calls_per_interval is None:
        raise ValueError(f"solver '{solver}' is unknown; choices: euler, heun")
    if num_steps < 1 or num_steps % calls_per_interval:
        raise ValueError(
            f"num_steps {num_steps} must be a positive multiple of {calls_per_interval} for {solver}"
        )
    times = time_grid(num_steps // calls_per_interval, shift, end)
    x = noise
    for t, t_next in itertools.pairwise(times):
        velocity = guided_velocity(model, x, t, y, guidance)
        if solver == "heun":
            ahead = x + (t_next - t) * velocity
            velocity = (velocity + guided_velocity(model, ahead, t_next, y, guidance)) / 2
        x = x + (t_next - t) * velocity
    return x


def guided_velocity(
    model: VelocityModel, x_t: Tensor, t: float, y: Tensor, guidance: Guidance | None
) -> Tensor:
    """The velocity B D h w at one time, with one forward of `model` in every case."""
    times = torch.full((len(x_t),), t, dtype=x_t.dtype, device=x_t.device)
    if guidance is None or guidance.scale == 1 or not guidance.interval[0] <= t <= guidance.interval[1]:
        return model(x_t, times, y)
    if guidance.kind == "cfg":
        null = torch.full_like(y, model.num_classes)
        both = model(torch.cat([x_t, x_t]), torch.cat([times, times]), torch.cat([y, null]))
        stronger, weaker = both.chunk(2)
    else:
        stronger, weaker = model(x_t, times, y), guidance.model(x_t, times, y)
    return weaker + guidance.scale * (stronger - weaker)


class FewStepModel(Protocol):
    """A student that says by which velocity to go from t to r: `rae_bridge.transition`."""

    def transition(
        self, x_t: Tensor, t: Tensor, r: Tensor, y: Tensor, inner_noise: Tensor, inner_times: Sequence[float]
    ) -> Tensor: ...


@torch.no_grad()
def sample_transitions(
    model: FewStepModel,
    noise: Tensor,
    y: Tensor,
    *,
    num_steps: int,
    shift: float,
    inner_noise: Tensor,
    inner_times: Sequence[float] = (1.0, 0.0),
) -> Tensor:
    """Latents (B D h w) from noise at t=1, in `num_steps` transitions on the shifted grid that ends at 0.

    One call of the backbone each, with fresh inner noise (num_steps B D h w), and one of the head for each
    interval of `inner_times`, which fall from 1 to 0. Deterministic given the noise.

    Raises:
        ValueError: num_steps below 1, inner noise of another shape, inner times that do not fall from 1 to 0.
    """
    if num_steps < 1 or inner_noise.shape != (num_steps, *noise.shape):
        raise ValueError(
            f"num_steps {num_steps} must be 1 or more, with inner noise {(num_steps, *noise.shape)}; "
            f"got {tuple(inner_noise.shape)}"
        )
    falls = all(s > r for s, r in itertools.pairwise(inner_times))
    if len(inner_times) < 2 or (inner_times[0], inner_times[-1]) != (1, 0) or not falls:
        raise ValueError(f"inner_times {list(inner_times)} must fall from 1 to 0")
    x = noise
    for (t, r), drawn in zip(
        itertools.pairwise(time_grid(num_steps, shift, "zero")), inner_noise, strict=True
    ):
        times = (torch.full((len(x),), time, dtype=x.dtype, device=x.device) for time in (t, r))
        x = x + (r - t) * model.transition(x, *times, y, drawn, inner_times)
    return x
