"""The loss of a training's averaged weights: on tokens held out from it, and by the class that it is told."""

import torch
from torch import Tensor, nn

from encoder.runtime.config import ROOT
from rae_bridge.class_losses import as_metrics, class_losses
from rae_bridge.codec import check_tokens_alike
from rae_bridge.config import TrainDiTConfig
from rae_bridge.dit import DiT
from rae_bridge.flow_batch import FlowBatch, batch_loss, draw_batch, noise_of_step
from rae_bridge.latents import CachedLatents, LatentStatistics, open_latents
from rae_bridge.live import LiveTokens

NUM_EVALUATED = 1024  # pictures whose loss is reported
NUM_TOLD = 256  # of them, those whose loss is also measured with a wrong class and with none
Tokens = CachedLatents | LiveTokens


def open_held_out(config: TrainDiTConfig, cache: Tokens) -> Tokens:
    """The tokens that the losses at the end are of: `held_out`, or those of the training.

    Raises:
        ValueError: they are another encoder's, or have classes that the model has not.
    """
    if config.held_out is None:
        return cache
    held_out = open_latents(ROOT / config.held_out)
    check_tokens_alike(f"held_out {config.held_out}", held_out.origin, "this training", cache.origin)
    check_classes(config.num_classes, held_out)
    return held_out


def check_classes(num_classes: int, tokens: Tokens) -> None:
    """Raises: ValueError if tokens have a class that a model of so many has not."""
    if (largest := int(tokens.labels.max())) >= num_classes:
        raise ValueError(f"num_classes {num_classes}: the tokens have a label {largest}")


def first_of(tokens: Tokens, num: int, statistics: LatentStatistics, device: str) -> tuple[Tensor, Tensor]:
    """The first normalised latents (B D h w) and their classes (B,)."""
    rows = torch.arange(min(num, len(tokens.labels)))
    return statistics.normalise(tokens.latents(rows).to(device)), tokens.labels[rows].to(device)


@torch.no_grad()
def evaluate(model: nn.Module, latents: Tensor, y: Tensor, config: TrainDiTConfig, shift: float) -> float:
    """Mean loss over the given latents with labels kept, at the same times and noise whenever it is asked."""
    batch = draw_batch(latents, y, config, shift, step=-1)
    total = 0.0
    for part in FlowBatch(batch.x_t, batch.t, y, batch.target).split(256):
        total += batch_loss(model, part, config.precision).item() * len(part.t)
    return total / len(y)


def losses_at_the_end(
    model: DiT,
    cache: Tokens,
    held_out: Tokens,
    statistics: LatentStatistics,
    config: TrainDiTConfig,
    shift: float,
) -> dict:
    """`loss` of the first training tokens, `held_out_loss` where there are others, `class_losses`, and these
    as `metrics`."""
    of = {"statistics": statistics, "device": str(next(model.parameters()).device)}
    losses = {"loss": evaluate(model, *first_of(cache, NUM_EVALUATED, **of), config, shift)}
    if config.held_out is not None:
        losses["held_out_loss"] = evaluate(model, *first_of(held_out, NUM_EVALUATED, **of), config, shift)
    latents, y = first_of(held_out, NUM_TOLD, **of)
    noise = noise_of_step(config.seed, -1, range(len(y)), latents)
    told = {"has_null": model.config.has_null_class, "precision": config.precision}
    by_class = class_losses(model, latents, y, noise, **told)
    return losses | {"class_losses": by_class, "metrics": as_metrics(by_class, len(y))}
