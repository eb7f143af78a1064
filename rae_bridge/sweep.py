"""Stage: the Frechet distance of samples against guidance scale and against number of steps, as a figure.

`python -m rae_bridge.sweep <config.yaml> <out_dir>` (several processes: `accelerate launch -m
rae_bridge.sweep ...`) writes out_dir/sweep.json and sweep.png. Every point draws the same classes from the
same noise and is kept once it is known, so that an interrupted run goes on. out_dir/best.json is the guidance
of the least distance at `default_steps`; `guidance_from` of `GenerateConfig` reads it.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from encoder.runtime.config import ROOT
from encoder.runtime.ranks import Ranks
from encoder.runtime.stage import main, progress, write_json
from rae_bridge.codec import check_tokens, load_codec
from rae_bridge.config import GenerateConfig, GuidanceConfig, SweepConfig
from rae_bridge.generate import BEST, TrainedFlow, make_guidance, stream_samples
from rae_bridge.judge import FrechetJudge
from rae_bridge.weights_folder import WeightsFolder, check_guide

RESULT = "sweep.json"


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the sampler."""

    scale: float
    steps: int
    until: float | None = None  # end of an interval other than the config's

    @property
    def key(self) -> str:
        """Its name in the result file."""
        words = f"scale={self.scale:g} steps={self.steps}"
        return words if self.until is None else f"{words} until={self.until:g}"


def points(config: SweepConfig) -> tuple[list[Point], list[Point]]:
    """The points along the scale, and those along the steps."""
    along_scale = [Point(scale, config.default_steps) for scale in config.scales]
    return along_scale, [Point(config.default_scale, steps) for steps in config.steps]


def more_points(config: SweepConfig) -> list[Point]:
    """The scales again, on the other intervals."""
    guided = [scale for scale in config.scales if scale != 1]
    return [Point(scale, config.default_steps, until) for until in config.ends for scale in guided]


def generate_config(config: SweepConfig, point: Point) -> GenerateConfig:
    """What `rae_bridge.generate` would be given for one point.

    Raises:
        ValueError: a combination that it refuses.
    """
    guidance = None
    if point.scale != 1:
        first, last = config.interval
        until = last if point.until is None else point.until
        about = {"interval": (first, until), "model": config.weaker}
        guidance = GuidanceConfig(kind=config.kind, scale=point.scale, **about)
    names = (
        "model",
        "weights",
        "encoder",
        "decoder",
        "num_samples",
        "solver",
        "end",
        "image_size",
        "rounding",
        "batch_size",
        "precision",
        "device",
        "seed",
    )
    shared = {name: getattr(config, name) for name in names}
    return GenerateConfig(**shared, num_steps=point.steps, guidance=guidance)


def draw_figure(path: Path, config: SweepConfig, distances: dict[str, float]) -> None:
    """Two curves beside each other: over scale, over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    along_scale, along_steps = points(config)
    panels = (
        (axes[0], along_scale, "scale", f"{config.kind} guidance scale ({config.default_steps} model calls)"),
        (axes[1], along_steps, "steps", f"model calls (guidance scale {config.default_scale:g})"),
    )
    for axis, some, name, label in panels:
        pairs = sorted((getattr(point, name), distances[point.key]) for point in some)
        axis.plot(*zip(*pairs, strict=True), marker="o")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[1].set_xscale("log")
    axes[1].set_xticks(sorted(config.steps), [str(steps) for steps in sorted(config.steps)], minor=False)
    axes[1].minorticks_off()
    axes[0].set_ylabel(f"Frechet distance, {config.num_samples} samples")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def write_best(
    path: Path, config: SweepConfig, wanted: dict[str, GenerateConfig], distances: dict[str, float]
) -> None:
    """The guidance of the least distance at `default_steps`, if any was tried."""
    guided = [key for key in wanted if wanted[key].guidance and wanted[key].num_steps == config.default_steps]
    if guided:
        chosen = wanted[min(guided, key=distances.__getitem__)].guidance
        write_json(path, dataclasses.asdict(chosen))


def run(config: SweepConfig, out_dir: Path) -> dict:
    """Sample and judge each point; see the module's docstring."""
    torch.set_flush_denormal(True)
    along_scale, along_steps = points(config)
    every = (*along_scale, *along_steps, *more_points(config))
    wanted = {point.key: generate_config(config, point) for point in every}
    ranks = Ranks.start(config.device)
    flow = TrainedFlow.load(config.model, ranks.device, config.weights)
    codec = load_codec(config.encoder, decoder=config.decoder, device=ranks.device)
    check_tokens(ROOT / config.model, codec.encoder)
    if config.weaker is not None:
        check_guide(WeightsFolder.read(config.model), WeightsFolder.read(config.weaker))
    judge = FrechetJudge(config.judge, ranks.device)
    path = out_dir / RESULT
    distances: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    ranks.wait()  # all have read it before it is written
    for key, settings in wanted.items():
        if key not in distances:
            fresh = judge.again()
            guidance = make_guidance(settings.guidance, flow, ranks.device)
            for _, images in stream_samples(flow, codec, settings, guidance, ranks):
                fresh.see(images)
            distances[key] = fresh.merged(ranks).distance()
            if ranks.is_main:
                write_json(path, distances)
        if ranks.is_main:
            progress(out_dir, len(distances), len(wanted), "points")
    best = min(wanted, key=distances.__getitem__)
    if ranks.is_main:
        draw_figure(out_dir / "sweep.png", config, distances)
        write_best(out_dir / BEST, config, wanted, distances)
    ranks.wait()
    return {
        "distances": {key: distances[key] for key in wanted},
        "best": best,
        "num_samples": config.num_samples,
    }


if __name__ == "__main__":
    main(SweepConfig, run)
