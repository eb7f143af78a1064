"""A grid of pictures in one command, a row a class or a row a prompt:

`python -m rae_bridge.draw --model <weights folder> --classes 0 3 7 --out grid.png`, or `--prompt "a red cup
and a blue ball"` for a model by `rae_bridge.text.train`. Picture i, counted row by row, has the noise of
sample i of `rae_bridge.generate` with the same seed.
"""

import argparse
import json
import sys
import typing
from pathlib import Path

from PIL import Image

from encoder.runtime.device import Device, Precision, require_device
from rae_bridge.codec import TOKENS_FILE, check_tokens, load_codec
from rae_bridge.config import GenerateConfig, GuidanceConfig, Weights
from rae_bridge.generate import TrainedFlow, make_guidance
from rae_bridge.grids import draw_classes
from rae_bridge.text.generate import load_told, text_guidance


def draw_grid(arguments: argparse.Namespace) -> None:
    """Write a PNG with one row of pictures a class, or a prompt.

    Raises:
        FileNotFoundError, ValueError: no such model, device or weights, an encoder or a guide of other
            tokens, a guide without a scale, or a class that the model has not; prompts for a model of
            classes, or with an option that only those have.
    """
    asked = guidance_of(arguments)
    device = str(require_device(arguments.device))
    rows, flow = load_rows(arguments, device)
    encoder = arguments.encoder or json.loads((arguments.model / TOKENS_FILE).read_text())["encoder"]
    config = GenerateConfig(
        model=str(arguments.model),
        encoder=encoder,
        num_samples=len(rows) * arguments.columns,
        num_steps=arguments.steps,
        inner_steps=arguments.inner,
        solver=arguments.solver,
        end=arguments.end,
        guidance=asked,
        precision=arguments.precision,
        seed=arguments.seed,
    )
    guidance = text_guidance(asked) if arguments.prompt else make_guidance(asked, flow, device)
    codec = load_codec(encoder, decoder=arguments.decoder, device=device)
    check_tokens(arguments.model, codec.encoder)
    grid = draw_classes(flow, codec, config, rows, arguments.columns, guidance)
    Image.fromarray(grid.numpy()).save(arguments.out)


def load_rows(arguments: argparse.Namespace, device: str) -> tuple[list[int], TrainedFlow]:
    """What each row of the grid is of, as the model's number for it, and the model."""
    model = arguments.model.resolve()
    if arguments.prompt:
        if arguments.guide or arguments.weights != "ema":
            raise ValueError("--prompt goes with neither --guide nor --weights online")
        flow = load_told(model, arguments.prompt, device, arguments.text_encoder)
        return list(range(len(arguments.prompt))), flow
    flow = TrainedFlow.load(model, device, arguments.weights)
    if not all(0 <= y < flow.model.num_classes for y in arguments.classes):
        raise ValueError(f"classes must be from 0 to {flow.model.num_classes - 1}, got {arguments.classes}")
    return arguments.classes, flow


def guidance_of(arguments: argparse.Namespace) -> GuidanceConfig | None:
    """None at scale 1; autoguidance where a guide is named, else cfg.

    Raises: ValueError: a guide is named, and the scale leaves it out.
    """
    if arguments.scale == 1:
        if arguments.guide:
            raise ValueError(f"--guide {arguments.guide} does nothing at --scale 1; give another, as 1.42")
        return None
    guide = str(arguments.guide.resolve()) if arguments.guide else None
    kind = "autoguidance" if guide else "cfg"
    return GuidanceConfig(kind=kind, scale=arguments.scale, interval=tuple(arguments.interval), model=guide)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m rae_bridge.draw", description="Draw pictures of classes, or of prompts."
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="weights folder by rae_bridge.train, distill or text.train")
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--classes", type=int, nargs="+", help="class indices, a row each")
    of.add_argument("--prompt", nargs="+", help="texts, a row each, for a model by rae_bridge.text.train")
    add("--text-encoder", help="folder of the one that it was trained with (where it was then)")
    add("--out", type=Path, required=True, help="PNG file")
    add("--columns", type=int, default=8, help="pictures a row (8)")
    add("--steps", type=int, default=50, help="model calls (50)")
    add("--inner", type=int, help="calls of a student's head in each step (as it learnt)")
    add("--solver", choices=("euler", "heun"), default="euler")
    add("--end", choices=("rae", "zero"), default="zero", help="of the grid of times: RAE's own, or 0 (zero)")
    add("--scale", type=float, default=1.0, help="guidance scale (1: none)")
    add("--interval", type=float, nargs=2, default=(0.0, 1.0), help="of t, where guidance acts (0 1)")
    add("--guide", "--weaker", type=Path, help="weights folder of a weaker model: autoguidance, else cfg")
    add(
        "--weights",
        choices=typing.get_args(Weights),
        default="ema",
        help="averaged ones, or as trained (ema)",
    )
    add("--encoder", help="the encoder it was trained on (the name that its weights give)")
    add("--decoder", help="own, or a pixel decoder's folder (the encoder's config)")
    add("--device", choices=typing.get_args(Device), default="cpu")
    add("--precision", choices=typing.get_args(Precision), default="fp32")
    add("--seed", type=int, default=0)
    return parser.parse_args(words)


if __name__ == "__main__":
    try:
        draw_grid(parse_arguments())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
