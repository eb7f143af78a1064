"""Steps whose loss or gradient is not finite: never applied, and found out one step late.

Whether a step is finite is decided where it is computed, and the optimiser leaves such a step out there, so
the weights stay those before it. The processor reads the decision when the next step's gradients are on
their way: a GPU never waits for it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from encoder.runtime.distributed import sum_over_processes

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pending:
    step: int
    seen: Tensor  # loss, gradient norm, processes where one of them is not finite
    copied: torch.cuda.Event | None  # None on a CPU


class FiniteSteps:
    """Which steps were finite. `allowed`: how many others may be left out in the whole run
    (`skip_non_finite`); `skipped`: how many have been."""

    def __init__(self, allowed: int = 0, skipped: int = 0):
        self.allowed, self.skipped = allowed, skipped
        self._pending: _Pending | None = None

    def look(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """The decision on a step, on its device: 1 if loss or norm of any process is not finite, else 0."""
        both = torch.stack([loss.detach().float(), norm.detach().float()])
        is_bad = sum_over_processes((~both.isfinite()).any().float())
        seen, copied = torch.cat([both, is_bad[None]]), None
        if seen.is_cuda:
            seen = torch.empty(3, pin_memory=True).copy_(seen, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._pending = _Pending(step, seen, copied)
        return (is_bad > 0).float()

    def settle(self) -> int | None:
        """The step looked at last, if it was applied and not asked for before; None otherwise.

        Raises: ValueError if it was not finite and no more such steps may be left out.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        if pending.copied is not None:
            pending.copied.synchronize()
        loss, norm, is_bad = pending.seen.tolist()
        if not is_bad:
            return pending.step
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
        if math.isfinite(loss + norm):
            what = "the loss of another process is not finite"
        self.skipped += 1
        if self.skipped > self.allowed:
            raise ValueError(
                f"{what} at step {pending.step} ({self.skipped - 1} such steps were left out before); the "
                "weights are those before it: go on from the last checkpoint with a lower optim.lr, a "
                "smaller optim.clip_norm, precision=fp32, or a higher skip_non_finite"
            )
        _log.warning("%s at step %d: left out, %d of %d", what, pending.step, self.skipped, self.allowed)
        return None
