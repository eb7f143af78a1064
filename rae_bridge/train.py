"""Stage: train a diffusion transformer by flow matching on the tokens of a frozen encoder, kept or live.

`python -m rae_bridge.train <config.yaml> <out_dir>` (several processes: `accelerate launch -m
rae_bridge.train ...`) writes out_dir/weights (`rae_bridge.weights_folder` says what is in it), and
out_dir/kept/step_NNNNNNNN of the same kind after each of `keep_steps`. out_dir/latent_stats.pt keeps the
statistics for a run that goes on.

Source: RAE (arXiv:2510.11690, Sec. 4-5; src/train.py at a4d18c4). Deviations: labels are dropped, and times
and noise drawn, from generators that depend on seed, step and row alone: a run repeats, resumes to the
last bit and is the same on any number of processes; the average of the weights has a ramp; accumulation adds
up gradients; what is compiled is the loss, so that the average is judged by its own weights.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from encoder.runtime import checkpoint
from encoder.runtime.ahead import made_ahead
from encoder.runtime.config import ROOT
from encoder.runtime.device import Device, set_tf32, settled_precision
from encoder.runtime.ranks import Ranks, no_sync
from encoder.runtime.stage import main
from encoder.runtime.trackers import Journal
from encoder.training.finite import FiniteSteps
from encoder.training.optim import MuonWithAdamW, average_weights, step_if_finite
from rae_bridge.blocks import CLASS_INIT_STD
from rae_bridge.config import DiTOptimConfig, TrainDiTConfig
from rae_bridge.dit import DiT, build_dit
from rae_bridge.flow import training_shift
from rae_bridge.flow_batch import FlowBatch, batch_loss, draw_batch
from rae_bridge.held_out import Tokens, check_classes, losses_at_the_end, open_held_out
from rae_bridge.latents import LatentStatistics, open_latents
from rae_bridge.live import LiveTokens
from rae_bridge.online import Watch
from rae_bridge.pictures_config import PicturesConfig
from rae_bridge.run import Run, Start, kept_statistics
from rae_bridge.shapes import DiTConfig
from rae_bridge.weights_folder import STATISTICS_FILE, WEIGHTS


def accumulate_gradients(
    model: nn.Module,
    batch: FlowBatch,
    config: TrainDiTConfig,
    loss_of: Callable[[nn.Module, FlowBatch, str], Tensor] = batch_loss,
) -> Tensor:
    """Add the gradient of the batch's mean loss, in micro-batches; returns that loss, on its device."""
    parts = batch.split(config.micro_batch_size or len(batch.t))
    total = torch.zeros((), device=batch.t.device)
    for i, part in enumerate(parts):
        with no_sync(model, is_last=i == len(parts) - 1):
            loss = loss_of(model, part, config.precision) * (len(part.t) / len(batch.t))
            loss.backward()
        total = total + loss.detach()
    return total


def build_optimiser(model: nn.Module, config: DiTOptimConfig) -> torch.optim.Optimizer | MuonWithAdamW:
    """AdamW, or Muon on the matrices of the blocks' attention and MLP with AdamW on everything else.

    The modulation layers stay with AdamW: they start at zero and are wide, so orthogonalising them costs more
    than all others together.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if config.muon_lr is None:
        settings = {"betas": config.betas, "weight_decay": config.weight_decay, "fused": True}
        return torch.optim.AdamW([parameter for _, parameter in named], lr=config.lr, **settings)
    is_matrix = {
        name: parameter.ndim == 2 and ".blocks." in f".{name}" and "adaLN" not in name
        for name, parameter in named
    }
    matrices = [parameter for name, parameter in named if is_matrix[name]]
    rest = [parameter for name, parameter in named if not is_matrix[name]]
    return MuonWithAdamW(matrices, rest, config, config.muon_lr)


def learning_rate(config: DiTOptimConfig, step: int) -> float:
    """The rate of a step (0 is the first): linear warm-up, constant, linear fall, constant."""
    rate = config.lr
    if config.decay_steps is not None:
        first, last = config.decay_steps
        fallen = min(1.0, max(0.0, (step - first) / (last - first)))
        rate += fallen * (config.final_lr - config.lr)
    return rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer | MuonWithAdamW,
    batch: FlowBatch,
    config: TrainDiTConfig,
    step: int,
    loss_of: Callable[[nn.Module, FlowBatch, str], Tensor] = batch_loss,
    finite: FiniteSteps | None = None,
) -> tuple[Tensor, Tensor]:
    """One update; returns this process's loss and the gradient's norm before clipping, on their device.

    A step whose loss or gradient is not finite leaves the weights as they are.

    Raises:
        ValueError: it was such a step; with `finite`: the step before was one, and no more may be left out.
    """
    watch = finite or FiniteSteps()
    loss = accumulate_gradients(model, batch, config, loss_of)
    watch.settle()  # of the step before: a GPU has this one to compute meanwhile
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm or math.inf)
    factor = learning_rate(config.optim, step) / config.optim.lr
    for group in optimiser.param_groups:
        group["lr"] = group.get("peak_lr", config.optim.lr) * factor
    step_if_finite(optimiser, watch.look(step, loss, grad_norm))
    optimiser.zero_grad(set_to_none=True)
    if finite is None:
        watch.settle()
    return loss, grad_norm


def shape_of(config: TrainDiTConfig, cache: Tokens) -> DiTConfig:
    """The model's shape for these tokens."""
    return DiTConfig(
        **dataclasses.asdict(config.size),
        input_size=cache.side,
        in_channels=cache.width,
        num_classes=config.num_classes,
        class_dropout_prob=config.class_dropout_prob,
        prediction=config.prediction,
    )


def build_model(config: TrainDiTConfig, cache: Tokens) -> DiT:
    """A new model for these tokens, its weights drawn from the seed."""
    torch.manual_seed(config.seed)
    model = build_dit(shape_of(config, cache))
    with torch.no_grad():
        model.y_embedder.embedding_table.weight.mul_(config.class_init_std / CLASS_INIT_STD)
    return model


def choose_statistics(config: TrainDiTConfig, cache: Tokens, start: Start | None) -> LatentStatistics:
    """Those of the file that the config names, of what the training begins from, or exact ones."""
    if config.statistics is not None:
        return LatentStatistics.load(ROOT / config.statistics)
    return cache.statistics() if start is None else start.weights.statistics


class OnTokens(Protocol):
    """What a training on tokens, of a model or of a student, says of them and of its batches."""

    tokens: str | None
    pictures: PicturesConfig | None
    batch_size: int
    device: Device
    seed: int


def open_tokens(config: OnTokens, device: str) -> Tokens:
    """The tokens to train on: kept in a folder, or encoded as they are needed."""
    if config.pictures is not None:
        return LiveTokens.open(config.pictures, device)
    return open_latents(ROOT / config.tokens)


def load_rows(cache: Tokens, config: OnTokens, part: slice, step: int) -> tuple[Tensor, Tensor]:
    """Latents (B D h w, not normalised) and classes (B,) of rows of a step, some mirrored if they can be:
    kept ones on the CPU, live ones where the encoder is.
    """
    indices = checkpoint.batch_indices(config.seed, step, config.batch_size, len(cache.labels))[part]
    draw = checkpoint.step_generator(config.seed, step, "flip")
    is_flipped = (torch.rand(config.batch_size, generator=draw) < 0.5)[part] if cache.has_flips else None
    rows = cache.latents(indices, is_flipped), cache.labels[indices]
    is_pinned = rows[0].is_cpu and config.device != "cpu" and torch.cuda.is_available()  # copied meanwhile
    return (rows[0].pin_memory(), rows[1].pin_memory()) if is_pinned else rows


def train(config: TrainDiTConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring."""
    torch.set_flush_denormal(True)  # denormal numbers slow a CPU many times over

    # ---- data
    ranks = Ranks.start(config.device)
    set_tf32(ranks.device, config.tf32)
    part = ranks.part(config.batch_size)
    cache = open_tokens(config, ranks.device)
    check_classes(config.num_classes, cache)
    held_out = open_held_out(config, cache)
    kept = kept_statistics(out_dir)
    start = None if kept is not None else Start.open(config, shape_of(config, cache), cache.origin)
    journal = Journal(out_dir, config.trackers, config, is_main=ranks.is_main)
    statistics = kept or choose_statistics(config, cache, start)
    if kept is None and ranks.is_main:
        statistics.save(out_dir / STATISTICS_FILE)
    shift = training_shift(cache.width * cache.side**2) if config.shift is None else config.shift
    normalise = statistics.to(ranks.device).normalise

    # ---- model, optimiser
    model = build_model(config, cache).to(ranks.device).train()
    latents = {"statistics": statistics, "shift": shift, "tokens": cache.origin}
    run = Run.begin(config, out_dir, model, build_optimiser(model, config.optim), **latents)
    watch = Watch(config, run, held_out, ranks)
    loss_of = torch.compile(batch_loss) if config.compile else batch_loss

    # ---- resume
    first_step, seconds = run.resume(start)
    run.check_keep_steps(first_step)
    started = time.monotonic() - seconds
    model = ranks.wrap(model)

    # ---- loop
    steps, scores = range(first_step, config.num_steps), {}
    rows = made_ahead(functools.partial(load_rows, cache, config, part), steps)
    for step, (latents, y) in zip(steps, rows, strict=True):
        latents, y = (tensor.to(ranks.device, non_blocking=True) for tensor in (latents, y))
        batch = draw_batch(normalise(latents), y, config, shift, step, part)
        loss, grad_norm = train_step(model, run.optimiser, batch, config, step, loss_of, run.finite)
        average_weights(run.averaged.parameters(), run.model.parameters(), config.average_decay, step)
        done = step + 1
        is_last = done == config.num_steps
        if done % config.log_steps == 0 or is_last:
            scalars = {"loss": ranks.mean(loss).item(), "grad_norm": grad_norm.item()}
            scalars["lr"] = learning_rate(config.optim, step)
            rate = (done - first_step) * config.batch_size / (time.monotonic() - started - seconds)
            journal.write(done, config.num_steps, **scalars, samples_per_second=rate)
        is_saved, is_kept = done % config.checkpoint_steps == 0 or is_last, done in config.keep_steps
        if is_saved or is_kept or watch.is_due(done):
            run.finite.settle()  # nothing is saved or shown before the last step is known to be good
        if watch.is_due(done):
            scores = watch.tell(done, journal)
        if is_kept and ranks.is_main:
            run.write_weights(done)
        if is_saved and ranks.is_main:
            run.save(done, time.monotonic() - started)

    # ---- save
    seconds = time.monotonic() - started
    if ranks.is_main:
        run.write_weights(config.num_steps, out_dir / WEIGHTS)
    ranks.wait()
    journal.close()
    scores = {name: value for name, value in scores.items() if name == "frechet_distance"}
    return (
        scores
        | losses_at_the_end(run.averaged, cache, held_out, statistics, config, shift)
        | {
            "num_samples": config.num_steps * config.batch_size,
            "num_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "shift": shift,
            "precision": settled_precision(config.precision, ranks.device),
            "training_seconds": round(seconds, 1),
        }
    )


if __name__ == "__main__":
    main(TrainDiTConfig, train)
