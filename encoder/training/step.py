"""One training step: the terms of a batch, and their gradients over micro-batches and processes.

A batch is cut into equal micro-batches, each computed by one process. Noise is drawn from (seed, step, number
of the micro-batch), the caption loss is divided by the whole batch's tokens, and the contrastive loss has all
rows of the batch as candidates, so that k micro-batches give the gradient of one big batch, wherever they are
computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from encoder.data.batch import Batch
from encoder.models.clip import Clip, normalise
from encoder.models.openvision3 import OpenVision3
from encoder.models.perceptual import PerceptualLoss
from encoder.models.vae import FrozenVAE
from encoder.runtime import checkpoint
from encoder.runtime.distributed import sum_over_processes
from encoder.training.objective import (
    Contrast,
    clip_terms,
    global_contrast,
    objective,
    reconstruction_terms,
    text_features,
    understanding_terms,
)
from encoder.training.optim import autocast
from encoder.training.options import TrainConfig

THE_ONLY_ONE = (0, 1)  # number of a micro-batch, of how many


def train_step(
    model: OpenVision3 | Clip,
    batch: Batch,
    config: TrainConfig,
    step: int,
    vae: FrozenVAE | None = None,
    perceptual: PerceptualLoss | None = None,
    *,
    micro_batch: tuple[int, int] = THE_ONLY_ONE,
    contrast: Contrast | None = None,
    num_tokens: Tensor | None = None,
) -> dict[str, Tensor]:
    """The loss, its terms and the deviation of z_u on one micro-batch (its number, of how many) of a batch.

    `contrast` stands in for the global contrastive loss; `num_tokens`: see `losses.caption`.
    """
    contrast = contrast or global_contrast(config.contrastive_chunk)
    device = batch.caption_ids.device
    with autocast(config.precision, device.type):
        if isinstance(model, Clip):
            z_u, terms = clip_terms(model, batch, contrast)
            loss = terms["contrastive"]
        else:
            output = model.encoder(batch.z_vae)
            z_u, pooled = output.z_u, output.pooled
            name = "noise" if micro_batch == THE_ONLY_ONE else "noise/{} of {}".format(*micro_batch)
            generator = checkpoint.step_generator(config.seed, step, name, device)
            active = perceptual if step >= config.perceptual_from * config.num_steps else None
            understood, decoded = z_u, z_u
            if "understanding" not in config.branches:
                understood = z_u.detach()
                pooled = model.encoder.pool(understood)
            if "reconstruction" not in config.branches:
                decoded = z_u.detach()
            tau, crop = config.objective.tau, config.pixel_crop
            terms = {}
            if not config.decoder_only:
                terms |= understanding_terms(model, understood, pooled, batch, contrast, num_tokens)
            terms |= reconstruction_terms(model, decoded, batch, vae, active, tau, generator, crop)
            if config.objective.pixel_range == "unit":
                terms["pixel_l1"] = terms["pixel_l1"] / 2
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


class Step(nn.Module):
    """The towers and what a step needs beside them, as one module whose forward is the step: what DDP and
    FSDP2 wrap. The frozen networks are not its children, so they are neither sharded nor saved."""

    def __init__(
        self,
        model: OpenVision3 | Clip,
        config: TrainConfig,
        vae: FrozenVAE | None,
        perceptual: PerceptualLoss | None,
    ):
        super().__init__()
        self.model, self.config = model, config
        self.frozen = (vae, perceptual)

    def forward(
        self,
        batch: Batch,
        step: int,
        micro_batch: tuple[int, int],
        contrast: Contrast | None = None,
        num_tokens: Tensor | None = None,
        only_features: bool = False,
    ) -> dict[str, Tensor] | tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """The terms of `train_step`; or, with `only_features`, pooled, texts' features and the scale."""
        if not only_features:
            return train_step(
                self.model, batch, self.config, step, *self.frozen,
                micro_batch=micro_batch, contrast=contrast, num_tokens=num_tokens,
            )  # fmt: skip
        with autocast(self.config.precision, batch.caption_ids.device.type):
            is_clip = isinstance(self.model, Clip)
            inputs = normalise(batch.pixels) if is_clip else batch.z_vae
            pooled = self.model.encoder(inputs).pooled
            return pooled, text_features(self.model.text, batch), self.model.logit_scale.exp()


def with_latents(batch: Batch, config: TrainConfig, vae: FrozenVAE | None, num_pixels: int) -> Batch:
    """The batch with z_vae where it lacks them, and pixels of no more rows than are decoded."""
    if config.clip is not None:
        return batch
    z_vae = batch.z_vae
    if z_vae is None:
        with torch.no_grad(), autocast(config.precision, batch.pixels.device.type):
            z_vae = vae.encode(batch.pixels).float()
    return replace(batch, z_vae=z_vae, pixels=batch.pixels[:num_pixels])


def contrast_by_micro_batches(
    module: nn.Module, batches: Sequence[Batch], step: int, whole: Contrast
) -> list[Contrast]:
    """The contrastive term for each of several micro-batches such that their gradients add up to that of all
    rows at once: features of all are computed first without a graph, the loss is differentiated in them, and
    each micro-batch then carries its rows' share along (the price: one more forward pass).

    Source: Gao et al. 2021, arXiv:2101.06983 (GradCache).
    """
    with torch.no_grad():
        features = [module(batch, step, THE_ONLY_ONE, only_features=True) for batch in batches]
    pooled = torch.cat([each for each, _, _ in features]).requires_grad_()
    texts = [torch.cat(passes).requires_grad_() for passes in zip(*(t for _, t, _ in features), strict=True)]
    scale = features[0][2].clone().requires_grad_()
    value = whole(pooled, texts, scale)
    pooled_grad, scale_grad, *text_grads = torch.autograd.grad(value, [pooled, scale, *texts])
    num_micro_batches, value = len(batches), value.detach()

    def contrast_of(index: int) -> Contrast:
        own = pooled_grad.chunk(num_micro_batches)[index]
        own_texts = [grad.chunk(num_micro_batches)[index] for grad in text_grads]

        def contrast(pooled: Tensor, texts: Sequence[Tensor], scale: Tensor) -> Tensor:
            pairs = zip([pooled, *texts], [own, *own_texts], strict=True)
            linear = num_micro_batches * sum((x.float() * grad.float()).sum() for x, grad in pairs)
            linear = linear + (scale * scale_grad).sum()
            return value + linear - linear.detach()

        return contrast

    return [contrast_of(index) for index in range(num_micro_batches)]


def backward(
    module: nn.Module,
    batches: Sequence[Batch],
    config: TrainConfig,
    step: int,
    first: int,
    num_micro_batches: int,
) -> dict[str, Tensor]:
    """Add up the gradients of this process's micro-batches, which are `batches`, the first of them number
    `first` of `num_micro_batches`; returns their mean terms."""
    num_tokens, contrasts = None, [None] * len(batches)
    if num_micro_batches > 1 and config.openvision3 is not None:
        counts = [(batch.caption_ids[:, 1:] != batch.pad_id).sum() for batch in batches]
        num_tokens = sum_over_processes(torch.stack(counts).sum().float()).clamp_min(1) / num_micro_batches
    if len(batches) > 1 and not config.decoder_only:
        contrasts = contrast_by_micro_batches(
            module, batches, step, global_contrast(config.contrastive_chunk)
        )
    totals: dict[str, Tensor] = {}
    for index, (batch, contrast) in enumerate(zip(batches, contrasts, strict=True)):
        with _synchronised(module, index + 1 == len(batches)):
            terms = module(batch, step, (first + index, num_micro_batches), contrast, num_tokens)
            (terms["loss"] / len(batches)).backward()
        for name, value in terms.items():
            totals[name] = totals.get(name, 0) + value.detach() / len(batches)
    return totals


def _synchronised(module: nn.Module, is_last: bool) -> AbstractContextManager:
    """Gradients are reduced over processes with the last micro-batch only."""
    if isinstance(module, DistributedDataParallel) and not is_last:
        return module.no_sync()
    if hasattr(module, "set_requires_gradient_sync"):  # FSDP2
        module.set_requires_gradient_sync(is_last)
    return nullcontext()
