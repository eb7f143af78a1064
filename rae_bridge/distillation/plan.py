"""`python -m rae_bridge.distill <config.yaml> --plan`: what a distillation would take, before it starts.

A teacher that is not there yet has the size that `plan.size` names. FLOPs are counted as in
`rae_bridge.distillation.flops`, without what encodes live pictures.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from encoder.models.pretrained import CONFIG_FILE, read_config
from encoder.runtime.config import ROOT, choose, load
from encoder.runtime.stage import BAD_INPUT
from encoder.training.flops import PEAK_FLOPS
from rae_bridge.distillation.config import DistillConfig
from rae_bridge.distillation.flops import num_batches, step_flops
from rae_bridge.dit import build_dit
from rae_bridge.flops import part_flops
from rae_bridge.shapes import DIT_SIZES, DiTConfig, TransitionShape
from rae_bridge.transition import TransitionDiT

PLAN_PREFIX = "plan."
# By the vendor's data sheets: fp32 without tensor cores, in FLOP/s. tf32 has half of bf16's on all of them
FP32_FLOPS = {"H200": 67e12, "H100": 67e12, "B200": 75e12, "A100": 19.5e12, "L40S": 91.6e12, "4090": 82.6e12}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """Words `plan.<key>=<value>` on the command line."""

    gpu: str = "H100"
    num_gpus: int = 8
    mfu: float = 0.4  # assumed
    size: str = "DiTDH-XL"  # of a teacher that is not there; the defaults are RAE's on DINOv2-B
    input_size: int = 16
    in_channels: int = 768


def teacher_shape(folder: str, plan: PlanConfig) -> DiTConfig:
    """The teacher's shape by its folder, else by the plan."""
    if (ROOT / folder / CONFIG_FILE).is_file():
        return load(DiTConfig, read_config(folder)["shape"], name=folder)
    size = dataclasses.asdict(choose(DIT_SIZES, plan.size, "size"))
    return DiTConfig(**size, input_size=plan.input_size, in_channels=plan.in_channels)


def peak_flops(config: DistillConfig, gpu: str) -> float:
    """FLOP/s of a GPU in what the config's products are computed in."""
    peak = choose(PEAK_FLOPS, gpu, "GPU")
    if config.precision != "fp32":
        return peak
    return peak / 2 if config.tf32 else FP32_FLOPS[gpu]


def transition_shape(config: DistillConfig, teacher: DiTConfig) -> TransitionShape:
    """That of tmd's student: by the folder of its stage 1, before that one is there by the config."""
    if config.student is not None and (ROOT / config.student / CONFIG_FILE).is_file():
        return load(TransitionShape, read_config(config.student)["shape"], name=config.student)
    return TransitionShape(**dataclasses.asdict(teacher), **config.of_head)


def num_parameters(config: DistillConfig, shape: DiTConfig) -> tuple[float, float]:
    """Of the student, and of the teacher."""
    with torch.device("meta"):
        teacher = student = build_dit(shape)
        if config.method == "tmd":
            student = TransitionDiT(transition_shape(config, shape))
    return tuple(float(sum(each.numel() for each in model.parameters())) for model in (student, teacher))


def plan_lines(config: DistillConfig, plan: PlanConfig) -> list[str]:
    """The plan, a line each."""
    shape = teacher_shape(config.teacher, plan)
    backbone, head = part_flops(shape, shape.input_size**2, shape.in_channels)
    of_step = step_flops(config, shape, shape.input_size**2, shape.in_channels)
    flops, batches = config.num_steps * config.batch_size * of_step, num_batches(config)
    rows = config.num_steps * config.batch_size * batches
    hours = flops / (peak_flops(config, plan.gpu) * plan.mfu) / 3600
    peak = f"{peak_flops(config, plan.gpu) / 1e12:,.0f} TFLOP/s"
    student, teacher = num_parameters(config, shape)
    # fp32: weights, gradients, two moments, the average; the fake score without an average; the teacher
    held = 20 * student + 4 * teacher + 16 * teacher * (config.stage == 2)
    nfe = {m: m * (backbone + config.inner_steps * head) / (backbone + head) for m in (1, 2, config.steps)}
    share = f"head {head / (backbone + head):.0%} of {(backbone + head) / 1e9:,.1f} GFLOPs"
    steps, costs = ", ".join(map(str, nfe)), ", ".join(f"{value:.2f}" for value in nfe.values())
    return [
        f"{config.method}, stage {config.stage}: {config.steps} steps x {config.inner_steps} ({share})",
        f"  rows            {rows:,} ({config.num_steps:,} steps x {config.batch_size} x {batches})",
        f"  sampling        {steps} steps cost {costs} forward passes",
        f"  parameters      {student / 1e6:.1f} M, the teacher's {teacher / 1e6:.1f} M",
        f"  FLOPs           {flops / rows / 1e12:,.2f} T a row; {flops:.3g} in all, without the encoder's",
        f"  memory a GPU    {held / 2**30:.1f} GiB of weights, gradients and moments, without activations",
        f"  GPU-hours       {hours:,.1f} on {plan.gpu} at {plan.mfu:.0%} of {peak}; "
        f"{hours / plan.num_gpus:,.1f} h on {plan.num_gpus}",
    ]


def main(argv: list[str]) -> None:
    """Print the plan of a config; 2 and one line for bad input."""
    words = [word.removeprefix(PLAN_PREFIX) for word in argv[1:] if word.startswith(PLAN_PREFIX)]
    overrides = [word for word in argv[1:] if not word.startswith(PLAN_PREFIX)]
    try:
        if not argv:
            raise ValueError("give a config: python -m rae_bridge.distill <config.yaml> --plan")
        config = load(DistillConfig, Path(argv[0]), overrides)
        print("\n".join(plan_lines(config, load(PlanConfig, None, words, name="plan"))))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
