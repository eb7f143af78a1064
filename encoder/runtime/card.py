"""The card beside trained weights: how they came to be and how good they are."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from encoder.runtime.config import ROOT, resolve


def _commit() -> str:
    """The commit of this checkout, or "unknown" outside one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git on this machine
        return "unknown"
    return done.stdout.strip() or "unknown"


def write_card(
    folder: Path, *, what: str, stage: str, config: Any, seconds: float, scores: dict[str, float]
) -> None:
    """Write folder/card.yaml: what it is, the command, the resolved config, training time (s), scores and
    the commit."""
    card = {
        "what": what,
        "command": f"python -m {stage} <config.yaml with the values below> <out_dir>",
        "commit": _commit(),
        "training_seconds": round(seconds),
        "scores": {name: round(float(value), 4) for name, value in scores.items()},
        "config": resolve(config),
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True))
