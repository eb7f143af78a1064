"""OpenVision 3: encoder, decoder, text encoder and captioner, and the objective in which their losses meet.

Reconstruction: z_vae -> encoder -> z_u, plus noise -> decoder -> z_vae_hat -> frozen VAE -> pixels_hat.
Understanding: z_u -> captioner; pooled z_u -> contrastive loss with the text encoder.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from encoder import losses
from encoder.batch import Batch
from encoder.options import ObjectiveConfig, OpenVision3Shape
from encoder.perceptual import PerceptualLoss
from encoder.pretrained import load_pretrained, write_pretrained
from encoder.text import Captioner, TextEncoder
from encoder.tokenizer import Tokenizer
from encoder.vit import ViTDecoder, ViTEncoder

if TYPE_CHECKING:
    from encoder.vae import FrozenVAE

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
    sigma = tau * torch.rand(len(z_u), 1, 1, generator=generator)
    noise = torch.randn(z_u.shape, generator=generator)
    return z_u + (sigma * noise).to(z_u)


def reconstruction_terms(
    model: OpenVision3,
    z_u: Tensor,
    batch: Batch,
    vae: FrozenVAE,
    perceptual: PerceptualLoss | None,
    tau: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """latent_l1 of all rows; pixel_l1, and perceptual if given, of the rows whose pixels the batch holds."""
    z_vae_hat = model.decoder(add_noise(z_u, tau, generator)).float()
    pixels_hat = vae.decode(z_vae_hat[: len(batch.pixels)])
    terms = {
        "pixel_l1": losses.pixel_l1(pixels_hat, batch.pixels),
        "latent_l1": losses.latent_l1(z_vae_hat, batch.z_vae),
    }
    if perceptual is not None:
        terms["perceptual"] = perceptual(pixels_hat, batch.pixels)
    return terms


def contrastive_term(
    pooled: Tensor, text: TextEncoder, batch: Batch, logit_scale: Tensor, chunk_size: int | None
) -> Tensor:
    """The mean over text passes of InfoNCE, each pass with its own texts as candidates (OpenVision 1)."""
    features = text(torch.cat(batch.text_ids)).chunk(len(batch.text_ids))
    scale = logit_scale.exp()
    values = [losses.contrastive(pooled, each, scale, chunk_size=chunk_size) for each in features]
    return torch.stack(values).mean()


def understanding_terms(
    model: OpenVision3, z_u: Tensor, pooled: Tensor, batch: Batch, chunk_size: int | None = None
) -> dict[str, Tensor]:
    """caption: next-word cross entropy of the dense caption; contrastive: see `contrastive_term`."""
    logits = model.captioner(z_u, batch.caption_ids[:, :-1])
    targets = batch.caption_ids[:, 1:]
    return {
        "caption": losses.caption(logits, targets, targets != batch.pad_id),
        "contrastive": contrastive_term(pooled, model.text, batch, model.logit_scale, chunk_size),
    }


def objective(terms: dict[str, Tensor], weights: ObjectiveConfig) -> Tensor:
    """The weighted sum of the terms; a perceptual term counts only if it is there.

    Source: arXiv:2601.15369v2, Eqs. 4-6.
    """
    reconstruction = terms["pixel_l1"] + weights.beta * terms["latent_l1"]
    if "perceptual" in terms:
        reconstruction = reconstruction + weights.perceptual_weight * terms["perceptual"]
    understanding = terms["caption"] + weights.alpha * terms["contrastive"]
    return weights.omega_rec * reconstruction + weights.omega_und * understanding
