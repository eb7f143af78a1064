"""A network that learns beside its optimiser, and the rule that ends a run whose gradients explode."""

import math
import statistics
from dataclasses import dataclass, field

from torch import Tensor, nn

from encoder.runtime.ranks import Ranks, unwrapped
from encoder.training.finite import FiniteSteps
from encoder.training.optim import build_adamw, update
from encoder.training.options import OptimConfig

_LEAST = 20  # norms before the rule speaks
_KEPT = 500


class Learner:
    """A module wrapped for this launch's processes, with AdamW."""

    def __init__(self, module: nn.Module, optim: OptimConfig, ranks: Ranks) -> None:
        self.optim, self.optimiser = optim, build_adamw(module, optim)
        self.wrapped = ranks.wrap(module)

    @property
    def module(self) -> nn.Module:
        """The module itself: for calls without gradient."""
        return unwrapped(self.wrapped)

    def update(self, loss: Tensor, step: int, num_steps: int, finite: FiniteSteps) -> float:
        """One step down the loss, clipped; returns the gradient's norm before that.

        Raises:
            ValueError: loss or gradient is not finite, and no more such steps may be left out.
        """
        return update(self.optimiser, loss, self.optim, step, num_steps, finite=finite)

    def state_dict(self) -> dict:
        """All that a resumed run needs."""
        return {"module": self.module.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])


@dataclass(slots=True)
class StopRule:
    """Ends a run at a gradient norm of `factor` times the median of those before (None: never).

    Naive MeanFlow on RAE's latents reaches 1e5 by the second epoch (arXiv:2511.13019); clipping hides it. A
    norm that is not finite is none of these: `FiniteSteps` left that step out.
    """

    factor: float | None
    norms: list[float] = field(default_factory=list)  # the last ones
    largest: float = 0.0  # of all

    def see(self, step: int, norm: float) -> None:
        """Raises: ValueError if this norm is too far from the others."""
        if not math.isfinite(norm):
            return
        if self.factor is not None and len(self.norms) >= _LEAST:
            median = statistics.median(self.norms)
            if norm > self.factor * median:
                raise ValueError(
                    f"gradient norm {norm:.3g} at step {step} is over {self.factor:g} times the median "
                    f"{median:.3g}: the distillation explodes; go on from the last checkpoint with a higher "
                    "stop_factor, or start again with matching.warmup_steps or a lower optim.lr"
                )
        self.norms, self.largest = [*self.norms, norm][-_KEPT:], max(self.largest, norm)
