"""Stages of the generation suite that every kind of row has: something of `rae_bridge`, then its scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder.metrics import weights
from encoder.runtime.config import ROOT
from harness.config import stage_config
from harness.encoders import Encoder
from harness.metrics.config import PICTURES, ScoreConfig, keys_of, lpips_judge
from harness.running.stages import Stage
from harness.suites.request import Request
from harness.tables.result_files import Part


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Where the tokens of a set of pictures are kept, and the real ones to compare them with."""

    folder: Path
    first: int = 0  # the set's first picture in there
    made_by: Stage
    real: Stage

    def fields(self) -> dict[str, Any]:
        """As fields of ScoreConfig."""
        return {
            "tokens": str(self.folder), "tokens_first": self.first, "real_tokens": str(self.real.folder)
        }  # fmt: skip

    def stages(self, pictures: Stage) -> list[Stage]:
        """What a score reads beside the stage of the pictures."""
        return [stage for stage in (self.made_by, self.real) if stage is not pictures]


def if_present(path: Path) -> list[Path]:
    """A file that is there; one that is yet to be downloaded is checked by its published hash instead."""
    return [path] if path.is_file() else []


def trunk_of(perceptual: str, weight: float, trunk: str | None) -> list[Path]:
    """LPIPS' trunk, where a training's loss has that term and says where the file lies."""
    has_term = perceptual == "lpips" and weight > 0 and trunk is not None
    return if_present(ROOT / trunk) if has_term else []


def add_stage(
    request: Request,
    encoder: Encoder,
    module: str,
    config: object,
    label: str,
    inputs: list[Stage],
    places: tuple[Path, ...] = (),
    files: Sequence[Path] = (),
) -> Stage:
    """A stage of `rae_bridge` that reads an encoder, what other stages made, pictures at `places`, and other
    networks' files."""
    return request.graph.add(
        f"rae_{module}",
        f"rae_bridge.{module}",
        config,
        label=f"{encoder.name}: {label}",
        inputs=[*inputs, *encoder.stages],
        files=[*encoder.files, *files],
        pictures=places,
        seconds=request.seconds(f"rae_{module}"),
    )


def add_score(
    request: Request,
    encoder: Encoder,
    reference: Stage,
    kind: str,
    pictures: Stage,
    file: str,
    *,
    checkpoint: tuple[Path, ...],
    tokens: Tokens | None = None,
    what: str | None = None,
) -> Part:
    """The stage that scores a file of pictures (`what` they are, for people), and their tokens where they are
    kept."""
    trunk_of_lpips = {} if request.places is None else {"lpips": str(request.places["lpips"])}
    config = stage_config(
        ScoreConfig,
        {**trunk_of_lpips, **request.preset.score},
        "score",
        kind=kind,
        pictures=str(pictures.folder / file),
        reference=str(reference.folder),
        device=request.device,
        **({} if tokens is None else tokens.fields()),
    )
    lpips = lpips_judge(config)
    trunk = if_present(weights.find(weights.TRUNKS[config.lpips_net], config.lpips)) if lpips else []
    stage = request.graph.add(
        "score",
        "harness.metrics.score",
        config,
        label=f"{encoder.name}: score the {what or kind}",
        inputs=[pictures, reference, *([] if tokens is None else tokens.stages(pictures))],
        files=trunk,
        seconds=request.seconds("score"),
    )
    keys = keys_of(kind, reference.config, lpips, has_tokens=tokens is not None)
    return Part(stage=stage, keys=keys, checkpoint=checkpoint, data=(reference.folder / PICTURES,))
