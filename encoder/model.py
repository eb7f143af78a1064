"""OpenVision 3: encoder, decoder, text encoder and captioner, and the objective in which their losses meet.

Reconstruction: z_vae -> encoder -> z_u, plus noise -> decoder -> z_vae_hat -> frozen VAE -> pixels_hat.
Understanding: z_u -> captioner; pooled z_u -> contrastive loss with the text encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from encoder import losses
from encoder.batch import Batch
from encoder.distributed import gather_rows, num_processes
from encoder.options import ObjectiveConfig, OpenVision3Shape
from encoder.perceptual import PerceptualLoss
from encoder.pretrained import VAE_DOWNSAMPLE, load_pretrained, write_pretrained, write_processor
from encoder.text import Captioner, ParallelCaptioner, TextEncoder
from encoder.tokenizer import Tokenizer
from encoder.vit import ViTDecoder, ViTEncoder

if TYPE_CHECKING:
    from encoder.vae import FrozenVAE

# pooled (B E), one (B E) of text features for each pass, the temperature's inverse -> the contrastive term
Contrast = Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # not clamped in training, as in OpenVision


class OpenVision3(nn.Module):
    """The towers. Without text towers (`shape.text` None) it encodes and decodes only.

    Source: arXiv:2601.15369v2, Sec. 3.
    """

    def __init__(self, shape: OpenVision3Shape):
        super().__init__()
        self.shape = shape
        self.encoder = ViTEncoder(shape.encoder)
        self.decoder = ViTDecoder(shape.decoder)
        if shape.text is not None:
            vocab_size = Tokenizer(shape.text.tokenizer).vocab_size
            self.text = TextEncoder(shape.text, vocab_size, shape.encoder.embed_dim)
            if shape.captioner.kind == "parallel":
                widths = (shape.encoder.width, shape.text.width)
                self.captioner = ParallelCaptioner(shape.captioner, vocab_size, *widths)
            else:
                self.captioner = Captioner(shape.captioner, vocab_size, shape.encoder.width)
            self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def save_pretrained(
        self, folder: Path | str, *, dtype: torch.dtype = torch.float32, text: bool = True
    ) -> None:
        """Write folder/config.json and model.safetensors; without `text`, the vision towers only."""
        shape = self.shape if text else replace(self.shape, text=None, captioner=None)
        kept = self.state_dict()
        if not text:
            kept = {name: value for name, value in kept.items() if name.startswith(("encoder.", "decoder."))}
        write_pretrained(folder, "openvision3", shape, kept, dtype)
        downsample = 1 if shape.encoder.in_channels == 3 else VAE_DOWNSAMPLE
        write_processor(folder, shape.encoder.image_size * downsample, (0.0,) * 3, (1.0,) * 3)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> OpenVision3:
        """Read what `save_pretrained` wrote, in float32.

        Raises: FileNotFoundError without the files; ValueError if they are damaged or of another model.
        """
        return load_pretrained(cls, folder, "openvision3", OpenVision3Shape)


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
    """The weighted sum of the two branches' losses.

    Source: arXiv:2601.15369v2, Eq. 6.
    """
    reconstruction = weights.omega_rec * reconstruction_loss(terms, weights)
    return reconstruction + weights.omega_und * understanding_loss(terms, weights)
