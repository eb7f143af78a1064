"""What the class is worth to a model: its loss at several times with the true class, a wrong one, and none.

A model that ignores its class has the same loss with each; no Frechet distance would show that.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from encoder.training.optim import autocast
from rae_bridge.flow import interpolate, velocity_target

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.999)
_BATCH = 256


@torch.no_grad()
def class_losses(
    model: nn.Module, latents: Tensor, y: Tensor, noise: Tensor, *, has_null: bool, precision: str = "fp32"
) -> dict[str, dict[str, float]]:
    """Mean squared error of the velocity at each of `TIMES`, by the class that the model is told: `true`,
    `wrong` (the next one; where there are two), `null` (where there is one).

    latents, noise B D h w; y (B,); `model.num_classes` classes. All losses are of the same latents and noise.
    """
    told = {"true": y}
    if model.num_classes > 1:
        told["wrong"] = (y + 1) % model.num_classes
    if has_null:
        told["null"] = torch.full_like(y, model.num_classes)
    target, losses = velocity_target(latents, noise), {}
    for time in TIMES:
        t = torch.full((len(y),), time, dtype=latents.dtype, device=latents.device)
        x_t = interpolate(latents, noise, t)
        losses[f"{time:g}"] = {
            name: _mean_error(model, x_t, t, label, target, precision) for name, label in told.items()
        }
    return losses


def as_metrics(losses: Mapping[str, Mapping[str, float]], num_samples: int) -> dict[str, dict[str, Any]]:
    """Each loss as a number for the tables: `DiT loss/t=0.5/true`. Less is better of the true class alone: a
    wrong one should cost something."""
    return {
        f"DiT loss/t={time}/{told}": {
            "value": value,
            "unit": "",
            "higher_is_better": False if told == "true" else None,
            "num_samples": num_samples,
        }
        for time, at in losses.items()
        for told, value in at.items()
    }


def _mean_error(model: nn.Module, x_t: Tensor, t: Tensor, y: Tensor, target: Tensor, precision: str) -> float:
    total = 0.0
    for part in zip(*(each.split(_BATCH) for each in (x_t, t, y, target)), strict=True):
        *asked, wanted = part
        with autocast(precision, x_t.device.type):
            velocity = model(*asked)
        total += float((velocity.double() - wanted.double()).square().sum())
    return total / target.numel()
