"""A grid of pictures in one command, a row a class:

`python -m rae_bridge.draw --model <weights folder> --classes 0 3 7 --out grid.png`. Picture i, counted row by
row, has the noise of sample i of `rae_bridge.generate` with the same seed.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image

from rae_bridge.codec import TOKENS_FILE, check_tokens, load_codec
from rae_bridge.config import GenerateConfig, GuidanceConfig
from rae_bridge.generate import (
    TrainedFlow,
    inner_noise_of_samples,
    make_guidance,
    noise_of_samples,
    pictures_from_noise,
)


def draw_grid(arguments: argparse.Namespace) -> None:
    """Write a PNG with one row of pictures a class.

    Raises:
        FileNotFoundError, ValueError: no such model, an encoder of other tokens, or a class that it has not.
    """
    flow = TrainedFlow.load(arguments.model.resolve())
    encoder = arguments.encoder or json.loads((arguments.model / TOKENS_FILE).read_text())["encoder"]
    codec = load_codec(encoder, decoder=arguments.decoder)
    check_tokens(arguments.model, codec.encoder)
    y = torch.tensor(arguments.classes).repeat_interleave(arguments.columns)
    if y.min() < 0 or y.max() >= flow.model.num_classes:
        raise ValueError(f"classes must be from 0 to {flow.model.num_classes - 1}, got {arguments.classes}")
    config = GenerateConfig(
        model=str(arguments.model),
        encoder=encoder,
        num_samples=len(y),
        num_steps=arguments.steps,
        inner_steps=arguments.inner,
        guidance=guidance_of(arguments),
    )
    noise = noise_of_samples(arguments.seed, range(len(y)), flow.latent_shape)
    guidance = make_guidance(config.guidance, flow.model, config.device)
    inner = inner_noise_of_samples(flow, arguments.seed, range(len(y)), arguments.steps)
    images = pictures_from_noise(flow, codec, noise, y, config, guidance, inner)
    grid = rearrange(images, "(row column) h w c -> (row h) (column w) c", column=arguments.columns)
    Image.fromarray(grid.numpy()).save(arguments.out)


def guidance_of(arguments: argparse.Namespace) -> GuidanceConfig | None:
    """None at scale 1; autoguidance where a weaker model is named, else cfg."""
    if arguments.scale == 1:
        return None
    weaker = str(arguments.weaker.resolve()) if arguments.weaker else None
    return GuidanceConfig(kind="autoguidance" if weaker else "cfg", scale=arguments.scale, model=weaker)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m rae_bridge.draw", description="Draw pictures of classes."
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="weights folder by rae_bridge.train or distill"
    )
    parser.add_argument("--classes", type=int, nargs="+", required=True, help="class indices, a row each")
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    parser.add_argument("--columns", type=int, default=8, help="pictures a class (8)")
    parser.add_argument("--steps", type=int, default=50, help="model calls (50)")
    parser.add_argument("--inner", type=int, help="calls of a student's head in each step (as it learnt)")
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
