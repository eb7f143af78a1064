"""A training of a diffusion transformer on its way: its checkpoint, the weights it keeps, where it starts."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT
from encoder.runtime.resume import STAGE_CONFIG, barred
from encoder.training.finite import FiniteSteps
from encoder.training.optim import MuonWithAdamW
from rae_bridge.codec import check_tokens_alike
from rae_bridge.config import TrainDiTConfig
from rae_bridge.dit import DiT
from rae_bridge.latents import LatentStatistics
from rae_bridge.shapes import DiTConfig
from rae_bridge.weights_folder import (
    CHECKPOINT,
    KEPT,
    STATISTICS_FILE,
    WEIGHTS,
    WeightsFolder,
    alike,
    write_weights,
)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a training begins that `init` names: a finished training, all of whose state goes on, or a
    weights folder, whose averaged weights it begins anew from."""

    weights: WeightsFolder
    training: Path | None  # its folder; None: weights alone

    @staticmethod
    def open(config: TrainDiTConfig, shape: DiTConfig, tokens: Mapping[str, str]) -> "Start | None":
        """What `init` names, for a model of this shape on these tokens; None where it names nothing.

        Raises:
            FileNotFoundError: there is no such folder, or its training has not finished.
            ValueError: it is of another model, of other tokens or statistics, or, to go on, of other
                settings.
        """
        if config.init is None:
            return None
        folder = ROOT / config.init
        is_training = (folder / STAGE_CONFIG).is_file()
        if is_training and not (folder / WEIGHTS).is_dir():
            raise FileNotFoundError(f"init {folder} has not finished: it has no {WEIGHTS}; end it first")
        weights = WeightsFolder.read(folder / WEIGHTS if is_training else folder)
        check_tokens_alike(f"init {folder}", weights.tokens, "this training's are", tokens)
        if weights.name != DiT.name:
            raise ValueError(
                f"init {folder} is a {weights.name}, a student; name a model by rae_bridge.train"
            )
        names = [field.name for field in dataclasses.fields(shape)]
        pairs = {name: (getattr(weights.shape, name), getattr(shape, name)) for name in names}
        other = [f"{name}={its}, not {ours}" for name, (its, ours) in pairs.items() if its != ours]
        if other:
            raise ValueError(f"init {folder} is another model: {'; '.join(other)}")
        if config.statistics is not None:
            given = LatentStatistics.load(ROOT / config.statistics)
            if not alike(given, weights.statistics):
                raise ValueError(f"init {folder} was trained under other statistics than {config.statistics}")
        if is_training:
            _check_settings(config, folder)
        return Start(weights, folder if is_training else None)


def _check_settings(config: TrainDiTConfig, folder: Path) -> None:
    """Raises: ValueError if a training cannot go on with these settings as if it had never ended."""
    own = ("init", "statistics")  # checked by what they hold
    found = [each for each in barred(config, folder) if each.key not in own]
    if found:
        raise ValueError(
            f"init {folder} was trained with {'; '.join(map(str, found))}; keep that to go on, or name its "
            f"{WEIGHTS} to begin anew from its averaged weights"
        )


def kept_statistics(out_dir: Path) -> LatentStatistics | None:
    """Those that the training in this folder has, once there is a checkpoint to go on from: it then needs
    neither `init` nor a second measurement. None: there is none yet."""
    path = out_dir / STATISTICS_FILE
    if checkpoint.newest(out_dir / CHECKPOINT) is None or not path.is_file():
        return None
    return LatentStatistics.load(path)


@dataclass(slots=True)
class Run:
    """What a checkpoint holds. The schedule, batches, times and noise are functions of the step."""

    config: TrainDiTConfig
    out_dir: Path
    model: DiT
    averaged: DiT
    optimiser: torch.optim.Optimizer | MuonWithAdamW
    statistics: LatentStatistics
    shift: float
    tokens: Mapping[str, str]  # whose they are
    finite: FiniteSteps

    @staticmethod
    def begin(
        config: TrainDiTConfig,
        out_dir: Path,
        model: DiT,
        optimiser: torch.optim.Optimizer | MuonWithAdamW,
        **latents: object,
    ) -> "Run":
        """A run at its first step."""
        averaged = copy.deepcopy(model).requires_grad_(False).eval()
        finite = FiniteSteps(config.skip_non_finite)
        return Run(config, out_dir, model, averaged, optimiser, finite=finite, **latents)

    def resume(self, start: Start | None) -> tuple[int, float]:
        """Go on from the checkpoint, else from where `init` says, else begin: the step to do next, and the
        seconds spent so far."""
        own = checkpoint.newest(self.out_dir / CHECKPOINT)
        if own is not None:
            return self._load(own)
        if start is None:
            return 0, 0.0
        if start.training is not None:
            return self._load(checkpoint.newest(start.training / CHECKPOINT) or start.training / CHECKPOINT)
        for model in (self.model, self.averaged):
            model.load_state_dict(start.weights.weights())
        return 0, 0.0

    def check_keep_steps(self, first_step: int) -> None:
        """Raises: ValueError if a step of `keep_steps` lies behind, and neither this folder nor the one that
        goes on in it kept its weights."""
        places = [self.out_dir / KEPT] + ([ROOT / self.config.init / KEPT] if self.config.init else [])
        behind = [step for step in self.config.keep_steps if step <= first_step]
        lost = [step for step in behind if not any(_kept(place, step).is_dir() for place in places)]
        if lost:
            raise ValueError(
                f"keep_steps {lost} lie behind: the training goes on from step {first_step} and no {KEPT}/ "
                "has their weights; leave them out"
            )

    def _load(self, path: Path) -> tuple[int, float]:
        state = checkpoint.load(path)
        self.finite.skipped = state.get("skipped", 0)
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        return state["step"], state["seconds"]

    def save(self, step: int, seconds: float) -> None:
        """Write the checkpoint, atomically."""
        state = {"step": step, "seconds": seconds, "skipped": self.finite.skipped}
        state |= {"model": self.model.state_dict(), "averaged": self.averaged.state_dict()}
        state |= {"optimiser": self.optimiser.state_dict()}
        checkpoint.save(self.out_dir / CHECKPOINT, state, keep=self.config.keep_checkpoints)

    def write_weights(self, step: int, folder: Path | None = None) -> None:
        """Write the averaged model as it is after `step` steps: into `folder`, or into `kept`."""
        folder = folder or _kept(self.out_dir / KEPT, step)
        about = {"shift": self.shift, "tokens": self.tokens, "step": step}
        write_weights(folder, self.averaged, self.statistics, **about)


def _kept(place: Path, step: int) -> Path:
    return place / f"step_{step:08}"
