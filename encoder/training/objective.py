"""The objective over a batch: both branches' terms, and the weighted sum in which they meet.

Reconstruction: z_u, plus noise -> decoder -> z_vae_hat -> frozen VAE -> pixels_hat.
Understanding: z_u -> captioner; pooled z_u -> contrastive loss with the text encoder, of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from encoder.data.batch import Batch
from encoder.models import losses
from encoder.models.clip import Clip, normalise
from encoder.models.openvision3 import OpenVision3
from encoder.models.perceptual import PerceptualLoss
from encoder.models.text import TextEncoder
from encoder.models.vae import FrozenVAE
from encoder.runtime.distributed import gather_rows, num_processes
from encoder.training.options import ObjectiveConfig

# pooled (B E), one (B E) of text features for each pass, the temperature's inverse -> the contrastive term
Contrast = Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]


def add_noise(z_u: Tensor, tau: float, generator: torch.Generator) -> Tensor:
    """z_u (B N D) + sigma eps, eps ~ N(0, I), sigma ~ U[0, tau] drawn once a sample.

    Source: arXiv:2601.15369v2, Eq. 3.
    """
    sigma = tau * torch.rand(len(z_u), 1, 1, generator=generator, device=generator.device)
    noise = torch.randn(z_u.shape, generator=generator, device=generator.device)
    return z_u + (sigma * noise).to(z_u)


def crop_corners(num: int, size: int, full: int, generator: torch.Generator) -> Tensor:
    """Top-left corners (num, 2) of squares of side `size` in squares of side `full`, uniform."""
    return torch.randint(0, full - size + 1, (num, 2), generator=generator, device=generator.device).cpu()


def crop_at(pictures: Tensor, corners: Tensor, size: int) -> Tensor:
    """The squares of side `size` at `corners` (B 2; row, column) of pictures (B C H W)."""
    pairs = zip(pictures, corners.tolist(), strict=True)
    return torch.stack([each[:, top : top + size, left : left + size] for each, (top, left) in pairs])


def reconstruction_terms(
    model: OpenVision3,
    z_u: Tensor,
    batch: Batch,
    vae: FrozenVAE,
    perceptual: PerceptualLoss | None,
    tau: float,
    generator: torch.Generator,
    crop: int | None = None,
) -> dict[str, Tensor]:
    """latent_l1 of all rows; pixel_l1, and perceptual if given, of the rows whose pixels the batch holds.

    With `crop`, only a random square of so many latents a side is decoded of each, and compared with its own
    part of the picture: cheaper, but near the cut the VAE decoder sees less than it would in the whole.
    """
    z_vae_hat = model.decoder(add_noise(z_u, tau, generator)).float()
    pixels, decoded = batch.pixels, z_vae_hat[: len(batch.pixels)]
    if crop is not None and crop < decoded.shape[-1]:
        corners = crop_corners(len(decoded), crop, decoded.shape[-1], generator)
        scale = pixels.shape[-1] // decoded.shape[-1]
        decoded, pixels = crop_at(decoded, corners, crop), crop_at(pixels, corners * scale, crop * scale)
    pixels_hat = vae.decode(decoded)
    terms = {
        "pixel_l1": losses.pixel_l1(pixels_hat, pixels),
        "latent_l1": losses.latent_l1(z_vae_hat, batch.z_vae),
    }
    if perceptual is not None:
        terms["perceptual"] = perceptual(pixels_hat, pixels)
    return terms


def global_contrast(chunk_size: int | None = None) -> Contrast:
    """The mean over text passes of InfoNCE, each pass with its own texts as candidates (OpenVision 1); the
    candidates are all processes' rows."""

    def contrast(pooled: Tensor, texts: Sequence[Tensor], scale: Tensor) -> Tensor:
        everywhere = [{}] * len(texts)
        if num_processes() > 1:
            images = gather_rows(pooled)
            everywhere = [
                {"all_image_features": images, "all_text_features": gather_rows(each)} for each in texts
            ]
        pairs = zip(texts, everywhere, strict=True)
        values = [
            losses.contrastive(pooled, each, scale, chunk_size=chunk_size, **all_) for each, all_ in pairs
        ]
        return torch.stack(values).mean()

    return contrast


def text_features(text: TextEncoder, batch: Batch) -> tuple[Tensor, ...]:
    """The features (B E) of each text pass."""
    return text(torch.cat(batch.text_ids)).chunk(len(batch.text_ids))


def understanding_terms(
    model: OpenVision3,
    z_u: Tensor,
    pooled: Tensor,
    batch: Batch,
    contrast: Contrast | None = None,
    num_tokens: Tensor | float | None = None,
) -> dict[str, Tensor]:
    """caption: cross entropy of the dense caption's words (`num_tokens`: see `losses.caption`);
    contrastive: `contrast` of pooled and the texts' features, by default `global_contrast()`."""
    contrast = contrast or global_contrast()
    targets = batch.caption_ids[:, 1:]
    if model.shape.captioner.kind == "parallel":
        text_tokens = model.text.tokens(torch.cat(batch.text_ids))
        features = model.text.pool(text_tokens).chunk(len(batch.text_ids))
        alt_tokens = text_tokens[: len(z_u), :-1]  # the alt text comes first; [CLS] is left out
        logits = model.captioner(z_u, alt_tokens, targets.shape[1])
    else:
        features = text_features(model.text, batch)
        logits = model.captioner(z_u, batch.caption_ids[:, :-1])
    return {
        "caption": losses.caption(logits, targets, targets != batch.pad_id, num_tokens),
        "contrastive": contrast(pooled, features, model.logit_scale.exp()),
    }


def reconstruction_loss(terms: dict[str, Tensor], weights: ObjectiveConfig) -> Tensor:
    """L_rec; a perceptual term counts only if it is there. Source: arXiv:2601.15369v2, Eq. 4."""
    loss = terms["pixel_l1"] + weights.beta * terms["latent_l1"]
    if "perceptual" in terms:
        loss = loss + weights.perceptual_weight * terms["perceptual"]
    return loss


def understanding_loss(terms: dict[str, Tensor], weights: ObjectiveConfig) -> Tensor:
    """L_und. Source: arXiv:2601.15369v2, Eq. 5."""
    return terms["caption"] + weights.alpha * terms["contrastive"]


def objective(terms: dict[str, Tensor], weights: ObjectiveConfig) -> Tensor:
    """The weighted sum of the two branches' losses; understanding counts only if its terms are there.

    Source: arXiv:2601.15369v2, Eq. 6.
    """
    reconstruction = weights.omega_rec * reconstruction_loss(terms, weights)
    if "caption" not in terms:
        return reconstruction
    return reconstruction + weights.omega_und * understanding_loss(terms, weights)


def clip_terms(model: Clip, batch: Batch, contrast: Contrast) -> tuple[Tensor, dict[str, Tensor]]:
    """The tokens (B N D) and the contrastive term of a batch that holds every row's pixels."""
    output = model.encoder(normalise(batch.pixels))
    features = text_features(model.text, batch)
    return output.z_u, {"contrastive": contrast(output.pooled, features, model.logit_scale.exp())}
