"""Stage: what a training of the encoder says of itself, as numbers for the tables, and the file by which
`load_encoder` finds the result with its VAE.

`python -m harness.trained <config.yaml> <out_dir>` writes out_dir/encoder.yaml; its losses are means over the
last steps of the log. No torch here.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from encoder.options import EncoderConfig, FeatureChoice
from encoder.runtime.config import ROOT, dump, read_yaml
from encoder.runtime.stage import DONE, main
from harness.described import ENCODER_FILE
from harness.metrics.config import Metric

LOSSES = ("pixel_l1", "latent_l1", "caption", "contrastive")  # terms of the objective that are always there
# Scores of `encoder.train` that are shown, with unit
_SCORES = {"r1_image_to_text": ("R@1 image to text", "%"), "linear_probe": ("linear probe", "%")}
_TAU = "tau / std(z_u)"
KEYS = (*(f"loss/{name}" for name in LOSSES), *(name for name, _ in _SCORES.values()), _TAU)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedConfig:
    """Which training, and under what name its encoder goes."""

    run: str  # folder that `encoder.train` wrote
    name: str
    decoder: str | None = "own"  # or a pixel decoder's folder; None: it cannot decode
    features: FeatureChoice = field(default_factory=FeatureChoice)
    tail_fraction: float = 0.2  # of the steps: the last ones, whose losses are averaged

    def __post_init__(self) -> None:
        if not 0 < self.tail_fraction <= 1:
            raise ValueError(f"tail_fraction {self.tail_fraction} must be over 0, at most 1")


def read_log(run: Path) -> list[dict]:
    """The steps of a training log that say the loss, in order; a step done again after a stop counts once.

    Raises:
        FileNotFoundError: there is no log.
    """
    path = run / "log.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no training log: {path}")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = {line["steps"]: line for line in lines if "loss" in line}
    return [steps[step] for step in sorted(steps)]


def tail_means(log: Sequence[dict], names: Sequence[str], tail_fraction: float) -> dict[str, float]:
    """Means over the lines of the last `tail_fraction` of the steps, of names that stand in all of them."""
    first = (1 - tail_fraction) * log[-1]["steps"]
    tail = [line for line in log if line["steps"] > first]
    return {
        name: statistics.fmean(line[name] for line in tail)
        for name in names
        if all(name in line for line in tail)
    }


def run(config: TrainedConfig, out_dir: Path) -> dict:
    """Read the log, write the encoder's file; see the module's docstring."""
    folder = ROOT / config.run
    trained = read_yaml(folder / "config.yaml")
    encoder = EncoderConfig(
        name=config.name,
        source=str(folder / "weights"),
        vae=trained["vae"],
        decoder=config.decoder,
        features=config.features,
    )
    dump(encoder, out_dir / ENCODER_FILE)
    log = read_log(folder)
    num_samples = round(config.tail_fraction * log[-1]["steps"]) * trained["batch_size"]
    means = tail_means(log, [*LOSSES, "tau_over_std"], config.tail_fraction)
    metrics = {
        f"loss/{name}": Metric(value=means[name], unit="", higher_is_better=False, num_samples=num_samples)
        for name in LOSSES
        if name in means
    }
    scores = json.loads((folder / DONE).read_text())["result"]
    for score, (name, unit) in _SCORES.items():
        if score in scores:
            metrics[name] = Metric(
                value=scores[score], unit=unit, higher_is_better=True, num_samples=trained["eval_limit"]
            )
    if "tau_over_std" in means:
        metrics[_TAU] = Metric(
            value=means["tau_over_std"], unit="", higher_is_better=None, num_samples=num_samples
        )
    return {"metrics": {key: asdict(metric) for key, metric in metrics.items()}}


if __name__ == "__main__":
    main(TrainedConfig, run)
