"""Stops a training on a number that is not finite without keeping a GPU waiting at every step."""

import torch
from torch import Tensor


class FiniteWatch:
    """Looks at the numbers of each step: at once on a CPU; on a GPU (`is_late`) one step later, when they
    have been copied while the next step ran. By then the weights in memory have taken the bad step. Those of
    the last checkpoint have not, if the trainer calls `settle` before it writes one.
    """

    def __init__(self, device: torch.device | str = "cpu", *, is_late: bool | None = None) -> None:
        self.on_gpu = torch.device(device).type == "cuda"
        self.is_late = self.on_gpu if is_late is None else is_late
        self._held: tuple[int, tuple[str, ...], Tensor] | None = None
        self._copied: torch.cuda.Event | None = None

    def look(self, step: int, **numbers: Tensor) -> None:
        """Take in the numbers (scalars) of a step.

        Raises:
            ValueError: one of them, or of the step before, is not finite; the message names the step.
        """
        self.settle()
        values = torch.stack([number.detach().float().reshape(()) for number in numbers.values()])
        if self.on_gpu:
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._held = step, tuple(numbers), values
        if not self.is_late:
            self.settle()

    def settle(self) -> None:
        """Look at what is still to be looked at.

        Raises:
            ValueError: as `look`.
        """
        if self._held is None:
            return
        step, names, values = self._held
        self._held = None
        if self._copied is not None:
            self._copied.synchronize()
        if not bool(values.isfinite().all()):
            found = ", ".join(f"{name} {value:g}" for name, value in zip(names, values.tolist(), strict=True))
            raise ValueError(
                f"{found} at step {step}: not finite; go on from the last checkpoint with a lower learning "
                "rate or in fp32"
            )
