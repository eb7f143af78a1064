"""Stage: train OpenVision 3, or the CLIP baseline on the same samples in the same order.

`python -m encoder.train <config.yaml> <out_dir>` writes out_dir/weights (vision towers, fp16 safetensors,
card.yaml). A run that is killed goes on from its last checkpoint and ends with the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from encoder import checkpoint
from encoder.batch import Batch, TrainingSet, to_pixels
from encoder.card import write_card
from encoder.clip import Clip, clip_terms, normalise
from encoder.config import ROOT
from encoder.data.shards import load_images
from encoder.evaluate import linear_probe, psnr, recall_at_1
from encoder.losses import PerceptualLoss
from encoder.model import (
    OpenVision3,
    global_contrast,
    objective,
    reconstruction_terms,
    understanding_terms,
)
from encoder.optim import autocast, build_adamw, update
from encoder.options import TrainConfig
from encoder.stage import main, progress
from encoder.tokenizer import Tokenizer
from encoder.vae import FrozenVAE, load_vae

EVAL_BATCH = 100
PROBE_SAMPLES = 4000  # training samples that the linear probe is fitted on


def load_samples(config: TrainConfig, split: str, limit: int | None) -> tuple[TrainingSet, Tensor]:
    """A split in memory and its labels (N,)."""
    images, records = load_images(ROOT / config.data, split, limit)
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
    encoded = []
    for start in range(0, len(images), EVAL_BATCH):
        encoded.append(vae.encode(to_pixels(images[start : start + EVAL_BATCH])).half())
        progress(out_dir, start, len(images), f"latents of {name}")
    z_vae = torch.cat(encoded)
    checkpoint.save_tensors(path, {"z_vae": z_vae})
    return z_vae


def train_step(
    model: OpenVision3 | Clip,
    batch: Batch,
    config: TrainConfig,
    step: int,
    vae: FrozenVAE | None = None,
    perceptual: PerceptualLoss | None = None,
) -> dict[str, Tensor]:
    """The loss, its terms and the deviation of z_u on one batch. Noise is drawn from (seed, step)."""
    contrast = global_contrast(config.contrastive_chunk)
    with autocast(config.precision):
        if isinstance(model, Clip):
            z_u, terms = clip_terms(model, batch, contrast)
            loss = terms["contrastive"]
        else:
            output = model.encoder(batch.z_vae)
            z_u, pooled = output.z_u, output.pooled
            generator = checkpoint.step_generator(config.seed, step, "noise")
            active = perceptual if step >= config.perceptual_from * config.num_steps else None
            understood, decoded = z_u, z_u
            if "understanding" not in config.branches:
                understood = z_u.detach()
                pooled = model.encoder.pool(understood)
            if "reconstruction" not in config.branches:
                decoded = z_u.detach()
            terms = understanding_terms(model, understood, pooled, batch, contrast)
            terms |= reconstruction_terms(model, decoded, batch, vae, active, config.objective.tau, generator)
            loss = objective(terms, config.objective)
    return {"loss": loss, **terms, "z_u_std": z_u.detach().float().std()}


def probe_parameters(model: OpenVision3 | Clip, branches: Sequence[str]) -> list[nn.Parameter]:
    """The parameters that only a branch outside `branches` reads: none if both train the encoder.

    The contrastive head (final norm and projection) belongs to the understanding branch.
    """
    if "reconstruction" not in branches:
        return list(model.decoder.parameters())
    if "understanding" not in branches:
        head = [model.logit_scale, model.encoder.proj, *model.encoder.ln_post.parameters()]
        return [*model.text.parameters(), *model.captioner.parameters(), *head]
    return []


@torch.no_grad()
def encode_set(model: OpenVision3 | Clip, samples: TrainingSet, limit: int) -> tuple[Tensor, Tensor]:
    """z_u (N n D) and pooled (N E) of the first `limit` samples."""
    outputs = []
    for rows in torch.arange(min(limit, len(samples))).split(EVAL_BATCH):
        if samples.z_vae is not None:
            outputs.append(model.encoder(samples.z_vae[rows].float()))
        else:
            outputs.append(model.encoder(normalise(to_pixels(samples.images[rows]))))
    return torch.cat([each.z_u for each in outputs]), torch.cat([each.pooled for each in outputs])


@torch.no_grad()
def evaluate(
    model: OpenVision3 | Clip,
    fit: tuple[TrainingSet, Tensor],
    held_out: tuple[TrainingSet, Tensor],
    vae: FrozenVAE | None,
) -> dict[str, float]:
    """Held-out retrieval R@1 (%); with classes, a linear probe on mean z_u (%); if it decodes, PSNR (dB)."""
    samples, labels = held_out
    z_u, pooled = encode_set(model, samples, len(samples))
    z_u_fit, _ = encode_set(model, fit[0], PROBE_SAMPLES)
    texts = torch.cat([model.text(ids.long()) for ids in samples.alt_ids.split(EVAL_BATCH)])
    image_to_text, text_to_image = recall_at_1(pooled, texts)
    scores = {"r1_image_to_text": image_to_text, "r1_text_to_image": text_to_image}
    if min(labels.min(), fit[1].min()) >= 0:  # -1: the data has no classes
        fit_labels = fit[1][: len(z_u_fit)]
        scores["linear_probe"] = linear_probe(z_u_fit.mean(dim=1), fit_labels, z_u.mean(dim=1), labels)
    if isinstance(model, OpenVision3):
        pairs = zip(samples.images.split(EVAL_BATCH), z_u.split(EVAL_BATCH), strict=True)
        values = [psnr(to_pixels(images), vae.decode(model.decoder(tokens))) for images, tokens in pairs]
        scores["psnr"] = torch.cat(values).mean().item()
    return scores


def train(config: TrainConfig, out_dir: Path) -> dict:
    # ---- setup
    torch.manual_seed(config.seed)
    torch.set_flush_denormal(True)  # denormal numbers slow a CPU many times over

    # ---- data: pictures, texts and latents in memory
    train_set, train_labels = load_samples(config, "train", config.train_limit)
    held_out, labels = load_samples(config, config.eval_split, config.eval_limit)
    vae = None
    if config.openvision3 is not None:
        vae = load_vae(config.vae)
        train_set.z_vae = cache_latents(vae, train_set.images, out_dir, "train")
        held_out.z_vae = cache_latents(vae, held_out.images, out_dir, config.eval_split)

    # ---- model, optimiser
    model = OpenVision3(config.openvision3) if config.openvision3 else Clip(config.clip)
    optimiser = build_adamw(model, config.optim)
    probe = probe_parameters(model, config.branches)
    is_perceptual = config.openvision3 is not None and config.objective.perceptual_weight > 0
    perceptual = PerceptualLoss(config.perceptual) if is_perceptual else None
    num_pixels = config.batch_size
    if config.openvision3 is not None:
        num_pixels = max(1, round(config.pixel_fraction * config.batch_size))

    # ---- resume
    path, first_step, seconds = out_dir / "checkpoint.pt", 0, 0.0
    if path.is_file():
        state = checkpoint.load(path)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first_step, seconds = state["step"], state["seconds"]
    started = time.monotonic()

    # ---- loop
    for step in range(first_step, config.num_steps):
        indices = checkpoint.batch_indices(config.seed, step, config.batch_size, len(train_set))
        batch = train_set.batch(
            indices,
            checkpoint.step_generator(config.seed, step, "sentence"),
            num_pixels=num_pixels,
            with_sentence=config.contrastive_texts == "alt_and_sentence",
        )
        terms = train_step(model, batch, config, step, vae, perceptual)
        grad_norm = update(optimiser, terms["loss"], config.optim, step, config.num_steps, probe)
        done, is_last = step + 1, step + 1 == config.num_steps
        if done % config.log_steps == 0 or is_last:
            scalars = {name: value.item() for name, value in terms.items()} | {"grad_norm": grad_norm}
            if config.openvision3 is not None:
                scalars["tau_over_std"] = config.objective.tau / scalars["z_u_std"]
            rate = (done - first_step) * config.batch_size / (time.monotonic() - started)
            progress(out_dir, done, config.num_steps, **scalars, samples_per_second=rate)
        if done % config.eval_steps == 0 and not is_last:
            scores = evaluate(model, (train_set, train_labels), (held_out, labels), vae)
            progress(out_dir, done, config.num_steps, **scores)
        if done % config.checkpoint_steps == 0 or is_last:
            state = {"step": done, "seconds": seconds + time.monotonic() - started}
            tensors = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            checkpoint.save(path, state | tensors)

    # ---- evaluate, export
    seconds += time.monotonic() - started
    scores = evaluate(model, (train_set, train_labels), (held_out, labels), vae)
    progress(out_dir, config.num_steps, config.num_steps, **scores)
    weights = out_dir / "weights"
    model.save_pretrained(weights, dtype=torch.float16, text=False)
    what = "OpenVision 3: encoder and decoder" if config.openvision3 else "CLIP baseline: vision tower"
    write_card(weights, what=what, stage="encoder.train", config=config, seconds=seconds, scores=scores)
    return scores


if __name__ == "__main__":
    main(TrainConfig, train)
