"""The samples that a trainer holds in memory, and its scores on held-out ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from encoder.data.batch import TrainingSet, to_pixels
from encoder.data.shards import load_images
from encoder.data.tokenizer import Tokenizer
from encoder.metrics.probes import linear_probe, recall_at_1
from encoder.metrics.psnr import psnr
from encoder.models.clip import Clip, normalise
from encoder.models.openvision3 import OpenVision3
from encoder.models.vae import FrozenVAE
from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT
from encoder.runtime.distributed import share_out
from encoder.runtime.stage import progress
from encoder.training.options import TrainConfig

EVAL_BATCH = 100
PROBE_SAMPLES = 4000  # training samples that the linear probe is fitted on


def load_samples(config: TrainConfig, split: str, limit: int | None) -> tuple[TrainingSet, Tensor]:
    """A split in memory and its labels (N,)."""
    images, records = load_images(
        ROOT / config.data, split, limit, image_size=config.image_size, captions=config.captions
    )
    shape = config.openvision3 or config.clip
    samples = TrainingSet(
        torch.as_tensor(images),
        records,
        Tokenizer(shape.text.tokenizer),
        text_length=shape.text.context_length,
        caption_length=config.openvision3.captioner.context_length if config.openvision3 else None,
        captions=config.captions,
    )
    return samples, torch.tensor([record.get("label", -1) for record in records])


@torch.no_grad()
def cache_latents(vae: FrozenVAE, images: Tensor, out_dir: Path, name: str) -> Tensor:
    """z_vae of every image (N H W 3 uint8) as N C h w fp16, kept in out_dir for the next start."""
    path = out_dir / f"latents-{name}.safetensors"
    if path.is_file():
        return checkpoint.load_tensors(path)["z_vae"]
    device = next((each.device for each in vae.parameters()), "cpu")
    encoded = []
    for start in range(0, len(images), EVAL_BATCH):
        pixels = to_pixels(images[start : start + EVAL_BATCH]).to(device)
        encoded.append(vae.encode(pixels).half().cpu())
        progress(out_dir, start, len(images), f"latents of {name}")
    z_vae = torch.cat(encoded)
    checkpoint.save_tensors(path, {"z_vae": z_vae})
    return z_vae


@dataclass(frozen=True, slots=True)
class Seen:
    """What the towers make of samples, a row each, on the CPU: mean z_u (N D), pooled (N E), the alt texts'
    features (N E), and the reconstructions' PSNR (N,) in dB; the last two where they were asked for."""

    features: Tensor
    pooled: Tensor
    texts: Tensor | None
    psnr: Tensor | None


@torch.no_grad()
def see(
    model: OpenVision3 | Clip, samples: TrainingSet, limit: int, vae: FrozenVAE | None, *, is_scored: bool
) -> Seen:
    """The first `limit` samples as `Seen`, `is_scored` with texts and PSNR; batches are shared among the
    processes and tokens are not kept."""
    device = model.logit_scale.device
    batches = torch.arange(min(limit, len(samples))).split(EVAL_BATCH)

    def look(number: int) -> list[Tensor]:
        rows = batches[number]
        if samples.z_vae is not None:
            output = model.encoder(samples.z_vae[rows].to(device).float())
        else:
            output = model.encoder(normalise(to_pixels(samples.images[rows].to(device))))
        found = [output.z_u.mean(dim=1), output.pooled]
        if is_scored:
            found.append(model.text(samples.alt_ids[rows].long().to(device)))
        if is_scored and isinstance(model, OpenVision3):
            pixels = to_pixels(samples.images[rows].to(device))
            found.append(psnr(pixels, vae.decode(model.decoder(output.z_u))))
        return [each.cpu() for each in found]

    columns = [torch.cat(each) for each in zip(*share_out(look, len(batches)), strict=True)]
    return Seen(*columns, *[None] * (4 - len(columns)))


def evaluate(
    model: OpenVision3 | Clip,
    fit: tuple[TrainingSet, Tensor] | None,
    held_out: tuple[TrainingSet, Tensor],
    vae: FrozenVAE | None,
) -> dict[str, float]:
    """Held-out retrieval R@1 (%); with classes, a linear probe on mean z_u (%); if it decodes, PSNR (dB).

    The probe is fitted on `fit`; without it (training data are streamed) on every other held-out sample and
    scored on the rest.
    """
    samples, labels = held_out
    seen = see(model, samples, len(samples), vae, is_scored=True)
    image_to_text, text_to_image = recall_at_1(seen.pooled, seen.texts)
    scores = {"r1_image_to_text": image_to_text, "r1_text_to_image": text_to_image}
    features = seen.features
    if fit is not None:
        features_fit = see(model, fit[0], PROBE_SAMPLES, vae, is_scored=False).features
        fitted, probed = (features_fit, fit[1][: len(features_fit)]), (features, labels)
    else:
        fitted, probed = (features[::2], labels[::2]), (features[1::2], labels[1::2])
    if min(labels.min(), fitted[1].min()) >= 0:  # -1: the data has no classes
        scores["linear_probe"] = linear_probe(*fitted, *probed)
    if seen.psnr is not None:
        scores["psnr"] = seen.psnr.mean().item()
    return scores
