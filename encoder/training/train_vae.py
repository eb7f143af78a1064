"""Stage: train an AutoencoderKL of FLUX's shape from scratch, for the demo.

`python -m encoder.train_vae <config.yaml> <out_dir>` writes out_dir/weights (diffusers' layout, fp16
safetensors, card.yaml). The averaged weights are exported; scaling_factor and shift_factor are measured on
them, as FLUX's are 1/std and mean.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from encoder.data.batch import to_pixels
from encoder.data.shards import load_images
from encoder.metrics.psnr import psnr
from encoder.models.perceptual import PerceptualLoss
from encoder.models.shapes import VaeShape
from encoder.models.vae import FrozenVAE, load_vae
from encoder.runtime import checkpoint
from encoder.runtime.card import write_card
from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device
from encoder.runtime.trackers import Journal
from encoder.training.finite import FiniteSteps
from encoder.training.optim import autocast, average_weights, build_adamw, update
from encoder.training.options import TrainVaeConfig

PIXEL_LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}


def build_codec(shape: VaeShape) -> AutoencoderKL:
    """FLUX's autoencoder at the widths of `shape`. Source: config.json of FLUX.1-dev/-schnell vae."""
    depth = len(shape.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=shape.block_out_channels,
        layers_per_block=shape.layers_per_block,
        latent_channels=shape.latent_channels,
        norm_num_groups=shape.norm_num_groups,
        mid_block_add_attention=True,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def kl_to_standard_normal(posterior: DiagonalGaussianDistribution) -> Tensor:
    """KL(N(mean, var) || N(0, 1)), averaged over samples and latent values."""
    mean, var, logvar = posterior.mean.float(), posterior.var.float(), posterior.logvar.float()
    return 0.5 * (mean.square() + var - 1 - logvar).mean()


def train_step(
    codec: AutoencoderKL,
    pixels: Tensor,
    config: TrainVaeConfig,
    step: int,
    perceptual: PerceptualLoss | None,
) -> dict[str, Tensor]:
    """The loss and its terms on one batch of pixels (B 3 H W, in [0, 1])."""
    target = pixels * 2 - 1
    if config.channels_last:
        target = target.contiguous(memory_format=torch.channels_last)
    with autocast(config.precision, target.device.type):
        posterior = codec.encode(target).latent_dist
        generator = checkpoint.step_generator(config.seed, step, "posterior")
        noise = torch.randn(posterior.mean.shape, generator=generator).to(target.device)
        target_hat = codec.decode(posterior.mean + posterior.std * noise).sample.float()
    pixel = PIXEL_LOSSES[config.pixel_loss](target_hat, target)
    terms = {"pixel": pixel, "kl": kl_to_standard_normal(posterior)}
    loss = terms["pixel"] + config.kl_weight * terms["kl"]
    if perceptual is not None and step >= config.perceptual_from * config.num_steps:
        terms["perceptual"] = perceptual((target_hat + 1) / 2, pixels)
        loss = loss + config.perceptual_weight * terms["perceptual"]
    return {"loss": loss, **terms}


@torch.no_grad()
def measure_latents(vae: FrozenVAE, images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the unscaled latents of images (N H W 3 uint8), in float64."""
    device = next(vae.parameters()).device
    encoded = [vae.encode(to_pixels(batch).to(device)).cpu() for batch in images.split(64)]
    latents = torch.cat(encoded).double()
    return latents.mean().item(), latents.std().item()


@torch.no_grad()
def evaluate(vae: FrozenVAE, images: Tensor) -> dict[str, float]:
    """PSNR in dB, mean over images (N H W 3 uint8)."""
    device = next(vae.parameters()).device
    batches = (to_pixels(batch).to(device) for batch in images.split(64))
    values = [psnr(pixels, vae.decode(vae.encode(pixels)), highest=120).cpu() for pixels in batches]
    return {"psnr": torch.cat(values).mean().item(), "num_samples": len(images)}


def export(codec: AutoencoderKL, images: Tensor, folder: Path) -> FrozenVAE:
    """Write the codec in fp16, scale and shift measured on images (N H W 3 uint8); load what was written."""
    codec = copy.deepcopy(codec)
    mean, std = measure_latents(FrozenVAE(codec), images)
    codec.register_to_config(scaling_factor=round(1 / std, 6), shift_factor=round(mean, 6))
    codec.half().save_pretrained(folder)
    return load_vae(folder, device=codec.device)


def train(config: TrainVaeConfig, out_dir: Path) -> dict:
    journal = Journal(out_dir, config.trackers, config)

    # ---- data: every picture in memory as uint8
    images = torch.as_tensor(load_images(ROOT / config.data, "train", config.train_limit)[0])
    held_out = torch.as_tensor(load_images(ROOT / config.data, config.eval_split, config.eval_limit)[0])

    # ---- model, optimiser
    device = require_device(config.device)
    torch.manual_seed(config.seed)
    torch.set_flush_denormal(True)  # denormal numbers slow a CPU many times over
    codec = load_vae(config.init).codec.requires_grad_(True) if config.init else build_codec(config.shape)
    if config.channels_last:
        codec = codec.to(memory_format=torch.channels_last)
    codec = codec.to(device)
    averaged = copy.deepcopy(codec).requires_grad_(False)
    optimiser = build_adamw(codec, config.optim)
    perceptual = PerceptualLoss(config.perceptual).to(device) if config.perceptual_weight else None

    # ---- resume
    path, first_step, seconds = out_dir / "checkpoint.pt", 0, 0.0
    finite = FiniteSteps(config.skip_non_finite)
    if newest := checkpoint.newest(path):
        state = checkpoint.load(newest)
        finite.skipped = state.get("skipped", 0)
        codec.load_state_dict(state["codec"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        first_step, seconds = state["step"], state["seconds"]
    started = time.monotonic() - seconds

    # ---- loop
    for step in range(first_step, config.num_steps):
        indices = checkpoint.batch_indices(config.seed, step, config.batch_size, len(images))
        terms = train_step(codec, to_pixels(images[indices].to(device)), config, step, perceptual)
        loss, num_steps = terms["loss"], config.num_steps
        grad_norm = update(optimiser, loss, config.optim, step, num_steps, finite=finite)
        average_weights(averaged.parameters(), codec.parameters(), config.ema_decay, step)
        done = step + 1
        if done % config.log_steps == 0 or done == config.num_steps:
            rate = (done - first_step) * config.batch_size / (time.monotonic() - started - seconds)
            scalars = {name: value.item() for name, value in terms.items()} | {"grad_norm": grad_norm}
            journal.write(done, config.num_steps, **scalars, samples_per_second=rate)
        if done % config.checkpoint_steps == 0 or done == config.num_steps:
            state = {"step": done, "seconds": time.monotonic() - started, "skipped": finite.skipped}
            state |= {"optimiser": optimiser.state_dict(), "codec": codec.state_dict()}
            state["averaged"] = averaged.state_dict()
            checkpoint.save(path, state, keep=config.keep_checkpoints)

    # ---- export, evaluate
    seconds = time.monotonic() - started
    vae_dir = out_dir / "weights"
    scores = evaluate(export(averaged, images[:2048], vae_dir), held_out)
    what = "AutoencoderKL of FLUX's shape"
    journal.close()
    write_card(vae_dir, what=what, stage="encoder.train_vae", config=config, seconds=seconds, scores=scores)
    return scores
