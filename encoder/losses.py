"""The terms of OpenVision 3's objective: pure functions, reduced in float32. Weights meet in `model.py`.

Pixels come in [0, 1]; the paper leaves their range open and we measure pixel-l1 in [-1, 1], i.e. twice the
difference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from encoder.perceptual import PerceptualLoss

__all__ = ["PerceptualLoss", "caption", "contrastive", "latent_l1", "pixel_l1"]


def pixel_l1(pixels_hat: Tensor, pixels: Tensor) -> Tensor:
    """Mean absolute error in [-1, 1] units. Both B 3 H W in [0, 1]; pixels_hat unclamped.

    Source: arXiv:2601.15369v2, Eq. 4, first term. The pixel range is our choice: that of the VAE's own input.
    """
    return 2 * F.l1_loss(pixels_hat.float(), pixels.float())


def latent_l1(z_vae_hat: Tensor, z_vae: Tensor) -> Tensor:
    """Mean absolute error of scaled VAE latents, both B C h w.

    Source: arXiv:2601.15369v2, Eq. 4, second term.
    """
    return F.l1_loss(z_vae_hat.float(), z_vae.float())


def caption(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy over the tokens that count: sum(nll x mask) / sum(mask), so long captions weigh more.

    logits B L V, targets B L (ids), mask B L (1 or True where a target counts).
    Source: UCSC-VLAA/OpenVision@6c24e45, losses/common.py.
    """
    nll = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    mask = mask.flatten().float()
    return (nll * mask).sum() / mask.sum().clamp_min(1)


def _log_sums(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    logits = rows @ columns.T  # c B
    return logits.logsumexp(dim=1), logits.logsumexp(dim=0)


def contrastive(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, *, chunk_size: int | None = None
) -> Tensor:
    """Symmetric InfoNCE: the mean of image-to-text and text-to-image cross entropy; same index = positive.

    image_features, text_features B D (normalised here); logit_scale: the temperature's inverse (not its
    logarithm). With `chunk_size`, similarities are computed and recomputed in blocks of so many rows:
    memory grows with chunk_size x B instead of B x B; value and gradient stay those of the plain form.
    Source: arXiv:2601.15369v2, Eq. 5; UCSC-VLAA/OpenVision@6c24e45 (no clamp on the scale, no smoothing).
    """
    with torch.autocast(image_features.device.type, enabled=False):  # bf16 keeps similarities to 0.05 only
        image_features = F.normalize(image_features.float(), dim=-1)
        text_features = F.normalize(text_features.float(), dim=-1)
        rows = image_features * logit_scale.float()
        chunks = rows.split(chunk_size or len(rows))
        if len(chunks) == 1:
            image_to_text, text_to_image = _log_sums(rows, text_features)
        else:
            sums = [checkpoint(_log_sums, chunk, text_features, use_reentrant=False) for chunk in chunks]
            image_to_text = torch.cat([row_sum for row_sum, _ in sums])
            text_to_image = torch.stack([column_sum for _, column_sum in sums]).logsumexp(dim=0)
        positives = (rows * text_features).sum(dim=-1)
        return (0.5 * (image_to_text + text_to_image) - positives).mean()
