"""`python -m encoder.train <config.yaml> --plan`: what a training would take, before it starts. No torch."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from encoder.models.shapes import VaeShape
from encoder.runtime.config import ROOT, choose, load, read_yaml
from encoder.runtime.stage import BAD_INPUT
from encoder.training.flops import FLUX_VAE, PEAK_FLOPS, memory_bytes, num_parameters, sample_flops
from encoder.training.options import TrainConfig
from encoder.training.recipe import RecipeConfig

PLAN_PREFIX = "plan."


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """Words `plan.<key>=<value>` on the command line."""

    gpu: str = "H100"
    num_gpus: int = 64
    mfu: float = 0.4  # assumed; measure it: training logs it


def vae_shape(source: str | None) -> VaeShape:
    """The widths of the VAE in a folder here, else FLUX.1's."""
    for folder in (ROOT / str(source), ROOT / str(source) / "vae"):
        if (folder / "config.json").is_file():
            stored = json.loads((folder / "config.json").read_text())
            names = ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
            return load(VaeShape, {name: stored[name] for name in names if name in stored})
    return FLUX_VAE


def plan_lines(name: str, config: TrainConfig, plan: PlanConfig) -> tuple[list[str], float]:
    """One phase's plan as lines, and its GPU-hours."""
    peak = choose(PEAK_FLOPS, plan.gpu, "GPU")
    shape = vae_shape(config.vae)
    samples = config.num_steps * config.batch_size
    parts, parameters = sample_flops(config, shape), num_parameters(config)
    total = sum(parts.values())
    hours = samples * total / (peak * plan.mfu) / 3600
    memory = memory_bytes(config, plan.num_gpus, shape)
    share = ", ".join(f"{part} {value / total:.0%}" for part, value in parts.items())
    each = ", ".join(f"{part} {value / 1e6:.1f} M" for part, value in parameters.items() if value > 1)
    held = ", ".join(f"{part} {value / 2**30:.1f}" for part, value in memory.items())
    towers = config.openvision3 or config.clip
    side = towers.encoder.image_size * (
        shape.downsample if config.openvision3 and config.vae != "pixels" else 1
    )
    rows = max(1, config.batch_size // plan.num_gpus)
    optim = config.optim
    return [
        f"{name}: {side} px, {towers.encoder.grid**2} tokens",
        f"  samples         {samples:,} ({config.num_steps:,} steps x {config.batch_size})",
        f"  schedule        peak lr {optim.lr:.3g}, {optim.warmup_steps:,} warm-up steps, cosine to 0",
        f"  parameters      {sum(parameters.values()) / 1e6:.1f} M ({each})",
        f"  FLOPs           {total / 1e9:,.1f} G a sample ({share}); {samples * total:.3g} in all",
        f"  memory a GPU    about {sum(memory.values()) / 2**30:.1f} GiB at {config.micro_batch or rows} "
        f"rows at once ({held})",
        f"  GPU-hours       {hours:,.1f} on {plan.gpu} at {plan.mfu:.0%} of peak; "
        f"{hours / plan.num_gpus:,.1f} h on {plan.num_gpus}",
    ], hours


def main(argv: list[str]) -> None:
    """Print the plan of a recipe or of one run; 2 and one line for bad input."""
    words = [word.removeprefix(PLAN_PREFIX) for word in argv[1:] if word.startswith(PLAN_PREFIX)]
    overrides = [word for word in argv[1:] if "=" in word and not word.startswith(PLAN_PREFIX)]
    try:
        if not argv:
            raise ValueError("give a config: python -m encoder.train <config.yaml> --plan")
        plan, path = load(PlanConfig, None, words, name="plan"), Path(argv[0])
        if "phases" in read_yaml(path):
            configs = load(RecipeConfig, path, overrides).configs(Path("."))
        else:
            configs = {path.stem: load(TrainConfig, path, overrides)}
        hours = 0.0
        for name, config in configs.items():
            lines, spent = plan_lines(name, config, plan)
            hours += spent
            print("\n".join(lines))
        if len(configs) > 1:
            print(
                f"all phases: {hours:,.0f} GPU-hours. Memory and time are estimates; no run has measured them"
            )
    except (ValueError, OSError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(BAD_INPUT)
