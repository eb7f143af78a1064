"""What processes that share a batch send each other: formulas, and the calculated part of bench/processes.py.

n is the number of processes. Nothing here was measured.
"""

from __future__ import annotations

import math
from pathlib import Path

from _calculated import CLUSTER, NOT_MEASURED, SMALL_SHARE
from _table import ROOT, Row, make_row

from encoder.runtime.config import load
from encoder.training.flops import PEAK_FLOPS, num_parameters, sample_flops
from encoder.training.options import TrainConfig
from encoder.training.plan import vae_shape
from encoder.training.recipe import RecipeConfig
from harness.command_line import make_plans
from harness.config import parse
from harness.running.cost import stage_flops
from harness.running.stages import Graph

FP32_BYTES, BF16_BYTES = 4, 2
# Bytes/s that each process can send, assumed: 400 Gbit/s a GPU between machines; inside one
NETWORK, NVLINK = 50e9, 450e9
RECIPES = [ROOT / "configs" / "recipes" / f"{name}.yaml" for name in ("paper_b", "paper_l")]
SMALL_GPU, SMALL_PROCESSES = "H200", 8


def all_reduce_bytes(values: float, bytes_each: int, n: int) -> float:
    """What each of n processes sends in an all-reduce by a ring: its n-th part in 2 (n - 1) pieces.

    Source: Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations.
    """
    return 2 * (n - 1) / n * values * bytes_each


def all_gather_bytes(values: float, bytes_each: int, n: int) -> float:
    """What each of n processes sends so that all have the `values` that they hold together."""
    return (n - 1) / n * values * bytes_each


def zero2_bytes(values: float, bytes_each: int, n: int) -> float:
    """What each of n processes sends a step under ZeRO-2 as DeepSpeed 0.19 does it: gradients are all-reduced
    (each keeps its part of them), updated weights gathered."""
    return all_reduce_bytes(values, bytes_each, n) + all_gather_bytes(values, bytes_each, n)


def exponent(seconds: dict[int, float]) -> float:
    """c in seconds = a n^c through two points, by numbers of processes: -1 where twice as many take half.

    Raises: ValueError if there are not two points.
    """
    if len(seconds) != 2:
        raise ValueError(f"an exponent without a fit goes through 2 points, got {len(seconds)}")
    (first, one), (last, two) = sorted(seconds.items())
    return math.log(two / one) / math.log(last / first)


def contrastive_bytes(config: TrainConfig, n: int) -> float:
    """What a process sends a step for the global contrastive loss: features of a picture and its texts are
    gathered, and the gradients of all of them all-reduced (`encoder.runtime.distributed.gather_rows`)."""
    towers = config.openvision3 or config.clip
    passes = 2 if config.contrastive_texts == "alt_and_sentence" else 1
    values = (1 + passes) * config.batch_size * towers.encoder.embed_dim
    return all_gather_bytes(values, FP32_BYTES, n) + all_reduce_bytes(values, FP32_BYTES, n)


def share_row(name: str, sent: float, computing: float, n: int, bandwidth: float, note: str) -> Row:
    """Seconds of sending as a percentage of the seconds of computing, of one step."""
    seconds = sent / bandwidth
    note = (
        f"{1e3 * seconds:.3g} ms to send {sent / 1e6:.3g} MB at an assumed {bandwidth / 1e9:.3g} GB/s, "
        f"beside {1e3 * computing:.4g} ms of calculated computing on each of {n}, {note}; as if nothing "
        f"overlapped and no message had a latency; {NOT_MEASURED}"
    )
    return make_row(f"calculated/{name}/exchange", "% of a step", 100 * seconds / computing, None, note)


def recipe_rows(path: Path) -> list[Row]:
    """A row for each phase of one of the paper's recipes."""
    rows, n = [], CLUSTER.num_gpus
    for name, config in load(RecipeConfig, path).configs(Path(".")).items():
        flops = config.batch_size * sum(sample_flops(config, vae_shape(config.vae)).values())
        values = sum(num_parameters(config).values())
        sent = all_reduce_bytes(values, FP32_BYTES, n) + contrastive_bytes(config, n)
        computing = flops / (PEAK_FLOPS[CLUSTER.gpu] * CLUSTER.mfu * n)
        note = f"{CLUSTER.gpu} at {CLUSTER.mfu:.0%}; gradients of {values / 1e6:.4g} M parameters in fp32, "
        note += f"features of {config.batch_size} samples"
        rows.append(share_row(f"{path.stem}/{name}", sent, computing, n, NETWORK, note))
    return rows


def small_rows() -> list[Row]:
    """A row for each phase of each encoder of preset=small, shared by the GPUs of one machine."""
    options, preset = parse(["suite=all", "preset=small"])
    graph = Graph(options.runs_dir.resolve())
    make_plans(graph, options, preset)
    rows, n = [], SMALL_PROCESSES
    for stage in (each for each in graph if each.module == "encoder.train"):
        config, values = stage.config, sum(num_parameters(stage.config).values())
        sent = all_reduce_bytes(values, FP32_BYTES, n) + contrastive_bytes(config, n)
        computing = stage_flops(stage) / config.num_steps / (PEAK_FLOPS[SMALL_GPU] * SMALL_SHARE * n)
        note = f"{SMALL_GPU} at {SMALL_SHARE:.0%}; gradients of {values / 1e6:.4g} M parameters in fp32, "
        note += f"features of {config.batch_size} samples"
        rows.append(share_row(f"small/{stage.label.split(': ', 1)[1]}", sent, computing, n, NVLINK, note))
    return rows


def exchange_rows() -> list[Row]:
    return [row for path in RECIPES for row in recipe_rows(path)] + small_rows()
