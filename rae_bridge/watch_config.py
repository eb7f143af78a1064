"""What a training of a diffusion transformer shows of itself on the way, and by whom it is judged: the
configurations. No torch here: the command line reads them.

Relative paths are relative to the repository root.
"""

from dataclasses import dataclass

from encoder.metrics.networks import LITE0, check_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """A Frechet distance to real pictures, in the features of one network."""

    # npz of the real pictures' features (`pooled` N D), as harness.metrics.reference writes, or of a Gaussian
    reference: str  # (`mu`, `sigma`), as ADM publishes; of the same network
    network: str = LITE0  # lite0, inception, or module:Class; uint8 N 3 H W -> an object with `pooled`
    weights: str | None = None  # inception's file; None: torch.hub's place; `download`

    def __post_init__(self) -> None:
        check_weights(self.network, self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig:
    """Samples of the averaged weights on the way, drawn and judged every few steps."""

    judge: JudgeConfig
    every_steps: int
    num_samples: int = 500
    num_steps: int = 25  # model calls
    encoder: str | None = None  # None: the one whose name the tokens bear
    decoder: str | None = None  # as in `rae_bridge.generate`


@dataclass(frozen=True, slots=True, kw_only=True)
class GridConfig:
    """A grid of samples of the averaged weights: a row a class, the same noise every time."""

    classes: tuple[int, ...] | None = None  # None: the first four
    columns: int = 8
    num_steps: int = 25  # model calls
    scale: float = 1.0  # of class-free guidance; 1: none
    encoder: str | None = None  # None: the one whose name the tokens bear
    decoder: str | None = None  # as in `rae_bridge.generate`

    def classes_of(self, num_classes: int) -> tuple[int, ...]:
        """The rows' classes for a model of `num_classes`."""
        return self.classes if self.classes is not None else tuple(range(min(4, num_classes)))
