"""A weights folder by `rae_bridge.train` or `rae_bridge.distill` as it describes itself, without its weights;
what two must share.

config.json (the model's shape), model.safetensors (the averaged weights), latent_stats.pt (RAE's format),
flow.json (shift; the training's step, or whose student it is), tokens.json (whose tokens the model knows).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoder.models.pretrained import WEIGHTS_FILE, read_config
from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT, choose, load
from encoder.runtime.stage import write_json
from rae_bridge.codec import TOKENS_FILE, check_tokens_alike
from rae_bridge.dit import DiT
from rae_bridge.latents import EPSILON, LatentStatistics
from rae_bridge.shapes import DiTConfig
from rae_bridge.transition import STUDENTS

FLOW_FILE, STATISTICS_FILE = "flow.json", "latent_stats.pt"
CHECKPOINT, WEIGHTS, KEPT = "checkpoint.pt", "weights", "kept"  # in the folder of a training
_SAME = 0.01  # of a latent's deviation or variance: what two measurements of the same may differ by


@dataclass(frozen=True, slots=True)
class WeightsFolder:
    """What a weights folder says of its model."""

    path: Path
    name: str  # of the kind of model, in config.json
    shape: DiTConfig
    tokens: Mapping[str, str]  # encoder, features, and the fingerprint of the two
    statistics: LatentStatistics
    shift: float
    step: int | None  # of the training; None: it does not say
    student: Mapping[str, Any] | None = None  # what flow.json says of one by `rae_bridge.distill`

    @staticmethod
    def read(folder: Path | str) -> "WeightsFolder":
        """Raises: FileNotFoundError, ValueError: it is none, or is damaged."""
        path = ROOT / folder
        config = read_config(path)
        name = str(config.get("model"))
        kinds = {DiT.name: DiTConfig} | {name: shape for name, (_, shape) in STUDENTS.items()}
        shape = load(choose(kinds, name, f"model in {path}"), config["shape"], name=f"{path}/config.json")
        for file in (FLOW_FILE, TOKENS_FILE):
            if not (path / file).is_file():
                raise FileNotFoundError(
                    f"{path} is no weights folder of rae_bridge.train ({file} is missing)"
                )
        flow, tokens = (json.loads((path / file).read_text()) for file in (FLOW_FILE, TOKENS_FILE))
        statistics = LatentStatistics.load(path / STATISTICS_FILE)
        about = {"shift": flow["shift"], "step": flow.get("step"), "student": flow.get("student")}
        return WeightsFolder(path, name, shape, tokens, statistics, **about)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights."""
        return checkpoint.load_tensors(self.path / WEIGHTS_FILE)

    def online_weights(self) -> dict[str, Tensor]:
        """The weights that were trained, not averaged: from the checkpoint of the training, one folder up.

        Raises:
            FileNotFoundError, ValueError: it is not there, or is of another step.
        """
        newest = checkpoint.newest(self.path.parent / CHECKPOINT)
        if newest is None:
            where = self.path.parent / CHECKPOINT
            raise FileNotFoundError(
                f"weights=online needs the training's {where}; ema needs {self.path} alone"
            )
        state = checkpoint.load(newest)
        if state["step"] != self.step:
            steps = f"{newest} is of step {state['step']}, {self.path} of step {self.step}"
            raise ValueError(f"weights=online: {steps}; take weights=ema")
        return state["model"]


def write_weights(
    folder: Path,
    model: DiT,
    statistics: LatentStatistics,
    *,
    shift: float,
    tokens: Mapping[str, str],
    step: int | None = None,
    student: Mapping[str, Any] | None = None,
) -> None:
    """Write a weights folder; step and student as in `WeightsFolder`."""
    model.save_pretrained(folder)
    statistics.save(folder / STATISTICS_FILE)
    about = {"shift": shift, "step": step, "student": student}
    write_json(folder / FLOW_FILE, {name: each for name, each in about.items() if each is not None})
    write_json(folder / TOKENS_FILE, tokens)


def check_guide(model: WeightsFolder, guide: WeightsFolder) -> None:
    """Whether the guide's velocity is one of the same latents and classes, as AutoGuidance needs.

    Raises: ValueError: what differs, with both values; it is a student.
    """
    if guide.name in STUDENTS:
        what = "a student, which is no velocity field"
        raise ValueError(f"guide {guide.path} is {what}: name a model by rae_bridge.train")
    for name in ("input_size", "in_channels", "num_classes"):
        ours, theirs = getattr(model.shape, name), getattr(guide.shape, name)
        if ours != theirs:
            raise ValueError(f"guide {guide.path} has {name} {theirs}, the model {model.path} has {ours}")
    check_tokens_alike(f"guide {guide.path}", guide.tokens, f"the model {model.path}", model.tokens)
    if not alike(model.statistics, guide.statistics):
        raise ValueError(
            f"guide {guide.path} knows latents under other statistics than the model {model.path}; take one "
            "trained with the same `statistics`, such as weights that the same run kept (keep_steps)"
        )


def alike(first: LatentStatistics, second: LatentStatistics) -> bool:
    """Whether two measurements of the same latents agree: to a hundredth of each deviation and variance."""
    (mean, var), (other_mean, other_var) = _filled(first), _filled(second)
    if len({each.shape for each in (mean, var, other_mean, other_var) if each.ndim}) > 1:
        return False
    near_mean = (other_mean - mean).abs() <= _SAME * (var + EPSILON).sqrt()
    return bool(near_mean.all() and ((other_var - var).abs() <= _SAME * (var + EPSILON)).all())


def _filled(statistics: LatentStatistics) -> tuple[Tensor, Tensor]:
    """Mean and variance, 0 and 1 where there is none."""
    mean, var = statistics.mean, statistics.var
    return torch.zeros(()) if mean is None else mean, torch.ones(()) if var is None else var
