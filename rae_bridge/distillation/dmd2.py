"""Stage 2: the student's distribution is matched to the teacher's, at every t of its grid, by their scores.

Latents are made from a real x_t in one transition: x^ = x_t - t w. They are noised to x^_t' again; where the
teacher would denoise this otherwise than a critic that knows the student's latents (the fake score) would,
the student is pushed: gradient (g_fake - g_teacher) / size, g = x - t v the clean latents that a velocity v
means.

Letters: B batch, C latent channels, h w grid.

Source: DMD2 (arXiv:2405.14867), Sec. 4; TMD (arXiv:2601.09881), DMD2-v. Deviation: TMD's text makes the
latents from the noise that x_t was mixed with, x^ = x_1 - w. Given x_t, w and that noise are independent
draws, so this would not be distributed as data even for a perfect student; x_t - t w is. At t = 1 both agree.
"""

import torch
from torch import Tensor, nn

from encoder.training.optim import autocast
from rae_bridge.distillation.config import DistillConfig
from rae_bridge.distillation.matching import spread
from rae_bridge.distillation.states import Grids, States
from rae_bridge.dit import DiTDH
from rae_bridge.flow import T_MAX, interpolate, shift_time
from rae_bridge.transition import TransitionDiT, inner_step, mean_velocity


class Generator(nn.Module):
    """The student with what makes latents from x_t, as a module, so that its gradients are averaged."""

    def __init__(self, student: DiTDH, config: DistillConfig, grids: Grids) -> None:
        super().__init__()
        self.student, self.config, self.inner_times = student, config, grids.inner_times

    def forward(self, states: States) -> Tensor:
        """x^ (B C h w), with gradient through every call of the head."""
        with autocast(self.config.precision, states.x_t.device.type):
            return (states.x_t - spread(states.t) * self.velocity(states)).float()

    def velocity(self, states: States) -> Tensor:
        """w at x_t: rolled as in sampling, or in one step to 0 from the inner state at s of the data."""
        x_t, t, y, noise = states.x_t, states.t, states.y, states.inner_noise
        if not isinstance(self.student, TransitionDiT):
            return self.student(x_t, t, y)
        if self.config.distribution.rollout:
            return self.student(x_t, t, y, noise, self.inner_times)
        condition, _ = self.student.backbone(x_t, t, y)
        w_s, s, end = interpolate(states.velocity, noise, states.s), spread(states.s), torch.zeros_like(t)
        head = self.student.inner_head(condition, x_t, t, w_s, states.s, end)
        return inner_step(w_s, mean_velocity(head, w_s, noise, s, self.student.config.anchor), s, 0.0)


def renoise_times(num: int, shift: float, generator: torch.Generator) -> Tensor:
    """t' (num,): uniform up to the largest time that a teacher has seen, shifted."""
    return shift_time(torch.rand(num, generator=generator) * T_MAX, shift).clamp(max=T_MAX)


def clean(x_t: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """g = x_t - t v: the latents that a velocity means, B C h w; t (B,)."""
    return x_t - spread(t) * velocity


def matching_gradient(fake: Tensor, teacher: Tensor, latents: Tensor, normaliser: str) -> Tensor:
    """The gradient by the student's latents, from both networks' clean ones; all B C h w.

    The difference over its own mean absolute value (`difference`), picture by picture, or over that of the
    latents from the teacher's (`teacher`), which goes to 0 as the two agree.
    """
    difference = fake - teacher
    size = difference if normaliser == "difference" else latents - teacher
    return difference / spread(size.abs().flatten(1).mean(dim=1)).clamp(min=1e-8)


def matching_loss(latents: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient by the latents is `gradient` over their number."""
    return 0.5 * (latents - (latents - gradient).detach()).square().mean()
