"""The terms of OpenVision 3's objective: pure functions, reduced in float32. Weights meet in
`encoder.training.objective`.

Pixels come in [0, 1]; the paper leaves their range open and we measure pixel-l1 in [-1, 1], i.e. twice the
difference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


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


def caption(
    logits: Tensor, targets: Tensor, mask: Tensor, num_tokens: Tensor | float | None = None
) -> Tensor:
    """Cross entropy over the tokens that count: sum(nll x mask) / sum(mask), so long captions weigh more.

    logits B L V, targets B L (ids), mask B L (1 or True where a target counts). `num_tokens` divides instead
    of sum(mask): for one of several equal parts of a batch, the mean of the parts' counts, so that the mean
    of the parts' losses is the whole batch's.
    Source: UCSC-VLAA/OpenVision@6c24e45, losses/common.py.
    """
    nll = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    mask = mask.flatten().float()
    return (nll * mask).sum() / (mask.sum().clamp_min(1) if num_tokens is None else num_tokens)


def _log_sums(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    logits = rows @ columns.T  # c B
    return logits.logsumexp(dim=1), logits.logsumexp(dim=0)


def _log_sum(rows: Tensor, candidates: Tensor) -> Tensor:
    return (rows @ candidates.T).logsumexp(dim=1)


def _log_sum_over(rows: Tensor, candidates: Tensor, chunk_size: int | None) -> Tensor:
    chunks = candidates.split(chunk_size or len(candidates))
    if len(chunks) == 1:
        return _log_sum(rows, candidates)
    parts = [checkpoint(_log_sum, rows, chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(parts).logsumexp(dim=0)


def contrastive(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    chunk_size: int | None = None,
    all_image_features: Tensor | None = None,
    all_text_features: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE: the mean of image-to-text and text-to-image cross entropy; same index = positive.

    image_features, text_features B D (normalised here); logit_scale: the temperature's inverse (not its
    logarithm). With `chunk_size`, similarities are computed and recomputed in blocks: memory grows with
    chunk_size x B instead of B x B; value and gradient stay those of the plain form.

    `all_image_features`, `all_text_features` (G D): the candidates, for a process that holds B of G rows (its
    own among them); blocks are then of chunk_size candidates. The mean of this over processes with equally
    many rows is the plain form's value for all G rows, and so are the gradients if gathering passes them on
    (`encoder.runtime.distributed.gather_rows`).
    Source: arXiv:2601.15369v2, Eq. 5; UCSC-VLAA/OpenVision@6c24e45 (no clamp on the scale, no smoothing).
    """
    with torch.autocast(image_features.device.type, enabled=False):  # bf16 keeps similarities to 0.05 only
        image_features = F.normalize(image_features.float(), dim=-1)
        text_features = F.normalize(text_features.float(), dim=-1)
        rows = image_features * logit_scale.float()
        positives = (rows * text_features).sum(dim=-1)
        if all_image_features is not None:
            all_images = F.normalize(all_image_features.float(), dim=-1)
            all_texts = F.normalize(all_text_features.float(), dim=-1)
            image_to_text = _log_sum_over(rows, all_texts, chunk_size)
            text_to_image = _log_sum_over(text_features * logit_scale.float(), all_images, chunk_size)
            return (0.5 * (image_to_text + text_to_image) - positives).mean()
        chunks = rows.split(chunk_size or len(rows))
        if len(chunks) == 1:
            image_to_text, text_to_image = _log_sums(rows, text_features)
        else:
            sums = [checkpoint(_log_sums, chunk, text_features, use_reentrant=False) for chunk in chunks]
            image_to_text = torch.cat([row_sum for row_sum, _ in sums])
            text_to_image = torch.stack([column_sum for _, column_sum in sums]).logsumexp(dim=0)
        return (0.5 * (image_to_text + text_to_image) - positives).mean()
