"""A training in phases of growing resolution, in epochs and base learning rates as papers give it. No torch.

Each phase starts from an earlier one's towers with a fresh optimiser; position tables are computed for each
resolution, never interpolated (arXiv:2601.15369v2, Sec. 4.1; UCSC-VLAA/OpenVision@6c24e45).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encoder.models.shapes import VAE_DOWNSAMPLE
from encoder.runtime.config import ConfigError, load, nearest
from encoder.training.options import TrainConfig

EPOCH_SAMPLES = 1_281_167  # of ImageNet-1k: what "epoch" means in OpenVision (UCSC-VLAA/OpenVision@6c24e45)
BASE_BATCH = 256  # learning rate = base_lr x batch_size / 256, as there
DERIVED = ("num_steps", "batch_size", "image_size", "init")  # of TrainConfig: the phases give these


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseConfig:
    """One column of the paper's Table 1."""

    name: str
    resolution: int  # px
    batch_size: int
    base_lr: float
    epochs: float
    warmup_epochs: float
    perceptual_weight: float  # lambda
    init: str | None = None  # the phase whose towers this one starts from
    micro_batch: int | None = None  # rows of a process at once; None: its whole share
    # Over the recipe's settings, key by key, in this phase: e.g. {stream: {sources: [...]}}
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        return int(self.epochs * EPOCH_SAMPLES / self.batch_size)

    @property
    def warmup_steps(self) -> int:
        return int(self.warmup_epochs * EPOCH_SAMPLES / self.batch_size)

    @property
    def peak_lr(self) -> float:
        return self.base_lr * self.batch_size / BASE_BATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeConfig:
    """Phases, and what they have in common: the fields of `TrainConfig`, without those that phases give."""

    description: str = ""
    phases: list[PhaseConfig]
    settings: dict[str, Any]

    def __post_init__(self):
        names: list[str] = []
        _refuse_derived(self.settings, "settings")
        for phase in self.phases:
            _refuse_derived(phase.settings, f"phase {phase.name}: settings")
            if phase.init is not None and phase.init not in names:
                hint = nearest(phase.init, names)
                raise ConfigError(f"phase {phase.name}: init '{phase.init}' is no earlier phase{hint}")
            names.append(phase.name)
        if len(set(names)) < len(names):
            raise ConfigError(f"phases must have names of their own, got {names}")

    def configs(self, out_dir: Path) -> dict[str, TrainConfig]:
        """Each phase as the config of a run in out_dir/<name>.

        Raises: ConfigError for settings that `TrainConfig` refuses.
        """
        return {phase.name: self._config(phase, out_dir) for phase in self.phases}

    def runs(self, out_dir: Path) -> dict[Path, TrainConfig]:
        """The same by the folder of each phase."""
        return {out_dir / name: config for name, config in self.configs(out_dir).items()}

    def _config(self, phase: PhaseConfig, out_dir: Path) -> TrainConfig:
        values = over(self.settings, phase.settings)
        values |= {"num_steps": phase.num_steps, "batch_size": phase.batch_size}
        if phase.micro_batch is not None:
            values["micro_batch"] = phase.micro_batch
        values["init"] = str(out_dir.resolve() / phase.init) if phase.init is not None else None
        values["optim"] = values.get("optim", {}) | {"lr": phase.peak_lr, "warmup_steps": phase.warmup_steps}
        if values.get("stream") is not None:
            values["stream"] = values["stream"] | {"image_size": phase.resolution}
        if "clip" not in values:
            values["objective"] = values.get("objective", {}) | {"perceptual_weight": phase.perceptual_weight}
        return load(TrainConfig, at_resolution(values, phase.resolution), name=f"phase {phase.name}")


def _refuse_derived(settings: Mapping[str, Any], path: str) -> None:
    for name in DERIVED:
        if name in settings:
            raise ConfigError(f"{path}.{name}: the phases give this; take it out")


def over(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `own` over those of `common`; mappings in both are joined key by key."""
    joined = dict(common)
    for key, value in own.items():
        below = common.get(key)
        is_joined = isinstance(value, Mapping) and isinstance(below, Mapping)
        joined[key] = over(below, value) if is_joined else value
    return joined


def at_resolution(values: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """The values of a `TrainConfig` with its encoder, and held-out pictures, at `resolution` px."""
    name = "clip" if "clip" in values else "openvision3"
    is_latent = name == "openvision3" and values.get("vae") != "pixels"
    side = resolution // VAE_DOWNSAMPLE if is_latent else resolution
    towers = dict(values.get(name, {}))
    towers["encoder"] = dict(towers.get("encoder", {})) | {"image_size": side}
    return {**values, "image_size": resolution, name: towers}
