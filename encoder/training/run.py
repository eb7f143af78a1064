"""A training on its way: what its checkpoint holds, and how it goes on from one."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from encoder.data.batch import Batch
from encoder.data.feed import Feed
from encoder.models.clip import Clip
from encoder.models.openvision3 import OpenVision3
from encoder.models.vae import FrozenVAE
from encoder.runtime import checkpoint
from encoder.runtime.sharding import load_whole, whole_optimiser, whole_weights
from encoder.training.finite import FiniteSteps
from encoder.training.optim import apply_gradients, average_weights
from encoder.training.options import TrainConfig
from encoder.training.step import with_latents

CHECKPOINT = "checkpoint.pt"
SNAPSHOTS = "snapshots"  # folder of the towers as they were after config.snapshot_steps


@dataclass(slots=True)
class Run:
    """What a checkpoint holds: towers, optimiser, averaged weights, every process's generators, and the place
    in the data. The schedule is a function of the step."""

    config: TrainConfig
    path: Path
    model: OpenVision3 | Clip
    optimiser: torch.optim.Optimizer
    averaged: list[Tensor]  # empty without ema_decay
    feed: Feed
    num_pixels: int  # rows of a micro-batch that are decoded
    accelerator: Accelerator
    finite: FiniteSteps = field(init=False)

    def __post_init__(self):
        self.finite = FiniteSteps(self.config.skip_non_finite)

    def fetch(self, step: int, vae: FrozenVAE | None) -> list[Batch]:
        """This process's micro-batches of a step on its device, with latents."""
        device = self.accelerator.device
        micro_batches = (each.to(device) for each in self.feed.micro_batches(step))
        return [with_latents(each, self.config, vae, self.num_pixels) for each in micro_batches]

    def apply_gradients(self, loss: Tensor, step: int, probe: Collection[nn.Parameter]) -> Tensor:
        """Take the step on the device if it is finite (`settle` tells); the norm of its gradient."""
        config = self.config
        return apply_gradients(self.optimiser, loss, config.optim, step, config.num_steps, self.finite, probe)

    def settle(self) -> None:
        """Find out whether the last step was finite; if so, it joins the averaged weights.

        Raises: ValueError if it was not, and no more such steps may be left out.
        """
        step = self.finite.settle()
        if step is not None and self.averaged:
            average_weights(self.averaged, self.model.parameters(), self.config.ema_decay, step)

    def save(self, step: int, seconds: float) -> None:
        """Write the checkpoint, atomically, by one process for all."""
        if self.config.sharding == "none":
            towers, optimiser = self.model.state_dict(), self.optimiser.state_dict()
        else:
            towers, optimiser = whole_weights(self.model), whole_optimiser(self.model, self.optimiser)
        places: dict[str, str] = {}
        for place in gather_object([self.feed.state()]):
            places |= place
        state = {
            "step": step, "seconds": seconds, "model": towers, "optimiser": optimiser,
            "averaged": self.averaged, "generators": gather_object([_generator_states()]), "data": places,
            "skipped": self.finite.skipped,
        }  # fmt: skip
        if self.accelerator.is_main_process:
            checkpoint.save(self.path, state, keep=self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def keep_towers(self, step: int) -> None:
        """Write the towers alone, as they are after `step` steps, into the folder of snapshots."""
        towers = self.model.state_dict() if self.config.sharding == "none" else whole_weights(self.model)
        if self.accelerator.is_main_process:
            folder = self.path.parent / SNAPSHOTS
            folder.mkdir(exist_ok=True)
            checkpoint.save(folder / f"step_{step:08}.pt", {"step": step, "model": towers})

    def resume(self) -> tuple[int, float]:
        """Go on from the checkpoint, if there is one: the step to do next, and the seconds spent so far."""
        newest = checkpoint.newest(self.path)
        if newest is None:
            return 0, 0.0
        state = checkpoint.load(newest)
        if self.config.sharding == "none":
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        else:
            load_whole(self.model, self.optimiser, state["model"], state["optimiser"])
        for averaged, saved in zip(self.averaged, state.get("averaged", []), strict=True):
            averaged.copy_(saved)
        self.finite.skipped = state.get("skipped", 0)
        self.feed.load_state(state.get("data", {}))
        generators = state.get("generators", [])
        if self.accelerator.process_index < len(generators):
            _load_generator_states(generators[self.accelerator.process_index])
        return state["step"], state["seconds"]

    def whole_model(self) -> OpenVision3 | Clip:
        """The towers with all their weights in this process: themselves, or a copy of sharded ones."""
        if self.config.sharding == "none":
            return self.model
        model = OpenVision3(self.config.openvision3) if self.config.openvision3 else Clip(self.config.clip)
        model.load_state_dict(whole_weights(self.model))
        return model.to(self.accelerator.device)


def _generator_states() -> dict[str, Any]:
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), place, has_gauss, gauss),
    }


def _load_generator_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
