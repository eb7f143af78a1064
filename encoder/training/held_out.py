"""The samples that a trainer holds in memory, and its scores on held-out ones."""

from __future__ import annotations

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
from encoder.runtime.stage import progress
from encoder.training.options import TrainConfig

EVAL_BATCH = 100
PROBE_SAMPLES = 4000  # training samples that the linear probe is fitted on


def load_samples(config: TrainConfig, split: str, limit: int | None) -> tuple[TrainingSet, Tensor]:
    """A split in memory and its labels (N,)."""
    images, records = load_images(ROOT / config.data, split, limit, image_size=config.image_size)
    shape = config.openvision3 or config.clip
    samples = TrainingSet(
        torch.as_tensor(images),
        records,
        Tokenizer(shape.text.tokenizer),
        text_length=shape.text.context_length,
        caption_length=config.openvision3.captioner.context_length if config.openvision3 else None,
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


@torch.no_grad()
def encode_set(model: OpenVision3 | Clip, samples: TrainingSet, limit: int) -> tuple[Tensor, Tensor]:
    """z_u (N n D) and pooled (N E) of the first `limit` samples, on the CPU."""
    device = model.logit_scale.device
    outputs = []
    for rows in torch.arange(min(limit, len(samples))).split(EVAL_BATCH):
        if samples.z_vae is not None:
            outputs.append(model.encoder(samples.z_vae[rows].float().to(device)))
        else:
            outputs.append(model.encoder(normalise(to_pixels(samples.images[rows])).to(device)))
    return torch.cat([each.z_u.cpu() for each in outputs]), torch.cat([each.pooled.cpu() for each in outputs])


@torch.no_grad()
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
    device = model.logit_scale.device
    z_u, pooled = encode_set(model, samples, len(samples))
    texts = [model.text(ids.long().to(device)).cpu() for ids in samples.alt_ids.split(EVAL_BATCH)]
    image_to_text, text_to_image = recall_at_1(pooled, torch.cat(texts))
    scores = {"r1_image_to_text": image_to_text, "r1_text_to_image": text_to_image}
    features = z_u.mean(dim=1)
    if fit is not None:
        z_u_fit, _ = encode_set(model, fit[0], PROBE_SAMPLES)
        fitted = z_u_fit.mean(dim=1), fit[1][: len(z_u_fit)]
        probed = features, labels
    else:
        fitted, probed = (features[::2], labels[::2]), (features[1::2], labels[1::2])
    if min(labels.min(), fitted[1].min()) >= 0:  # -1: the data has no classes
        scores["linear_probe"] = linear_probe(*fitted, *probed)
    if isinstance(model, OpenVision3):
        pairs = zip(samples.images.split(EVAL_BATCH), z_u.split(EVAL_BATCH), strict=True)
        values = [
            psnr(to_pixels(images), vae.decode(model.decoder(tokens.to(device))).cpu(), highest=120)
            for images, tokens in pairs
        ]
        scores["psnr"] = torch.cat(values).mean().item()
    return scores
