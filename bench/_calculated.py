"""The calculated part of bench/growth.py: what the paper's recipes and preset=small would take on a GPU, from
counted FLOPs at an assumed share of its peak. Nothing here was measured.
"""

from __future__ import annotations

from pathlib import Path

from _table import ROOT, Row, make_row

from encoder.runtime.config import load
from encoder.training.flops import PEAK_FLOPS, memory_bytes, num_parameters, sample_flops
from encoder.training.plan import PlanConfig, vae_shape
from encoder.training.recipe import RecipeConfig
from harness.command_line import make_plans
from harness.config import parse
from harness.running.cost import stage_flops
from harness.running.stages import Graph

CLUSTER = PlanConfig()  # 64 H100 at 40 % of their peak
SMALL_GPUS, SMALL_SHARE = ("H200", "4090"), 0.24  # 24 % of the H200's peak: what preset=small assumes
GB = 1e9
NOT_MEASURED = "calculated, no run has measured it: no baseline"


def recipe_rows(path: Path) -> list[Row]:
    """GPU-hours, memory of a GPU and disk of one of the paper's recipes, all phases together."""
    hours, memory, state, latents, samples = 0.0, 0.0, 0.0, 0.0, 0
    for config in load(RecipeConfig, path).configs(Path(".")).values():
        shape = vae_shape(config.vae)
        seen = config.num_steps * config.batch_size
        samples += seen
        peak = PEAK_FLOPS[CLUSTER.gpu] * CLUSTER.mfu
        hours += seen * sum(sample_flops(config, shape).values()) / peak / 3600
        memory = max(memory, sum(memory_bytes(config, CLUSTER.num_gpus, shape).values()))
        state += 3 * 4.0 * sum(num_parameters(config).values())  # fp32 weights and Adam's two moments
        latents += 2.0 * shape.latent_channels * config.openvision3.encoder.image_size**2 * 1e6  # fp16
    name = f"calculated/{path.stem}"
    rate = f"{samples:.3g} samples, {CLUSTER.gpu} at an assumed {CLUSTER.mfu:.0%} of its peak"
    each = f"the largest phase on each of {CLUSTER.num_gpus} GPUs"
    kept = "a checkpoint of each phase, fp16 latents of a million pictures at each phase's size"
    return [
        make_row(f"{name}/time", "GPU-hours", hours, None, f"{rate}; {NOT_MEASURED}"),
        make_row(f"{name}/memory", "GiB", memory / 2**30, None, f"{each}; {NOT_MEASURED}"),
        make_row(f"{name}/disk", "GB", (state + latents) / GB, None, f"{kept}; {NOT_MEASURED}"),
    ]


def small_rows() -> list[Row]:
    """GPU-hours of preset=small's stages by module, on two GPUs, and its disk."""
    options, preset = parse(["suite=all", "preset=small"])
    graph = Graph(options.runs_dir.resolve())
    make_plans(graph, options, preset)
    flops = {stage: stage_flops(stage) for stage in graph}
    rows = []
    for gpu in SMALL_GPUS:
        rate = PEAK_FLOPS[gpu] * SMALL_SHARE
        largest = sorted(flops, key=lambda stage: -flops[stage])[:3]
        shares = ", ".join(f"{stage.label} {flops[stage] / sum(flops.values()):.0%}" for stage in largest)
        note = f"FLOPs alone (no data, starts, metrics) at an assumed {SMALL_SHARE:.0%} of the {gpu}'s peak; "
        note += f"{shares}; {NOT_MEASURED}"
        rows.append(
            make_row(f"calculated/small/{gpu}", "GPU-hours", sum(flops.values()) / rate / 3600, None, note)
        )
    disk = sum(preset.disk_mb.get(stage.name, 0.0) for stage in graph) / 1e3
    note = f"the preset's own estimates (disk_mb) over {len(graph)} stages; {NOT_MEASURED}"
    return [*rows, make_row("calculated/small/disk", "GB", disk, None, note)]


def calculated_rows() -> list[Row]:
    recipes = sorted((ROOT / "configs" / "recipes").glob("paper_*.yaml"))
    return [row for path in recipes for row in recipe_rows(path)] + small_rows()
