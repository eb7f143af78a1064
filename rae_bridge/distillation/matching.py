"""Stage 1: a mean velocity learnt from the identity that it fulfils, for both students.

u(x_s, s, r) (s - r) is the way from x_r to x_s, hence u + (s - r) du/ds = v, v the instantaneous velocity at
s and du/ds the derivative along it. The target v - (s - r) du/ds is held fixed. MeanFlow's student is u on
the path of x_t; TMD's has it on the path of w_s, with x_t and the backbone's condition held fixed, so that
only the head is run for the derivative.

Letters as in `rae_bridge.transition`: w = noise - latents, w_s = (1-s) w + s w_1.

Source: MeanFlow (arXiv:2505.13447), Eq. 6-8; TMD (arXiv:2601.09881), TM-MF; central difference and warm-up:
arXiv:2511.13019. Deviation: the error of TMD's student is measured on what its head says, s^2 times that of
u with the anchor at w_s and equal to it with the paper's.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from encoder.training.optim import autocast
from rae_bridge.distillation.config import DistillConfig
from rae_bridge.distillation.states import States
from rae_bridge.flow import interpolate
from rae_bridge.transition import MeanFlowDiT, TransitionDiT


def spread(t: Tensor) -> Tensor:
    """(B,) -> B 1 1 1"""
    return t[:, None, None, None]


@torch.no_grad()
def central_difference(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, velocity: Tensor, s: Tensor, delta: float
) -> Tensor:
    """d/ds of function(x, s) along dx/ds = velocity, by points `delta` to both sides; s (B,) stays in [0, 1],
    at whose ends the difference is one-sided. In fp32, whatever is around."""
    with torch.autocast(x.device.type, enabled=False):
        ahead, behind = (s + delta).clamp(max=1), (s - delta).clamp(min=0)
        points = (x.float() + spread(to - s) * velocity for to in (ahead, behind))
        last, first = (function(point, to) for point, to in zip(points, (ahead, behind), strict=True))
        return (last - first) / spread(ahead - behind)


def velocity_target(velocity: Tensor, slope: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """v - (s - r) du/ds, without gradient; velocity, slope B C h w; s, r (B,)."""
    return (velocity - spread(s - r) * slope).detach()


def head_target(
    w: Tensor,
    w_s: Tensor,
    inner_noise: Tensor,
    head: Tensor,
    slope: Tensor,
    s: Tensor,
    r: Tensor,
    anchor: str,
) -> Tensor:
    """`velocity_target` solved for what the head says, given its slope d head/ds; all B C h w; s, r (B,).

    With v = w_1 - w: anchor `noise`, u = w_1 - head: w - (s - r) slope. Anchor `state`, u = (w_s - head) / s:
    (r / s) w + (1 - r / s) head - (s - r) slope, in which no quotient of u is left.
    """
    share = spread(r / s) if anchor == "state" else 1.0
    return (share * w + (1 - share) * head - spread(s - r) * slope).detach()


def adaptive_loss(said: Tensor, target: Tensor, constant: float) -> tuple[Tensor, Tensor]:
    """Mean over pictures of error / sg(error + constant), and the mean error itself; an error is a mean
    square over a picture's numbers, in fp32."""
    errors = (said.float() - target.float()).square().flatten(1).mean(dim=1)
    return (errors / (errors.detach() + constant)).mean(), errors.detach().mean()


class Matching(nn.Module):
    """The loss of stage 1 as a module, so that its gradients are averaged over processes."""

    def __init__(self, student: TransitionDiT | MeanFlowDiT, config: DistillConfig) -> None:
        super().__init__()
        self.student, self.config = student, config

    def forward(self, states: States, velocity: Tensor, is_pair: bool) -> tuple[Tensor, Tensor]:
        """Loss and mean error on the states of a step.

        velocity B C h w: at (x_t, t), of the data or of the teacher; with is_pair the mean velocity itself,
        from t to r of meanflow's states, from t to 0 of tmd's.
        """
        of_student = self._transition if isinstance(self.student, TransitionDiT) else self._mean_flow
        with autocast(self.config.precision, velocity.device.type):
            said, target = of_student(states, velocity, is_pair)
        return adaptive_loss(said, target, self.config.matching.adaptive_constant)

    def _mean_flow(self, states: States, velocity: Tensor, is_pair: bool) -> tuple[Tensor, Tensor]:
        x_t, t, y, r = states.x_t, states.t, states.y, states.r
        u = self.student(x_t, t, y, r)
        if is_pair or torch.equal(r, t):
            return u, velocity
        delta = self.config.matching.delta
        slope = central_difference(lambda x, at: self.student(x, at, y, r), x_t, velocity, t, delta)
        return u, velocity_target(velocity, slope, t, r)

    def _transition(self, states: States, w: Tensor, is_pair: bool) -> tuple[Tensor, Tensor]:
        x_t, t, s, r, noise = states.x_t, states.t, states.s, states.r, states.inner_noise
        condition, _ = self.student.backbone(x_t, t, states.y)
        w_s = interpolate(w, noise, s)
        head = self.student.inner_head(condition, x_t, t, w_s, s, r)
        if is_pair or torch.equal(r, s):
            return head, w
        along = lambda w_s, s: self.student.inner_head(condition.float(), x_t, t, w_s, s, r)  # noqa: E731
        slope = central_difference(along, w_s, noise - w, s, self.config.matching.delta)
        return head, head_target(w, w_s, noise, head, slope, s, r, self.student.config.anchor)
