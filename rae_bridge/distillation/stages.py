"""The two stages as `rae_bridge.distill` runs them: batches of a step in, one update of the student."""

from collections.abc import Iterator

import torch
from torch import Tensor

from encoder.runtime.ranks import Ranks
from encoder.training.finite import FiniteSteps
from rae_bridge.distillation.config import DistillConfig
from rae_bridge.distillation.critic import Critics
from rae_bridge.distillation.dmd2 import Generator
from rae_bridge.distillation.learner import Learner
from rae_bridge.distillation.matching import Matching
from rae_bridge.distillation.states import Grids, draw_states
from rae_bridge.distillation.teacher import Teacher, lesson
from rae_bridge.dit import DiTDH

Batches = Iterator[tuple[Tensor, Tensor]]  # normalised latents B C h w, classes B


class StageOne:
    """The mean velocity: `rae_bridge.distillation.matching`."""

    num_batches = 1  # of a step

    def __init__(
        self, config: DistillConfig, teacher: Teacher, student: DiTDH, grids: Grids, ranks: Ranks
    ) -> None:
        self.config, self.teacher, self.grids, self.ranks = config, teacher, grids, ranks
        self.learner = Learner(Matching(student, config), config.optim, ranks)

    def step(self, step: int, batches: Batches, finite: FiniteSteps) -> tuple[float, dict[str, Tensor]]:
        """One update; returns the gradient's norm, and this process's losses."""
        config, part = self.config, self.ranks.part(self.config.batch_size)
        null = self.teacher.model.num_classes
        states = draw_states(*next(batches), config, self.grids, step, part, null=null)
        states, velocity, is_pair = lesson(self.teacher, states, config, self.grids, step, part)
        loss, error = self.learner.wrapped(states, velocity, is_pair)
        norm = self.learner.update(loss, step, config.num_steps, finite)
        return norm, {"loss": loss.detach(), "error": error}

    def state_dict(self) -> dict:
        """All that a resumed run needs."""
        return {"learner": self.learner.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        self.learner.load_state_dict(state["learner"])


class StageTwo:
    """Distribution matching: `rae_bridge.distillation.dmd2` and `critic`."""

    def __init__(
        self, config: DistillConfig, teacher: Teacher, student: DiTDH, grids: Grids, ranks: Ranks
    ) -> None:
        self.config, self.grids, self.ranks = config, grids, ranks
        self.learner = Learner(Generator(student, config, grids), config.optim, ranks)
        self.critics = Critics(config, teacher, grids.shift, ranks)
        self.null = teacher.model.num_classes

    @property
    def num_batches(self) -> int:
        """Of a step: one for each update of the critics, one for the student's."""
        return self.config.distribution.critic_steps + 1

    def step(self, step: int, batches: Batches, finite: FiniteSteps) -> tuple[float, dict[str, Tensor]]:
        """`critic_steps` updates of the critics, then one of the student; as `StageOne.step`."""
        config, part = self.config, self.ranks.part(self.config.batch_size)
        for i in range(config.distribution.critic_steps):
            what = f"critic {i}/"
            states = draw_states(*next(batches), config, self.grids, step, part, null=self.null, what=what)
            with torch.no_grad():
                latents = self.learner.module(states)
            learnt = self.critics.learn(states, latents, step, config.num_steps, what, finite)
        states = draw_states(*next(batches), config, self.grids, step, part, null=self.null)
        loss, parts = self.critics.judge(states, self.learner.wrapped(states), step)
        norm = self.learner.update(loss, step, config.num_steps, finite)
        return norm, {"loss": loss.detach(), **parts, **learnt}

    def state_dict(self) -> dict:
        """All that a resumed run needs."""
        return {"learner": self.learner.state_dict(), "critics": self.critics.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        self.learner.load_state_dict(state["learner"])
        self.critics.load_state_dict(state["critics"])


STAGES = {1: StageOne, 2: StageTwo}
