"""Stage 2's critics: the score of what the student makes, and a discriminator on the teacher's features.

Letters: B batch, C latent channels, h w grid, N = h * w tokens, D_e backbone width.

Source: DMD2 (arXiv:2405.14867); TMD (arXiv:2601.09881), DMD2-v, whose heads are Conv3D on a video teacher's
features: here Conv2D, on the token grid.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from encoder.runtime import checkpoint
from encoder.runtime.ranks import Ranks
from encoder.training.finite import FiniteSteps
from encoder.training.optim import autocast
from rae_bridge.distillation.config import DistillConfig
from rae_bridge.distillation.dmd2 import clean, matching_gradient, matching_loss, renoise_times
from rae_bridge.distillation.learner import Learner
from rae_bridge.distillation.states import States
from rae_bridge.distillation.teacher import Teacher
from rae_bridge.dit import build_dit
from rae_bridge.flow import flow_loss, interpolate, velocity_target
from rae_bridge.flow_batch import noise_of_step


class Discriminator(nn.Module):
    """One small convolutional head a feature map: list of B N D_e -> logits B L, in fp32."""

    def __init__(self, in_width: int, num_maps: int, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, in_width),
                nn.Conv2d(in_width, width, kernel_size=3, padding=1),
                nn.SiLU(),
                nn.Conv2d(width, width, kernel_size=3, padding=1),
                nn.SiLU(),
                nn.Conv2d(width, 1, kernel_size=1),
            )
            for _ in range(num_maps)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        with torch.autocast(features[0].device.type, enabled=False):
            maps = (rearrange(each.float(), "b (h w) d -> b d h w", h=self.side) for each in features)
            logits = [head(each).flatten(1) for head, each in zip(self.heads, maps, strict=True)]
            return torch.cat(logits, dim=1)


def tapped_blocks(depth: int, given: Sequence[int] | None) -> tuple[int, ...]:
    """The backbone's blocks that are looked at: those given, else up to three, evenly, the last included.

    Raises:
        ValueError: the backbone has no such block.
    """
    if given is None:
        num = min(3, depth)
        return tuple((i + 1) * depth // num - 1 for i in range(num))
    if not given or not all(0 <= block < depth for block in given):
        raise ValueError(f"gan_blocks {list(given)} must be blocks of the backbone, 0 to {depth - 1}")
    return tuple(given)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The logistic loss: mean softplus(-real) + mean softplus(fake)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The non-saturating loss of what is judged: mean softplus(-fake)."""
    return F.softplus(-fake).mean()


class Critics:
    """Fake score and discriminator of one run, both learning; the teacher stays as it is."""

    def __init__(self, config: DistillConfig, teacher: Teacher, shift: float, ranks: Ranks) -> None:
        about, shape = config.distribution, teacher.model.config
        self.config, self.teacher, self.ranks = config, teacher, ranks
        self.shift = shift if about.renoise_shift is None else about.renoise_shift
        fake = build_dit(shape).to(ranks.device)
        fake.load_state_dict(teacher.model.state_dict())
        self.fake = Learner(fake, about.critic_optim, ranks)
        self.learners = {"fake": self.fake}
        if about.gan_weight:
            self.taps = tapped_blocks(shape.depth[0], about.gan_blocks)
            torch.manual_seed(config.seed)
            heads = Discriminator(shape.hidden_size[0], len(self.taps), shape.input_size, about.gan_width)
            self.learners["discriminator"] = Learner(heads.to(ranks.device), about.critic_optim, ranks)

    def renoise(self, latents: Tensor, step: int, what: str) -> tuple[Tensor, Tensor, Tensor]:
        """Latents noised again: x_t' and noise (B C h w), t' (B,), drawn from (seed, step, what, row)."""
        size = self.config.batch_size
        part = self.ranks.part(size)
        draw = checkpoint.step_generator(self.config.seed, step, f"{what}renoise")
        t = renoise_times(size, self.shift, draw)[part].to(latents.device)
        noise = noise_of_step(self.config.seed, step, range(size)[part], latents, f"{what}renoise")
        return interpolate(latents, noise, t), t, noise

    def learn(
        self, states: States, latents: Tensor, step: int, num_steps: int, what: str, finite: FiniteSteps
    ) -> dict[str, Tensor]:
        """One update of each critic on the student's latents (B C h w, without gradient) and real ones."""
        x_t, t, noise = self.renoise(latents, step, what)
        with autocast(self.config.precision, latents.device.type):
            velocity = self.fake.wrapped(x_t, t, states.y)
        losses = {"fake_loss": flow_loss(velocity, velocity_target(latents, noise))}
        self.fake.update(losses["fake_loss"], step, num_steps, finite)
        if "discriminator" in self.learners:
            both = torch.cat([interpolate(states.latents, noise, t), x_t])
            with torch.no_grad():
                seen = self.teacher.features(both, t.repeat(2), states.y.repeat(2), self.taps)
            real, fake = self.learners["discriminator"].wrapped(seen).chunk(2)
            losses["discriminator_loss"] = discriminator_loss(real, fake)
            self.learners["discriminator"].update(losses["discriminator_loss"], step, num_steps, finite)
        return {name: loss.detach() for name, loss in losses.items()}

    def judge(self, states: States, latents: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's loss on its latents (B C h w, with gradient), and its parts."""
        x_t, t, _ = self.renoise(latents, step, "student")
        fixed, y, about = x_t.detach(), states.y, self.config.distribution
        with torch.no_grad(), autocast(self.config.precision, latents.device.type):
            fake = clean(fixed, t, self.fake.module(fixed, t, y))
        real = clean(fixed, t, self.teacher.velocity(fixed, t, y))
        loss = matching_loss(latents, matching_gradient(fake, real, latents.detach(), about.normaliser))
        # The loss is of the difference over its own size, and so says nothing of how large that is
        parts = {"score_gap": (fake - real).square().mean()}
        if "discriminator" in self.learners:
            heads = self.learners["discriminator"].module.requires_grad_(False)
            parts["gan_loss"] = generator_loss(heads(self.teacher.features(x_t, t, y, self.taps)))
            heads.requires_grad_(True)
            loss = loss + about.gan_weight * parts["gan_loss"]
        return loss, {name: part.detach() for name, part in parts.items()}

    def state_dict(self) -> dict:
        """All that a resumed run needs."""
        return {name: learner.state_dict() for name, learner in self.learners.items()}

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        for name, learner in self.learners.items():
            learner.load_state_dict(state[name])
