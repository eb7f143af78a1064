"""Stage: train a pixel decoder on the tokens of a frozen encoder that cannot decode.

`python -m rae_bridge.train_decoder <config.yaml> <out_dir>` writes out_dir/weights: the averaged decoder in
fp16 (config.json, model.safetensors), tokens.json and card.yaml. Pixel and perceptual losses are those of
OpenVision 3's own decoder, so that the two can be compared; RAE's adversarial term is `adversarial`.
Several processes: `accelerate launch -m rae_bridge.train_decoder ...`.

Source: RAE (arXiv:2510.11690, Sec. 3; src/train_stage1.py at a4d18c4). Deviations: the perceptual distance
may be Lite1's; without `live`, pictures are cut and encoded once, before the first step; the adaptive weight
compares the gradients of the whole batch on any number of processes.
"""

import copy
import functools
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from encoder.data.batch import to_pixels
from encoder.frozen import FrozenEncoder
from encoder.metrics.psnr import psnr
from encoder.models.losses import pixel_l1
from encoder.models.perceptual import PerceptualLoss
from encoder.runtime import checkpoint
from encoder.runtime.ahead import made_ahead
from encoder.runtime.card import write_card
from encoder.runtime.device import set_tf32
from encoder.runtime.ranks import Ranks, unwrapped
from encoder.runtime.stage import main, write_json
from encoder.runtime.trackers import Journal
from encoder.training.finite import FiniteSteps
from encoder.training.optim import apply_gradients, autocast, average_weights, build_adamw, rate_factor
from rae_bridge.codec import TOKENS_FILE, load_for_generation, origin_of
from rae_bridge.config import TrainDecoderConfig
from rae_bridge.decoder import PixelDecoder
from rae_bridge.decoder_data import Split, prepare_split
from rae_bridge.decoder_live import LiveSplit, draw_cuts
from rae_bridge.discriminator import Adversary
from rae_bridge.shapes import DecoderConfig

EVAL_BATCH = 100


def noise_tokens(tokens: Tensor, config: TrainDecoderConfig, step: int, part: slice | None = None) -> Tensor:
    """tokens (B N D) + sigma * N(0, I), one sigma a sample, drawn from (seed, step).

    part: which rows of the step's `batch_size` they are; None: these are all.
    """
    size = len(tokens) if part is None else config.batch_size
    generator = checkpoint.step_generator(config.seed, step, "noise")
    draw = torch.rand if config.noise == "uniform" else torch.randn
    sigma = config.tau * draw(size, 1, 1, generator=generator).abs()
    noise = sigma * torch.randn((size, *tokens.shape[1:]), generator=generator)
    return tokens + noise[part or slice(None)].to(tokens.device)


def train_step(
    decoder: nn.Module,
    tokens: Tensor,
    pixels: Tensor,
    config: TrainDecoderConfig,
    step: int,
    perceptual: PerceptualLoss | None,
    adversary: Adversary | None = None,
    part: slice | None = None,
) -> dict[str, Tensor]:
    """The loss and its terms for tokens (B N D) and the pixels (B 3 H W, in [0, 1]) they stand for."""
    with autocast(config.precision, tokens.device.type):
        pixels_hat = decoder(noise_tokens(tokens, config, step, part))
    terms = {"pixel": pixel_l1(pixels_hat, pixels)}
    loss = terms["pixel"]
    if perceptual is not None and step >= config.perceptual_from * config.num_steps:
        num_seen = max(1, round(config.perceptual_fraction * len(pixels)))
        terms["perceptual"] = perceptual(pixels_hat[:num_seen], pixels[:num_seen])
        loss = loss + config.perceptual_weight * terms["perceptual"]
    if adversary is not None and step >= config.adversarial.acts_from * config.num_steps:
        draws = adversary.draws(step, "decoder", part or slice(None), config.batch_size)
        last = unwrapped(decoder).decoder_pred.weight
        terms["adversarial"] = adversary.term(pixels_hat, loss, last, draws)
        loss = loss + terms["adversarial"]
    return {"loss": loss, **terms}


def adversary_step(
    adversary: Adversary,
    decoder: PixelDecoder,
    tokens: Tensor,
    pixels: Tensor,
    config: TrainDecoderConfig,
    step: int,
    part: slice,
) -> dict[str, Tensor]:
    """One step of the discriminator on pixels and on what the updated decoder makes of clean tokens.

    Raises: ValueError if its loss is not finite, naming the step.
    """
    with torch.no_grad(), autocast(config.precision, tokens.device.type):
        pixels_hat = decoder(tokens)
    kinds = ("real", "fake")
    draws = tuple(adversary.draws(step, kind, part, config.batch_size) for kind in kinds)
    adversary.set_rate(rate_factor(config.optim, step, config.num_steps))
    loss = adversary.learn(pixels, pixels_hat, draws)
    if not torch.isfinite(loss):
        raise ValueError(f"the discriminator's loss is {loss.item()} at step {step}; lower adversarial.lr")
    return {"discriminator": loss}


@torch.no_grad()
def evaluate(decoder: PixelDecoder, split: Split | LiveSplit, ranks: Ranks) -> dict[str, float]:
    """PSNR in dB and pixel l1 in [-1, 1], means over a split, from tokens without noise; each process its own
    batches.
    """
    batches, mine = torch.arange(len(split)).split(EVAL_BATCH)[ranks.rank :: ranks.world], []
    read = made_ahead(lambda number: split.rows(batches[number]), range(len(batches)))
    for indices, rows in zip(batches, read, strict=True):
        tokens, images = (each.to(ranks.device) for each in rows)
        pixels, pixels_hat = to_pixels(images), decoder(tokens.float()).clamp(0, 1)
        decibels = psnr(pixels, pixels_hat, highest=120).cpu()
        mine.append((int(indices[0]), decibels, pixel_l1(pixels_hat, pixels).item() * len(images)))
    _, decibels, distances = zip(*sorted(itertools.chain(*ranks.gather(mine))), strict=True)
    return {
        "psnr": torch.cat(decibels).mean().item(),
        "pixel_l1": sum(distances) / len(split),
        "num_samples": len(split),
    }


def build_decoder(config: TrainDecoderConfig, encoder: FrozenEncoder) -> PixelDecoder:
    """A new decoder for this encoder's tokens, its weights drawn from the seed.

    Raises:
        ValueError: the token grid does not divide the picture.
    """
    image_size, side = config.image_size or encoder.image_size, encoder.grid[0]
    if encoder.grid != (side, side) or image_size % side:
        raise ValueError(
            f"{encoder.name}'s token grid {encoder.grid} does not divide {image_size} x {image_size} pixels"
        )
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    shape = DecoderConfig(
        **{f"decoder_{name}": getattr(config.size, f"decoder_{name}") for name in names},
        hidden_size=encoder.width,
        image_size=image_size,
        patch_size=image_size // side,
        image_mean=encoder.mean,
        image_std=encoder.std,
    )
    torch.manual_seed(config.seed)
    return PixelDecoder(shape)


@dataclass(slots=True)
class Run:
    """What a checkpoint holds. The schedule, batches and noise are functions of the step."""

    path: Path
    decoder: PixelDecoder
    averaged: PixelDecoder
    optimiser: torch.optim.Optimizer
    adversary: Adversary | None
    finite: FiniteSteps
    num_kept: int  # checkpoints

    def save(self, step: int, seconds: float) -> None:
        """Write the checkpoint, atomically."""
        state = {"step": step, "seconds": seconds, "optimiser": self.optimiser.state_dict()}
        state |= {"decoder": self.decoder.state_dict(), "averaged": self.averaged.state_dict()}
        state |= {"adversary": self.adversary.state_dict()} if self.adversary else {}
        checkpoint.save(self.path, state | {"skipped": self.finite.skipped}, keep=self.num_kept)

    def resume(self) -> tuple[int, float]:
        """Go on from the checkpoint, if there is one: the step to do next, and the seconds spent so far."""
        newest = checkpoint.newest(self.path)
        if newest is None:
            return 0, 0.0
        state = checkpoint.load(newest)
        self.finite.skipped = state.get("skipped", 0)
        self.decoder.load_state_dict(state["decoder"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.adversary:
            self.adversary.load_state_dict(state["adversary"])
        return state["step"], state["seconds"]


def build_run(
    config: TrainDecoderConfig, encoder: FrozenEncoder, ranks: Ranks, path: Path
) -> tuple[Run, PerceptualLoss | None]:
    """The run at its first step, and its perceptual loss."""
    decoder = build_decoder(config, encoder).to(ranks.device).train()
    averaged = copy.deepcopy(decoder).requires_grad_(False).eval()
    optimiser = build_adamw(decoder, config.optim)
    perceptual = (
        PerceptualLoss(config.perceptual, config.lpips_trunk).to(ranks.device)
        if config.perceptual_weight
        else None
    )
    adversarial = config.adversarial
    adversary = adversarial and Adversary(adversarial, ranks, config.precision, config.seed)
    finite = FiniteSteps(config.skip_non_finite)
    return Run(path, decoder, averaged, optimiser, adversary, finite, config.keep_checkpoints), perceptual


def train(config: TrainDecoderConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring."""
    torch.set_flush_denormal(True)  # denormal numbers slow a CPU many times over

    # ---- data
    ranks = Ranks.start(config.device)
    journal = Journal(out_dir, config.trackers, config, is_main=ranks.is_main)
    set_tf32(ranks.device, config.tf32)
    part, device = ranks.part(config.batch_size), ranks.device
    encoder = load_for_generation(config.encoder, config.features, device)
    if config.live is None:
        prepare = functools.partial(prepare_split, config, encoder, ranks, out_dir)
    else:
        prepare = functools.partial(LiveSplit.open, config, encoder)
    pictures, held_out = prepare("train", config.train_limit), prepare(config.eval_split, config.eval_limit)

    # ---- model, optimiser, resume
    run, perceptual = build_run(config, encoder, ranks, out_dir / "checkpoint.pt")
    adversary = run.adversary
    first_step, seconds = run.resume()
    started = time.monotonic() - seconds
    model = ranks.wrap(run.decoder)

    # ---- loop
    def read(step: int) -> tuple[Tensor, Tensor]:
        order = checkpoint.batch_indices(config.seed, step, config.batch_size, len(pictures))[part]
        if config.live is None:
            return pictures.rows(order)
        return pictures.rows(order, draw_cuts(config, step)[part])

    steps = range(first_step, config.num_steps)
    for step, (tokens, images) in zip(steps, made_ahead(read, steps), strict=True):
        batch = tokens.to(device).float(), to_pixels(images.to(device))
        terms = train_step(model, *batch, config, step, perceptual, adversary, part)
        terms["loss"].backward()
        run.finite.settle()  # of the step before: a GPU has this one to compute meanwhile
        about = (config.optim, step, config.num_steps)
        grad_norm = apply_gradients(run.optimiser, terms["loss"], *about, run.finite)
        average_weights(run.averaged.parameters(), run.decoder.parameters(), config.ema_decay, step)
        if adversary and step >= config.adversarial.learns_from * config.num_steps:
            terms |= adversary_step(adversary, run.decoder, *batch, config, step, part)
        done = step + 1
        if done % config.log_steps == 0 or done == config.num_steps:
            rate = (done - first_step) * config.batch_size / (time.monotonic() - started - seconds)
            scalars = {name: ranks.mean(value.detach()).item() for name, value in terms.items()}
            about = {**scalars, "grad_norm": grad_norm.item(), "samples_per_second": rate}
            journal.write(done, config.num_steps, **about)
        if done % config.checkpoint_steps == 0 or done == config.num_steps:
            run.finite.settle()  # nothing is saved before the last step is known to be good
            if ranks.is_main:
                run.save(done, time.monotonic() - started)

    # ---- export, evaluate what was written
    seconds = time.monotonic() - started
    journal.close()
    folder = out_dir / "weights"
    if ranks.is_main:
        run.averaged.save_pretrained(folder, dtype=torch.float16)
        write_json(folder / TOKENS_FILE, origin_of(encoder))
    ranks.wait()
    scores = evaluate(PixelDecoder.from_pretrained(folder.resolve()).to(device), held_out, ranks)
    if ranks.is_main:
        what = f"ViT pixel decoder on the tokens of {encoder.name}"
        stage = "rae_bridge.train_decoder"
        write_card(folder, what=what, stage=stage, config=config, seconds=seconds, scores=scores)
    ranks.wait()
    return scores


if __name__ == "__main__":
    main(TrainDecoderConfig, train)
