"""Stage: pictures from a trained diffusion transformer, equally many of each class.

`python -m rae_bridge.generate <config.yaml> <out_dir>` writes out_dir/samples.npz (ADM's layout: arr_0,
uint8 M S S 3; and labels M). Sample i has class i mod K and its noise from (seed, i) alone: the same picture
whatever the batch size. Finished batches are kept, so an interrupted run goes on where it stopped.

Source of the protocol: RAE (src/sample_ddp.py at a4d18c4, `--label-sampling equal`).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from encoder import checkpoint
from encoder.config import ROOT
from encoder.optim import autocast
from encoder.stage import main, progress
from rae_bridge.codec import Codec, check_tokens, load_codec, to_images
from rae_bridge.config import GenerateConfig, GuidanceConfig
from rae_bridge.dit import DiT
from rae_bridge.latents import LatentStatistics, to_tokens
from rae_bridge.sample import Guidance, sample


@dataclass(frozen=True, slots=True)
class TrainedFlow:
    """A trained diffusion transformer with what sampling from it takes."""

    model: DiT
    statistics: LatentStatistics
    shift: float

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """D h w"""
        config = self.model.config
        return config.in_channels, config.input_size, config.input_size

    @staticmethod
    def load(folder: Path | str, device: str = "cpu") -> "TrainedFlow":
        """Read a weights folder by `rae_bridge.train`.

        Raises:
            FileNotFoundError, ValueError: it is not one, or is damaged.
        """
        folder = ROOT / folder
        model = DiT.from_pretrained(folder).to(device).requires_grad_(False)
        path = folder / "flow.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} is no weights folder of rae_bridge.train (flow.json is missing)"
            )
        statistics = LatentStatistics.load(folder / "latent_stats.pt")
        return TrainedFlow(model, statistics, json.loads(path.read_text())["shift"])


def make_guidance(config: GuidanceConfig | None, model: DiT, device: str) -> Guidance | None:
    """Guidance as configured for `model`.

    Raises:
        ValueError: cfg for a model without a null class; autoguidance without a weaker model; and what
            `Guidance` refuses.
    """
    if config is None:
        return None
    if config.kind == "cfg" and not model.config.has_null_class:
        raise ValueError("cfg needs a model trained with class_dropout_prob > 0; this one has no null class")
    weaker = TrainedFlow.load(config.model, device).model if config.model else None
    return Guidance(kind=config.kind, scale=config.scale, interval=config.interval, model=weaker)


def draw_noise(seed: int, indices: range, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (B, *shape), row by row from (seed, index)."""
    rows = [torch.randn(shape, generator=checkpoint.step_generator(seed, i, "sample")) for i in indices]
    return torch.stack(rows)


def draw_images(
    flow: TrainedFlow,
    codec: Codec,
    noise: Tensor,
    y: Tensor,
    config: GenerateConfig,
    guidance: Guidance | None,
) -> Tensor:
    """uint8 images (B S S 3) for noise (B D h w) and classes y (B,)."""
    noise, y = noise.to(config.device), y.to(config.device)
    steps = {"num_steps": config.num_steps, "solver": config.solver, "end": config.end}
    with autocast(config.precision, config.device):
        latents = sample(flow.model, noise, y, shift=flow.shift, guidance=guidance, **steps)
    tokens = to_tokens(flow.statistics.denormalise(latents))
    return to_images(codec.decode(tokens), config.rounding)


def run(config: GenerateConfig, out_dir: Path) -> dict:
    """Sample, decode and write; see the module's docstring."""
    torch.set_flush_denormal(True)
    flow = TrainedFlow.load(config.model, config.device)
    codec = load_codec(config.encoder, decoder=config.decoder, device=config.device)
    check_tokens(ROOT / config.model, codec.encoder)
    guidance = make_guidance(config.guidance, flow.model, config.device)
    labels = torch.arange(config.num_samples) % flow.model.num_classes

    parts = out_dir / "parts"
    parts.mkdir(exist_ok=True)
    paths = []
    for start in range(0, config.num_samples, config.batch_size):
        indices = range(start, min(start + config.batch_size, config.num_samples))
        paths.append(parts / f"{start:08d}.safetensors")
        if not paths[-1].is_file():
            noise = draw_noise(config.seed, indices, flow.latent_shape)
            images = draw_images(flow, codec, noise, labels[start : indices.stop], config, guidance)
            checkpoint.save_tensors(paths[-1], {"images": images})
        progress(out_dir, indices.stop, config.num_samples, "samples")

    images = torch.cat([checkpoint.load_tensors(path)["images"] for path in paths])
    np.savez(out_dir / "samples.npz", arr_0=images.numpy(), labels=labels.numpy())
    shutil.rmtree(parts)
    return {"num_samples": len(images), "num_steps": config.num_steps, "image_size": codec.image_size}


if __name__ == "__main__":
    main(GenerateConfig, run)
