"""transformers' Trainer as both stages use it: samples in a fixed order, the stage's progress and its totals
over every attempt, the frozen tower kept out of DeepSpeed's sight."""

import math
import time
from pathlib import Path

import torch
import torch._dynamo
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback

from encoder.runtime.stage import progress, write_json
from encoder.runtime.trackers import Journal
from llava_bridge.config import LlavaConfig
from llava_bridge.engine import COMPLETE, mend_universal
from llava_bridge.over_tokens import OverTokens


class OrderedTrainer(Trainer):
    """A Trainer that visits the samples in an order fixed before the run, and resumes from a checkpoint of
    another number of processes (`is_reshaped`) as from one of its own."""

    def __init__(self, *args, order: list[int], config: LlavaConfig, is_reshaped: bool, **kwargs):
        self.order = order
        self.config = config
        self.is_reshaped = is_reshaped
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = config.loss_average == "tokens"

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return _FixedOrder(self.order)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; the projector in a group of its own where the config gives it another rate."""
        if self.optimizer is None:
            groups = self._adamw(model).param_groups
            self.weight_decays = [group["weight_decay"] for group in groups if group["params"]]
            self.peak_rates = [group["lr"] for group in groups if group["params"]]
        return self.optimizer

    def _adamw(self, model: nn.Module | None) -> torch.optim.Optimizer:
        if self.config.projector_learning_rate is None:
            return super().create_optimizer(model)
        rest, projector = [], []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                (projector if "multi_modal_projector" in name else rest).append(parameter)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        groups = [{"params": rest}, {"params": projector, "lr": self.config.projector_learning_rate}]
        self.optimizer = kind(groups, **options, weight_decay=self.args.weight_decay)
        return self.optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.is_reshaped:
            mend_universal(self.optimizer, self.lr_scheduler.get_last_lr(), self.weight_decays)
        if checkpoint is not None:
            self._take_configured_rates()

    def _take_configured_rates(self) -> None:
        """A run may go on with other rates than its checkpoint's, whose schedule would keep the old ones."""
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if scheduler.base_lrs == self.peak_rates:
            return
        scheduler.base_lrs = list(self.peak_rates)
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        scheduler._last_lr = [rate * factor for rate, factor in zip(self.peak_rates, factors, strict=True)]
        for group, peak, rate in zip(
            self.optimizer.param_groups, self.peak_rates, scheduler._last_lr, strict=True
        ):
            group |= {"initial_lr": peak, "lr": rate}


class _FixedOrder(Sampler):
    def __init__(self, order: list[int]):
        self.order = order

    def __iter__(self):
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


class StageReport(TrainerCallback):
    """Writes the stage's progress, marks complete checkpoints, and stops on a loss that is not finite."""

    def __init__(
        self, journal: Journal, batch_size: int, num_processes: int, seconds_before: float, data: dict
    ):
        self.journal = journal
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.seconds_before = seconds_before  # of the attempts that this one goes on from
        self.data = data  # as `order.describe_steps` says it
        self.started = time.monotonic()

    def seconds(self) -> float:
        """Seconds of training, all attempts together."""
        return self.seconds_before + time.monotonic() - self.started

    def on_train_begin(self, args, state, control, **kwargs):
        self.first_step, self.started = state.global_step, time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True  # so that the log covers every step of a resumed run
        if state.is_world_process_zero:
            progress(self.journal.out_dir, state.global_step, state.max_steps)
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs or not state.is_world_process_zero:
            return
        grad_norm = float(logs["grad_norm"])
        if not math.isfinite(logs["loss"]) or not math.isfinite(grad_norm):
            raise ValueError(
                f"the loss is {logs['loss']}, its gradient's norm {grad_norm} at step {state.global_step}; "
                "start again in another folder with a lower learning_rate"
            )
        rate = (state.global_step - self.first_step) * self.batch_size / (time.monotonic() - self.started)
        self.journal.write(
            state.global_step,
            state.max_steps,
            loss=logs["loss"],
            grad_norm=grad_norm,
            learning_rate=logs["learning_rate"],
            samples_per_second=rate,
        )

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            mark = {"processes": self.num_processes, "seconds": round(self.seconds(), 2), "data": self.data}
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE, mark)


def mean_loss(log_history: list[dict]) -> float:
    """The loss averaged over every step, from the means that were logged, of earlier attempts too."""
    total, last_step = 0.0, 0
    for row in log_history:
        if "loss" in row:
            total += row["loss"] * (row["step"] - last_step)
            last_step = row["step"]
    return total / last_step


def compile_blocks(model: OverTokens) -> None:
    """Compile the language model's blocks in place, for each shape of a batch anew; names stay the same."""
    torch._dynamo.config.recompile_limit = 64  # else the ninth length would run uncompiled
    for block in model.model.language_model.layers:
        block.compile(dynamic=False)


def describe_tower(config: LlavaConfig, model: OverTokens) -> dict:
    """What the result says of the frozen encoder."""
    tower = model.config.vision_config
    canvases = getattr(model.config, "image_grid_pinpoints", None)  # (height, width) px, in order
    return {
        "source": config.encoder,
        "features": config.features,
        "num_tokens": tower.num_tokens,
        "num_encoder_tokens": tower.num_encoder_tokens or tower.num_tokens,  # resized where they differ
        "fingerprint": tower.fingerprint,
        "cached_tokens": config.tokens is not None,
        "aspect": config.aspect,
        "framework": config.framework,
        **({"views": config.views, "canvases": canvases} if canvases else {}),
    }


def hide_tower(model: OverTokens) -> nn.Module:
    """Take the tower out of the model's list of modules, but not of its reach: DeepSpeed rounds, splits and
    saves whatever it sees there, frozen or not."""
    tower = model.model.vision_tower
    del model.model._modules["vision_tower"]
    object.__setattr__(model.model, "vision_tower", tower)
    return tower


def show_tower(model: OverTokens) -> None:
    """Undo `hide_tower`."""
    tower = model.model.__dict__.pop("vision_tower")
    model.model.vision_tower = tower.to("cpu")
