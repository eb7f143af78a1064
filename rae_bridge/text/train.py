"""Stage: train a DiT-DH on the tokens of a frozen encoder, told the captions of their pictures.

`python -m rae_bridge.text.train <config.yaml> <out_dir>` (several processes: `accelerate launch -m
rae_bridge.text.train ...`) writes out_dir/weights (and out_dir/kept) as `rae_bridge.train` does, with
text.json beside them, which says whose texts the model knows. A run repeats, resumes to the last bit and
draws the same batches on any number of processes, for the same reasons.

Source: RAEv2's text-to-image training (arXiv:2605.18324; at 8a0d238) on RAE's (arXiv:2510.11690): no text is
the empty text, with its mask, and stands for a caption with probability 0.1. Deviation: half of the captions
are short by default; without short ones a model knows none of the prompts that people write.
"""

import functools
import time
from pathlib import Path

import torch
from torch import Tensor

from encoder.runtime import checkpoint
from encoder.runtime.ahead import made_ahead
from encoder.runtime.config import ROOT
from encoder.runtime.device import set_tf32, settled_precision
from encoder.runtime.ranks import Ranks
from encoder.runtime.stage import main, write_json
from encoder.runtime.trackers import Journal
from encoder.token_store import TokenStore
from encoder.training.optim import average_weights
from rae_bridge.class_losses import as_metrics, class_losses
from rae_bridge.codec import check_tokens_alike
from rae_bridge.config import TrainDiTConfig
from rae_bridge.flow import training_shift
from rae_bridge.flow_batch import draw_batch, noise_of_step
from rae_bridge.held_out import NUM_EVALUATED, NUM_TOLD, evaluate, first_of
from rae_bridge.latents import CachedLatents, LatentStatistics, grid_side
from rae_bridge.run import Run, kept_statistics
from rae_bridge.text.bank import Captions
from rae_bridge.text.config import TextShape, TrainTextConfig
from rae_bridge.text.model import Captioned, TextDiT, take_over
from rae_bridge.text.weights import TEXT_FILE, TextWeights, is_text_model
from rae_bridge.train import build_optimiser, learning_rate, train_step
from rae_bridge.weights_folder import KEPT, STATISTICS_FILE, WEIGHTS, WeightsFolder, alike


class CaptionedLatents(CachedLatents):
    """The latents of a folder of tokens, each with the numbers of its captions; `labels` are the dense ones.

    Mirror images are left out, whether or not there are any: "left of" would be wrong of them.
    """

    def __init__(self, store: TokenStore, captions: Captions):
        """Raises: ValueError: the grid is not square, or some picture has no caption."""
        self.store, self.side, self.width = store, grid_side(store.num_tokens), store.width
        self.has_flips, self.origin = False, store.origin
        self.short, self.labels = captions.of(store.keys)

    def rows(self, config: TrainTextConfig, part: slice, step: int) -> tuple[Tensor, Tensor]:
        """Latents (B D h w, not normalised) and texts (B,) of rows of a step: short captions first."""
        size = config.batch_size
        indices = checkpoint.batch_indices(config.seed, step, size, len(self.labels))
        is_short = torch.arange(size) < round(config.short_share * size)
        texts = torch.where(is_short, self.short[indices], self.labels[indices])
        return self.latents(indices[part]), texts[part]


def begin(
    config: TrainTextConfig, cache: CaptionedLatents, captions: Captions, kept: LatentStatistics | None = None
) -> tuple[TextDiT, LatentStatistics]:
    """The model before its first step, and the statistics that its latents are normalised by; `kept`: those
    of a training that goes on, whose checkpoint gives the weights.

    Raises:
        FileNotFoundError, ValueError: `init` is no weights folder, or one of another size, other tokens or
            texts, or other statistics than the config names.
    """
    torch.manual_seed(config.seed)
    model = TextDiT(shape_of(config, cache, captions))
    if kept is not None:
        return model, kept
    given = None if config.statistics is None else LatentStatistics.load(ROOT / config.statistics)
    if config.init is None:
        return model, given or cache.statistics()
    if is_text_model(config.init):
        start = TextWeights.read(config.init)
        start.check_texts(captions.bank.about)
        if start.shape != model.config:
            raise ValueError(f"init {config.init} is another model: {start.shape}, not {model.config}")
        model.load_state_dict(start.weights())
    else:
        start = WeightsFolder.read(config.init)
        if start.student is not None:
            raise ValueError(f"init {config.init} is a student; name a model by rae_bridge.train")
        take_over(model, start.shape, start.weights())
    check_tokens_alike(f"init {config.init}", start.tokens, "this training's are", cache.origin)
    if given is not None and not alike(given, start.statistics):
        raise ValueError(f"init {config.init} was trained under other statistics than {config.statistics}")
    return model, start.statistics


def shape_of(config: TrainTextConfig, cache: CaptionedLatents, captions: Captions) -> TextShape:
    """The model's shape for these tokens and texts."""
    size = {name: getattr(config.size, name) for name in config.size.__dataclass_fields__}
    return TextShape(
        **size,
        input_size=cache.side,
        in_channels=cache.width,
        class_dropout_prob=config.text_dropout_prob,
        prediction=config.prediction,
        conditioning=config.conditioning,
        text_width=captions.bank.about["text_width"],
        pooled_width=captions.bank.about["pooled_width"],
    )


def write_text_weights(run: Run, step: int, folder: Path, captions: Captions) -> None:
    """Write the averaged model to a folder."""
    run.write_weights(step, folder)
    write_json(folder / TEXT_FILE, captions.bank.about)


def open_pair(tokens: str, captions: str) -> tuple[CaptionedLatents, Captions]:
    """Tokens and captions of the same pictures.

    Raises: FileNotFoundError, ValueError: they are missing, damaged, or do not belong together.
    """
    texts = Captions.load(ROOT / captions)
    return CaptionedLatents(TokenStore(ROOT / tokens), texts), texts


def train(config: TrainTextConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring."""
    torch.set_flush_denormal(True)  # denormal numbers slow a CPU many times over

    # ---- data
    ranks = Ranks.start(config.device)
    set_tf32(ranks.device, config.tf32)
    part = ranks.part(config.batch_size)
    cache, captions = open_pair(config.tokens, config.captions)
    held_out = None
    if config.held_out is not None:
        held_out = open_pair(config.held_out, config.held_out_captions)
        check_tokens_alike(f"held_out {config.held_out}", held_out[0].origin, "this training", cache.origin)
    flow = config.as_flow(captions.bank.null)

    # ---- model, optimiser
    journal = Journal(out_dir, config.trackers, config, is_main=ranks.is_main)
    kept = kept_statistics(out_dir)
    model, statistics = begin(config, cache, captions, kept)
    if kept is None and ranks.is_main:
        statistics.save(out_dir / STATISTICS_FILE)
    shift = training_shift(cache.width * cache.side**2) if config.shift is None else config.shift
    normalise = statistics.to(ranks.device).normalise
    model = model.to(ranks.device).train()
    latents = {"statistics": statistics, "shift": shift, "tokens": cache.origin}
    run = Run.begin(flow, out_dir, model, build_optimiser(model, config.optim), **latents)

    # ---- resume
    first_step, seconds = run.resume(None)
    run.check_keep_steps(first_step)
    started = time.monotonic() - seconds
    told = ranks.wrap(Captioned(model, captions.bank))

    # ---- loop
    steps = range(first_step, config.num_steps)
    rows = made_ahead(functools.partial(cache.rows, config, part), steps)
    for step, (latents, y) in zip(steps, rows, strict=True):
        latents, y = (tensor.to(ranks.device, non_blocking=True) for tensor in (latents, y))
        batch = draw_batch(normalise(latents), y, flow, shift, step, part)
        loss, grad_norm = train_step(told, run.optimiser, batch, flow, step, finite=run.finite)
        average_weights(run.averaged.parameters(), run.model.parameters(), flow.average_decay, step)
        done = step + 1
        is_last = done == config.num_steps
        if done % config.log_steps == 0 or is_last:
            scalars = {"loss": ranks.mean(loss).item(), "grad_norm": grad_norm.item()}
            scalars["lr"] = learning_rate(config.optim, step)
            rate = (done - first_step) * config.batch_size / (time.monotonic() - started - seconds)
            journal.write(done, config.num_steps, **scalars, samples_per_second=rate)
        is_saved, is_kept = done % config.checkpoint_steps == 0 or is_last, done in config.keep_steps
        if is_saved or is_kept:
            run.finite.settle()  # nothing is saved before the last step is known to be good
        if is_kept and ranks.is_main:
            write_text_weights(run, done, kept_weights(out_dir, done), captions)
        if is_saved and ranks.is_main:
            run.save(done, time.monotonic() - started)

    # ---- save
    seconds = time.monotonic() - started
    if ranks.is_main:
        write_text_weights(run, config.num_steps, out_dir / WEIGHTS, captions)
    ranks.wait()
    journal.close()
    losses = losses_at_the_end(run, (cache, captions), held_out, flow)
    return losses | {
        "num_samples": config.num_steps * config.batch_size,
        "num_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "shift": shift,
        "precision": settled_precision(config.precision, ranks.device),
        "training_seconds": round(seconds, 1),
    }


def kept_weights(out_dir: Path, step: int) -> Path:
    """Where a training in `out_dir` keeps its averaged weights of a step of `keep_steps`."""
    return out_dir / KEPT / f"step_{step:08}"


Pair = tuple[CaptionedLatents, Captions]


def losses_at_the_end(run: Run, seen: Pair, held_out: Pair | None, flow: TrainDiTConfig) -> dict:
    """Of the averaged weights: `loss` of the first training pictures told their dense captions,
    `held_out_loss` of others, and what a text is worth: the loss told the true one, another and none."""
    losses = {}
    for name, (latents, captions) in {"loss": seen, "held_out_loss": held_out or seen}.items():
        told = Captioned(run.averaged, captions.bank)
        some = {"statistics": run.statistics, "device": str(run.averaged.base.device)}
        losses[name] = evaluate(told, *first_of(latents, NUM_EVALUATED, **some), flow, run.shift)
        first, y = first_of(latents, NUM_TOLD, **some)
    if held_out is None:
        del losses["held_out_loss"]
    noise = noise_of_step(flow.seed, -1, range(len(y)), first)
    by_text = class_losses(told, first, y, noise, has_null=True, precision=flow.precision)
    return losses | {"text_losses": by_text, "metrics": as_metrics(by_text, len(y))}


if __name__ == "__main__":
    main(TrainTextConfig, train)
