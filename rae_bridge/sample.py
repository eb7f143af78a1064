"""From noise to latents along a learned velocity field, by Euler or Heun, with or without guidance.

`python -m rae_bridge.sample --model DIR --classes 0 3 7 --out grid.png` draws a grid of pictures.

t runs from 1 (noise) to 0 (data). A model is any callable (x_t, t, y) -> velocity; with class-free guidance
it has `num_classes`, the index of its null class.

Source: RAE (stage2/transport and sample.py at a4d18c4). Deviations: the grid may end at 0, which RAE's never
reaches; guidance costs a second forward only where it acts.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rae_bridge.flow import T_MAX, shift_time

VelocityModel = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """velocity = weaker + scale * (stronger - weaker) wherever interval[0] <= t <= interval[1].

    kind `cfg`: weaker is the same model without the class. kind `autoguidance`: weaker is `model`, a smaller
    or less trained one, with the same class (arXiv:2406.02507).
    """

    kind: Literal["cfg", "autoguidance"]
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    model: VelocityModel | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("cfg", "autoguidance"):
            raise ValueError(f"guidance kind '{self.kind}' is unknown; choices: cfg, autoguidance")
        if not self.interval[0] < self.interval[1]:
            raise ValueError(f"guidance interval {self.interval} must be (t_min, t_max) with t_min < t_max")
        if (self.kind == "autoguidance") != (self.model is not None):
            raise ValueError("autoguidance needs the weaker model as `model`; cfg takes none")


def time_grid(num_intervals: int, shift: float, end: Literal["rae", "zero"]) -> list[float]:
    """num_intervals + 1 falling times from 1: to exactly 0 (`zero`), or RAE's own grid (`rae`).

    RAE's maps linspace(0, 0.999) to 1 - u, then shifts: at shift 6.93 it ends at t = 0.0069.
    """
    last = {"rae": T_MAX, "zero": 1.0}.get(end)
    if last is None:
        raise ValueError(f"end '{end}' is unknown; choices: rae, zero")
    u = torch.linspace(0, last, num_intervals + 1, dtype=torch.float64)
    return shift_time(1 - u, shift).tolist()


@torch.no_grad()
def sample(
    model: VelocityModel,
    noise: Tensor,
    y: Tensor,
    *,
    num_steps: int,
    shift: float,
    guidance: Guidance | None = None,
    solver: Literal["euler", "heun"] = "euler",
    end: Literal["rae", "zero"] = "zero",
) -> Tensor:
    """Integrate from noise (B D h w) at t=1 to latents of the same shape, for classes y (B,).

    `num_steps` counts calls of `model`, a doubled guidance batch being one; Heun spends two an interval.
    `shift` is the factor itself (1: none). RAE's "50 steps" are num_steps=49, end="rae".

    Raises:
        ValueError: num_steps below 1, or odd with Heun; an unknown solver or end.
    """
    calls_per_interval = {"euler": 1, "heun": 2}.get(solver)
    if calls_per_interval is None:
        raise ValueError(f"solver '{solver}' is unknown; choices: euler, heun")
    if num_steps < 1 or num_steps % calls_per_interval:
        raise ValueError(
            f"num_steps {num_steps} must be a positive multiple of {calls_per_interval} for {solver}"
        )
    times = time_grid(num_steps // calls_per_interval, shift, end)
    x = noise
    for t, t_next in itertools.pairwise(times):
        velocity = guided_velocity(model, x, t, y, guidance)
        if solver == "heun":
            ahead = x + (t_next - t) * velocity
            velocity = (velocity + guided_velocity(model, ahead, t_next, y, guidance)) / 2
        x = x + (t_next - t) * velocity
    return x


def guided_velocity(
    model: VelocityModel, x_t: Tensor, t: float, y: Tensor, guidance: Guidance | None
) -> Tensor:
    """The velocity B D h w at one time, with one forward of `model` in every case."""
    times = torch.full((len(x_t),), t, dtype=x_t.dtype, device=x_t.device)
    if guidance is None or guidance.scale == 1 or not guidance.interval[0] <= t <= guidance.interval[1]:
        return model(x_t, times, y)
    if guidance.kind == "cfg":
        null = torch.full_like(y, model.num_classes)
        both = model(torch.cat([x_t, x_t]), torch.cat([times, times]), torch.cat([y, null]))
        stronger, weaker = both.chunk(2)
    else:
        stronger, weaker = model(x_t, times, y), guidance.model(x_t, times, y)
    return weaker + guidance.scale * (stronger - weaker)


def draw_grid(arguments: argparse.Namespace) -> None:
    """Write a PNG with one row of pictures a class."""
    from einops import rearrange
    from PIL import Image

    from rae_bridge import codec, generate  # here: they build on this module

    flow = generate.TrainedFlow.load(arguments.model.resolve())
    encoder = arguments.encoder or json.loads((arguments.model / codec.TOKENS_FILE).read_text())["encoder"]
    way_back = codec.load_codec(encoder, decoder=arguments.decoder)
    codec.check_tokens(arguments.model, way_back.encoder)
    guidance = None
    if arguments.scale != 1:
        weaker = str(arguments.weaker.resolve()) if arguments.weaker else None
        kind = "autoguidance" if weaker else "cfg"
        guidance = generate.GuidanceConfig(kind=kind, scale=arguments.scale, model=weaker)
    y = torch.tensor(arguments.classes).repeat_interleave(arguments.columns)
    if y.min() < 0 or y.max() >= flow.model.num_classes:
        raise ValueError(f"classes must be from 0 to {flow.model.num_classes - 1}, got {arguments.classes}")
    config = generate.GenerateConfig(
        model=str(arguments.model), encoder=encoder, num_samples=len(y), num_steps=arguments.steps
    )
    noise = generate.draw_noise(arguments.seed, range(len(y)), flow.latent_shape)
    guidance = generate.make_guidance(guidance, flow.model, config.device)
    images = generate.draw_images(flow, way_back, noise, y, config, guidance)
    grid = rearrange(images, "(row column) h w c -> (row h) (column w) c", column=arguments.columns)
    Image.fromarray(grid.numpy()).save(arguments.out)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m rae_bridge.sample", description="Draw pictures of classes."
    )
    parser.add_argument("--model", type=Path, required=True, help="weights folder by rae_bridge.train")
    parser.add_argument("--classes", type=int, nargs="+", required=True, help="class indices, a row each")
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    parser.add_argument("--columns", type=int, default=8, help="pictures a class (8)")
    parser.add_argument("--steps", type=int, default=50, help="model calls (50)")
    parser.add_argument("--scale", type=float, default=1.0, help="guidance scale (1: none)")
    parser.add_argument(
        "--weaker", type=Path, help="weights folder of the weaker model: autoguidance, else cfg"
    )
    parser.add_argument("--encoder", help="the encoder it was trained on (the name that its weights give)")
    parser.add_argument("--decoder", help="own, or a pixel decoder's folder (the encoder's config)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


if __name__ == "__main__":
    try:
        draw_grid(parse_arguments())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
