"""Stage: train a diffusion transformer by flow matching on the cached tokens of a frozen encoder.

`python -m rae_bridge.train <config.yaml> <out_dir>` (several processes: `accelerate launch -m
rae_bridge.train ...`) writes out_dir/weights: the averaged model (config.json, model.safetensors),
latent_stats.pt in RAE's format, flow.json with the shift it was trained under, and tokens.json, which says
whose tokens it knows.

Source: RAE (arXiv:2510.11690, Sec. 4-5; src/train.py at a4d18c4). Deviations: labels are dropped, and times
and noise drawn, from generators that depend on seed, step and row alone: a run repeats, resumes to the
last bit and is the same on any number of processes; the average of the weights has a ramp; accumulation adds
up gradients; what is compiled is the loss, so that the average is judged by its own weights.
"""

import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from encoder.runtime import checkpoint
from encoder.runtime.ahead import made_ahead
from encoder.runtime.config import ROOT
from encoder.runtime.device import set_tf32
from encoder.runtime.ranks import Ranks, no_sync, unwrapped
from encoder.runtime.stage import main, progress, write_json
from encoder.training.finite import FiniteSteps
from encoder.training.optim import MuonWithAdamW, average_weights, step_if_finite
from rae_bridge.blocks import CLASS_INIT_STD
from rae_bridge.class_losses import class_losses
from rae_bridge.codec import TOKENS_FILE, load_codec
from rae_bridge.config import DiTOptimConfig, GenerateConfig, TrainDiTConfig
from rae_bridge.dit import DiT, build_dit
from rae_bridge.flow import training_shift
from rae_bridge.flow_batch import FlowBatch, batch_loss, draw_batch, noise_of_step
from rae_bridge.generate import TrainedFlow, stream_samples
from rae_bridge.judge import FrechetJudge
from rae_bridge.latents import CachedLatents, LatentStatistics, open_latents
from rae_bridge.live import LiveTokens
from rae_bridge.shapes import DiTConfig

NUM_EVALUATED = 1024  # pictures whose loss is reported at the end
Tokens = CachedLatents | LiveTokens
NUM_TOLD = 256  # of them, those whose loss is also measured with a wrong class and with none


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


@torch.no_grad()
def evaluate(model: nn.Module, latents: Tensor, y: Tensor, config: TrainDiTConfig, shift: float) -> float:
    """Mean loss over the given latents with labels kept, at the same times and noise whenever it is asked."""
    batch = draw_batch(latents, y, config, shift, step=-1)
    total = 0.0
    for part in FlowBatch(batch.x_t, batch.t, y, batch.target).split(256):
        total += batch_loss(model, part, config.precision).item() * len(part.t)
    return total / len(y)


class OnlineScore:
    """The Frechet distance of a few samples of the averaged weights, drawn by all processes together."""

    def __init__(self, config: TrainDiTConfig, cache: CachedLatents, ranks: Ranks) -> None:
        self.config, self.ranks = config.online, ranks
        encoder = self.config.encoder or cache.origin["encoder"]
        self.codec = load_codec(encoder, decoder=self.config.decoder, device=ranks.device)
        sizes = {"num_samples": self.config.num_samples, "num_steps": self.config.num_steps}
        about = {"precision": config.precision, "device": ranks.device, "seed": config.seed}
        self.generate = GenerateConfig(model="", encoder=encoder, **sizes, **about)

    def measure(self, flow: TrainedFlow) -> float:
        """The distance of what `flow` draws."""
        judge = FrechetJudge(self.config.judge, self.ranks.device)
        for _, images in stream_samples(flow, self.codec, self.generate, None, self.ranks):
            judge.see(images)
        return judge.merged(self.ranks).distance()


def build_model(config: TrainDiTConfig, cache: CachedLatents) -> DiT:
    """A new model for these tokens, its weights drawn from the seed."""
    shape = DiTConfig(
        **dataclasses.asdict(config.size),
        input_size=cache.side,
        in_channels=cache.width,
        num_classes=config.num_classes,
        class_dropout_prob=config.class_dropout_prob,
        prediction=config.prediction,
    )
    torch.manual_seed(config.seed)
    model = build_dit(shape)
    with torch.no_grad():
        model.y_embedder.embedding_table.weight.mul_(config.class_init_std / CLASS_INIT_STD)
    return model


def open_held_out(config: TrainDiTConfig, cache: Tokens) -> Tokens:
    """The tokens that the losses at the end are of: `held_out`, or those of the training.

    Raises:
        ValueError: they are another encoder's, or have classes that the model has not.
    """
    if config.held_out is None:
        return cache
    held_out = open_latents(ROOT / config.held_out)
    if held_out.origin != cache.origin or held_out.side != cache.side:
        raise ValueError(
            f"{config.held_out} holds tokens of {held_out.origin}, the training's: {cache.origin}"
        )
    check_classes(config, held_out)
    return held_out


def check_classes(config: TrainDiTConfig, cache: Tokens) -> None:
    """Raises: ValueError if tokens have a class that the model has not."""
    if int(cache.labels.max()) >= config.num_classes:
        raise ValueError(
            f"num_classes {config.num_classes}: the tokens have a label {int(cache.labels.max())}"
        )


def losses_at_the_end(
    model: DiT,
    cache: Tokens,
    held_out: Tokens,
    statistics: LatentStatistics,
    config: TrainDiTConfig,
    shift: float,
) -> dict:
    """`loss` of the first training tokens, `held_out_loss` where there are others, and `class_losses`."""
    device = next(model.parameters()).device

    def first_of(tokens: Tokens, num: int) -> tuple[Tensor, Tensor]:
        rows = torch.arange(min(num, len(tokens.labels)))
        return statistics.normalise(tokens.latents(rows).to(device)), tokens.labels[rows].to(device)

    losses = {"loss": evaluate(model, *first_of(cache, NUM_EVALUATED), config, shift)}
    if config.held_out is not None:
        losses["held_out_loss"] = evaluate(model, *first_of(held_out, NUM_EVALUATED), config, shift)
    latents, y = first_of(held_out, NUM_TOLD)
    noise = noise_of_step(config.seed, -1, range(len(y)), latents)
    told = {"has_null": model.config.has_null_class, "precision": config.precision}
    return losses | {"class_losses": class_losses(model, latents, y, noise, **told)}


def open_tokens(config: TrainDiTConfig, device: str) -> Tokens:
    """The tokens to train on: kept in a folder, or encoded as they are needed."""
    if config.pictures is not None:
        return LiveTokens.open(config.pictures, device)
    return open_latents(ROOT / config.tokens)


def load_rows(cache: Tokens, config: TrainDiTConfig, part: slice, step: int) -> tuple[Tensor, Tensor]:
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
    check_classes(config, cache)
    held_out = open_held_out(config, cache)
    given = config.statistics
    statistics = LatentStatistics.load(ROOT / given) if given else cache.statistics()
    shift = training_shift(cache.width * cache.side**2) if config.shift is None else config.shift
    normalise = statistics.to(ranks.device).normalise

    # ---- model, optimiser
    model = build_model(config, cache).to(ranks.device).train()
    averaged = copy.deepcopy(model).requires_grad_(False).eval()
    optimiser = build_optimiser(model, config.optim)
    online = OnlineScore(config, cache, ranks) if config.online else None
    loss_of = torch.compile(batch_loss) if config.compile else batch_loss

    # ---- resume
    path, first_step, seconds = out_dir / "checkpoint.pt", 0, 0.0
    finite = FiniteSteps(config.skip_non_finite)
    if (newest := checkpoint.newest(path)) is not None:
        state = checkpoint.load(newest)
        finite.skipped = state.get("skipped", 0)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        first_step, seconds = state["step"], state["seconds"]
    started = time.monotonic() - seconds
    model = ranks.wrap(model)

    # ---- loop
    steps = range(first_step, config.num_steps)
    rows = made_ahead(functools.partial(load_rows, cache, config, part), steps)
    for step, (latents, y) in zip(steps, rows, strict=True):
        latents, y = (tensor.to(ranks.device, non_blocking=True) for tensor in (latents, y))
        batch = draw_batch(normalise(latents), y, config, shift, step, part)
        loss, grad_norm = train_step(model, optimiser, batch, config, step, loss_of, finite)
        average_weights(averaged.parameters(), unwrapped(model).parameters(), config.average_decay, step)
        done = step + 1
        is_last = done == config.num_steps
        if done % config.log_steps == 0 or is_last:
            scalars = {"loss": ranks.mean(loss).item(), "grad_norm": grad_norm.item()}
            scalars["lr"] = learning_rate(config.optim, step)
            rate = (done - first_step) * config.batch_size / (time.monotonic() - started - seconds)
            if ranks.is_main:
                progress(out_dir, done, config.num_steps, **scalars, samples_per_second=rate)
        is_saved = done % config.checkpoint_steps == 0 or is_last
        is_scored = online and (done % config.online.every_steps == 0 or is_last)
        if is_saved or is_scored:
            finite.settle()  # nothing is saved or scored before the last step is known to be good
        if is_scored:
            distance = online.measure(TrainedFlow(averaged, statistics, shift))
            if ranks.is_main:
                progress(out_dir, done, config.num_steps, frechet_distance=distance)
        if is_saved and ranks.is_main:
            state = {"step": done, "seconds": time.monotonic() - started, "skipped": finite.skipped}
            state |= {"model": unwrapped(model).state_dict(), "averaged": averaged.state_dict()}
            state |= {"optimiser": optimiser.state_dict()}
            checkpoint.save(path, state, keep=config.keep_checkpoints)

    # ---- save
    seconds = time.monotonic() - started
    if ranks.is_main:
        averaged.save_pretrained(out_dir / "weights")
        statistics.save(out_dir / "weights" / "latent_stats.pt")
        write_json(out_dir / "weights" / "flow.json", {"shift": shift})
        write_json(out_dir / "weights" / TOKENS_FILE, cache.origin)
    ranks.wait()
    result = {"frechet_distance": distance} if online and first_step < config.num_steps else {}
    result |= losses_at_the_end(averaged, cache, held_out, statistics, config, shift)
    return result | {
        "num_samples": config.num_steps * config.batch_size,
        "num_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "shift": shift,
        "training_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main(TrainDiTConfig, train)
