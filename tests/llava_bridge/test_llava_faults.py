"""Faults in a stage of LLaVA: a loss or a gradient that is no number stops it, and its checkpoint stays."""

import math
from dataclasses import replace

import pytest
import torch

import llava_bridge.train as stage
from encoder.runtime.checkpoint import load_tensors
from llava_bridge.config import LlavaConfig
from llava_bridge.trainer import OrderedTrainer


@pytest.fixture
def align(align) -> LlavaConfig:
    return replace(align, log_steps=50, checkpoint_steps=2, deepspeed=None)


def test_a_loss_that_becomes_nan_stops_the_stage_and_the_next_run_goes_on(align, tmp_path, monkeypatch):
    true_loss = OrderedTrainer.compute_loss

    def poisoned(self, *arguments, **named):
        factor = math.nan if self.state.global_step == 3 else 1.0
        return true_loss(self, *arguments, **named) * factor

    with monkeypatch.context() as patch:
        patch.setattr(OrderedTrainer, "compute_loss", poisoned)
        with pytest.raises(ValueError, match=r"the loss is nan.* at step 4; .* lower learning_rate"):
            stage.train(align, tmp_path)
    kept = stage.last_checkpoint(tmp_path / "checkpoints")
    assert kept.name == "checkpoint-2"  # log_steps is 50: a save asks for the loss first
    tensors = load_tensors(kept / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in tensors.values())
    assert math.isfinite(stage.train(align, tmp_path)["training_loss"])
