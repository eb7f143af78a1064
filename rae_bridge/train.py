"""Stage: train a diffusion transformer by flow matching on the cached tokens of a frozen encoder.

`python -m rae_bridge.train <config.yaml> <out_dir>` writes out_dir/weights: the averaged model (config.json,
model.safetensors), latent_stats.pt in RAE's format, flow.json with the shift it was trained under, and
tokens.json, which says whose tokens it knows.

Source: RAE (arXiv:2510.11690, Sec. 4-5; src/train.py at a4d18c4). Deviations: labels are dropped, and times
and noise drawn, from generators that depend on seed and step alone, so that a run repeats and resumes to the
last bit; the average of the weights has a ramp; accumulation adds up gradients.
"""

import copy
import dataclasses
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from encoder import checkpoint
from encoder.config import ROOT
from encoder.optim import autocast, average_weights
from encoder.stage import main, progress, write_json
from rae_bridge.codec import TOKENS_FILE
from rae_bridge.config import DiTConfig, DiTOptimConfig, TrainDiTConfig
from rae_bridge.dit import DiT, build_dit
from rae_bridge.flow import flow_loss, interpolate, sample_time, shift_time, training_shift, velocity_target
from rae_bridge.latents import LatentStatistics, TokenCache

NUM_EVALUATED = 1024  # pictures whose loss is reported at the end


@dataclasses.dataclass(frozen=True, slots=True)
class FlowBatch:
    """One training batch: x_t, target B D h w; t, y (B,), some classes replaced by the null class."""

    x_t: Tensor
    t: Tensor
    y: Tensor
    target: Tensor

    def split(self, size: int) -> list["FlowBatch"]:
        """Micro-batches of at most `size` samples."""
        parts = (tensor.split(size) for tensor in (self.x_t, self.t, self.y, self.target))
        return [FlowBatch(*part) for part in zip(*parts, strict=True)]


def draw_batch(latents: Tensor, y: Tensor, config: TrainDiTConfig, shift: float, step: int) -> FlowBatch:
    """Draw times, noise and dropped labels of one step for normalised latents (B D h w) of classes y (B,)."""
    device, size = latents.device, len(latents)
    draw = checkpoint.step_generator(config.seed, step, "time")
    t = shift_time(sample_time(size, draw, distribution=config.time_distribution), shift).to(device)
    is_dropped = torch.rand(size, generator=draw) < config.class_dropout_prob
    seed = checkpoint.step_generator(config.seed, step, "noise").initial_seed()
    noise = torch.randn(latents.shape, generator=torch.Generator(device).manual_seed(seed), device=device)
    y = torch.where(is_dropped.to(device), config.num_classes, y)
    return FlowBatch(interpolate(latents, noise, t), t, y, velocity_target(latents, noise))


def accumulate_gradients(model: nn.Module, batch: FlowBatch, config: TrainDiTConfig) -> float:
    """Add the gradient of the batch's mean loss, in micro-batches; returns that loss."""
    total = 0.0
    for part in batch.split(config.micro_batch_size or len(batch.t)):
        with autocast(config.precision, part.x_t.device.type):
            velocity = model(part.x_t, part.t, part.y)
        loss = flow_loss(velocity, part.target) * (len(part.t) / len(batch.t))
        loss.backward()
        total += loss.item()
    return total


def learning_rate(config: DiTOptimConfig, step: int) -> float:
    """The rate of a step (0 is the first): linear warm-up, constant, linear fall, constant."""
    rate = config.lr
    if config.decay_steps is not None:
        first, last = config.decay_steps
        fallen = min(1.0, max(0.0, (step - first) / (last - first)))
        rate += fallen * (config.final_lr - config.lr)
    return rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def train_step(
    model: nn.Module, optimiser: torch.optim.Optimizer, batch: FlowBatch, config: TrainDiTConfig, step: int
) -> tuple[float, float]:
    """One update; returns the loss and the gradient's norm before clipping.

    Raises:
        ValueError: the loss or its gradient is not finite; the weights are still those before the step.
    """
    loss = accumulate_gradients(model, batch, config)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm or math.inf).item()
    if not math.isfinite(loss + grad_norm):
        raise ValueError(f"loss {loss}, gradient norm {grad_norm} at step {step}; lower optim.lr or use fp32")
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(config.optim, step)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss, grad_norm


@torch.no_grad()
def evaluate(model: nn.Module, latents: Tensor, y: Tensor, config: TrainDiTConfig, shift: float) -> float:
    """Mean loss over the given latents with labels kept, at the same times and noise whenever it is asked."""
    batch = draw_batch(latents, y, config, shift, step=-1)
    total = 0.0
    for part in FlowBatch(batch.x_t, batch.t, y, batch.target).split(256):
        with autocast(config.precision, part.x_t.device.type):
            velocity = model(part.x_t, part.t, part.y)
        total += flow_loss(velocity, part.target).item() * len(part.t)
    return total / len(y)


def build_model(config: TrainDiTConfig, cache: TokenCache) -> DiT:
    """A new model for these tokens, its weights drawn from the seed."""
    shape = DiTConfig(
        **dataclasses.asdict(config.size),
        input_size=cache.side,
        in_channels=cache.tokens.shape[2],
        num_classes=config.num_classes,
        class_dropout_prob=config.class_dropout_prob,
    )
    torch.manual_seed(config.seed)
    return build_dit(shape).to(config.device)


def train(config: TrainDiTConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring."""
    torch.set_flush_denormal(True)  # denormal numbers slow a CPU many times over

    # ---- data
    cache = TokenCache.load(ROOT / config.tokens)
    if int(cache.labels.max()) >= config.num_classes:
        raise ValueError(
            f"num_classes {config.num_classes}: the tokens have a label {int(cache.labels.max())}"
        )
    given = config.statistics
    statistics = LatentStatistics.load(ROOT / given) if given else cache.statistics()
    shift = training_shift(cache.tokens[0].numel()) if config.shift is None else config.shift

    def load_batch(indices: Tensor) -> tuple[Tensor, Tensor]:
        latents = statistics.normalise(cache.latents(indices).to(config.device))
        return latents, cache.labels[indices].to(config.device)

    # ---- model, optimiser
    model = build_model(config, cache).train()
    averaged = copy.deepcopy(model).requires_grad_(False).eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = {"betas": config.optim.betas, "weight_decay": config.optim.weight_decay, "fused": True}
    optimiser = torch.optim.AdamW(trained, lr=config.optim.lr, **settings)

    # ---- resume
    path, first_step, seconds = out_dir / "checkpoint.pt", 0, 0.0
    if path.is_file():
        state = checkpoint.load(path)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        first_step, seconds = state["step"], state["seconds"]
    started = time.monotonic() - seconds

    # ---- loop
    for step in range(first_step, config.num_steps):
        indices = checkpoint.batch_indices(config.seed, step, config.batch_size, len(cache.labels))
        batch = draw_batch(*load_batch(indices), config, shift, step)
        loss, grad_norm = train_step(model, optimiser, batch, config, step)
        average_weights(averaged.parameters(), model.parameters(), config.ema_decay, step)
        done = step + 1
        if done % config.log_steps == 0 or done == config.num_steps:
            scalars = {"loss": loss, "grad_norm": grad_norm, "lr": learning_rate(config.optim, step)}
            rate = (done - first_step) * config.batch_size / (time.monotonic() - started - seconds)
            progress(out_dir, done, config.num_steps, **scalars, samples_per_second=rate)
        if done % config.checkpoint_steps == 0 or done == config.num_steps:
            state = {"step": done, "seconds": time.monotonic() - started, "model": model.state_dict()}
            averages = {"averaged": averaged.state_dict(), "optimiser": optimiser.state_dict()}
            checkpoint.save(path, state | averages)

    # ---- save
    seconds = time.monotonic() - started
    averaged.save_pretrained(out_dir / "weights")
    statistics.save(out_dir / "weights" / "latent_stats.pt")
    write_json(out_dir / "weights" / "flow.json", {"shift": shift})
    write_json(out_dir / "weights" / TOKENS_FILE, cache.origin)
    evaluated = load_batch(torch.arange(min(NUM_EVALUATED, len(cache.labels))))
    return {
        "loss": evaluate(averaged, *evaluated, config, shift),
        "num_samples": config.num_steps * config.batch_size,
        "num_parameters": sum(parameter.numel() for parameter in trained),
        "shift": shift,
        "training_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main(TrainDiTConfig, train)
