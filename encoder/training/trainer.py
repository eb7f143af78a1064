"""The trainer of OpenVision 3 and of the CLIP baseline: one process or many, in memory or streamed.

Launched alone (`python -m encoder.train`), or by `accelerate launch` / `torchrun`: the processes share each
batch. Everything a step draws comes from (seed, step), so a run that is killed and started again ends with
the same weights; on a CPU to the last bit.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

from encoder.data.account import BAD_SAMPLES
from encoder.data.batch import TrainingSet
from encoder.data.feed import Feed, MemoryFeed, MicroBatches, StreamFeed, num_bad
from encoder.data.tokenizer import Tokenizer
from encoder.models.clip import Clip
from encoder.models.openvision3 import OpenVision3
from encoder.models.perceptual import PerceptualLoss
from encoder.models.pretrained import WEIGHTS_FILE
from encoder.models.shapes import VaeShape
from encoder.models.vae import FrozenVAE, load_vae, shape_of
from encoder.models.vit import Block
from encoder.runtime import checkpoint
from encoder.runtime.card import write_card
from encoder.runtime.config import ROOT
from encoder.runtime.sharding import shard
from encoder.runtime.trackers import Journal
from encoder.training.flops import model_flops_utilisation
from encoder.training.held_out import cache_latents, evaluate, load_samples
from encoder.training.optim import build_adamw
from encoder.training.options import TrainConfig
from encoder.training.run import CHECKPOINT, Run
from encoder.training.step import Step, backward, probe_parameters

COMPILED_FORMS = 64  # of a block's forward in one phase, before torch runs blocks uncompiled


def own_micro_batches(config: TrainConfig, num_processes: int, process: int) -> MicroBatches:
    """This process's micro-batches of each batch.

    Raises: ValueError if the batch cannot be cut equally.
    """
    rows_here, left = divmod(config.batch_size, num_processes)
    rows = config.micro_batch or rows_here
    if left or rows_here % rows:
        raise ValueError(
            f"batch_size {config.batch_size} must be a multiple of {num_processes} processes x "
            f"micro_batch {rows}"
        )
    fraction = config.pixel_fraction if config.openvision3 is not None else 1.0
    return MicroBatches(
        batch_size=config.batch_size,
        num_micro_batches=num_processes * (rows_here // rows),
        first=process * (rows_here // rows),
        count=rows_here // rows,
        num_pixels=max(1, round(fraction * rows)),
        with_sentence=config.contrastive_texts == "alt_and_sentence",
    )


def build_model(config: TrainConfig) -> OpenVision3 | Clip:
    """The towers, drawn from config.seed, or those that `init` names: a run's, or exported ones.

    Position tables are computed for the resolution at hand: nothing is interpolated, as in OpenVision.
    Raises: FileNotFoundError, ValueError if `init` holds neither, or other towers.
    """
    torch.manual_seed(config.seed)
    model = OpenVision3(config.openvision3) if config.openvision3 else Clip(config.clip)
    if config.init is not None:
        saved = _read_towers(ROOT / config.init, type(model))
        saved["encoder.positional_embedding"] = model.encoder.positional_embedding
        try:
            model.load_state_dict(saved)
        except RuntimeError as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[1:3])
            raise ValueError(f"init {config.init} holds other towers: {reason}") from None
    if config.decoder_only:
        model.requires_grad_(False)
        model.decoder.requires_grad_(True)
    return model


def _read_towers(folder: Path, cls: type[OpenVision3 | Clip]) -> dict[str, Tensor]:
    """Towers of a run's checkpoint, or of weights that `encoder.train` exported with their text towers."""
    if (folder / WEIGHTS_FILE).is_file():
        return cls.from_pretrained(folder).state_dict()
    return checkpoint.load(folder / CHECKPOINT)["model"]


def speed_up(model: nn.Module, config: TrainConfig) -> None:
    """Checkpoint the activations of every block and compile it, as config says; in place, names kept.

    All blocks share one `forward`, whose compiled forms dynamo counts together: a few for each kind of tower
    (width, mask, gradients or none), a few more for lengths and batch sizes. Beyond its limit of 8 it runs
    blocks as they are, in silence; so the limit is higher, and an earlier phase's forms are forgotten.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if config.compile:
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = COMPILED_FORMS
        for block in blocks:
            block.compile()
    if config.activation_checkpointing:
        apply_activation_checkpointing(
            model, checkpoint_wrapper_fn=checkpoint_wrapper, check_fn=lambda module: isinstance(module, Block)
        )


def distribute(step: Step, config: TrainConfig, accelerator: Accelerator) -> nn.Module:
    """The step as every process runs it: alone, under DDP, or (in place) sharded by FSDP2."""
    step.to(accelerator.device)
    if config.sharding == "none":
        return accelerator.prepare_model(step)
    if accelerator.num_processes < 2:
        raise ValueError("sharding: fsdp2 needs several processes; start with accelerate launch or torchrun")
    return shard(step, step.model, Block)


def build_feed(config: TrainConfig, own: MicroBatches, in_memory: Any, out_dir: Path) -> Feed:
    if config.stream is None:
        return MemoryFeed(in_memory, own, config.seed)
    shape = config.openvision3 or config.clip
    return StreamFeed(
        config.stream,
        own,
        Tokenizer(shape.text.tokenizer),
        text_length=shape.text.context_length,
        caption_length=config.openvision3.captioner.context_length if config.openvision3 else None,
        seed=config.seed,
        keep_all_pixels=config.clip is not None or not config.stream.latents,
        bad_file=out_dir / BAD_SAMPLES,
    )


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Processes and device.

    Raises: ValueError for a GPU that is not there.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda, but torch sees no GPU; choose auto or cpu")
    is_cpu = config.device == "cpu" or not torch.cuda.is_available()
    # DDP rearranges its buckets after the first step of each start, unless it looks for unused parameters.
    # Sums over more than two processes then round otherwise: a resumed run would differ in the last bits
    buckets = DistributedDataParallelKwargs(find_unused_parameters=is_cpu)
    # autocast is our own (`encoder.training.optim`), around each step
    return Accelerator(cpu=is_cpu, mixed_precision="no", kwargs_handlers=[buckets])


@dataclass(frozen=True, slots=True)
class Samples:
    """What is held in memory: sets, each with its labels (N,), and the VAE that gave their latents."""

    held_out: tuple[TrainingSet, Tensor]
    fit: tuple[TrainingSet, Tensor] | None  # to train on; None: they are streamed
    vae: FrozenVAE | None  # None: CLIP


def load_data(config: TrainConfig, accelerator: Accelerator, out_dir: Path) -> Samples:
    """Held-out samples (and those to train on, unless streamed) and their latents."""
    held_out = load_samples(config, config.eval_split, config.eval_limit)
    fit = load_samples(config, "train", config.train_limit) if config.stream is None else None
    if config.openvision3 is None:
        return Samples(held_out, fit, None)
    vae = load_vae(config.vae, device=accelerator.device)
    with accelerator.main_process_first():
        if fit is not None:
            fit[0].z_vae = cache_latents(vae, fit[0].images, out_dir, "train")
        held_out[0].z_vae = cache_latents(vae, held_out[0].images, out_dir, config.eval_split)
    return Samples(held_out, fit, vae)


def build_run(
    config: TrainConfig, samples: Samples, own: MicroBatches, accelerator: Accelerator, out_dir: Path
) -> tuple[Run, nn.Module]:
    """The run at its first step, and the step's module as this process calls it."""
    feed = build_feed(config, own, samples.fit and samples.fit[0], out_dir)
    model = build_model(config)
    speed_up(model, config)
    is_perceptual = config.openvision3 is not None and config.objective.perceptual_weight > 0
    perceptual = None
    if is_perceptual:
        perceptual = PerceptualLoss(config.perceptual, config.lpips_trunk).to(accelerator.device)
    module = distribute(Step(model, config, samples.vae, perceptual), config, accelerator)
    optimiser = build_adamw(model, config.optim)
    averaged = [each.detach().clone() for each in model.parameters()] if config.ema_decay else []
    run = Run(config, out_dir / CHECKPOINT, model, optimiser, averaged, feed, own.num_pixels, accelerator)
    return run, module


def train(config: TrainConfig, out_dir: Path) -> dict:
    # ---- setup
    accelerator = start_accelerator(config)
    journal = Journal(out_dir, config.trackers, config, is_main=accelerator.is_main_process)
    torch.set_flush_denormal(True)  # denormal numbers slow a CPU many times over
    own = own_micro_batches(config, accelerator.num_processes, accelerator.process_index)

    # ---- data, model, optimiser
    samples = load_data(config, accelerator, out_dir)
    run, module = build_run(config, samples, own, accelerator, out_dir)
    probe = probe_parameters(run.model, config.branches)
    vae_shape = samples.vae and shape_of(samples.vae)

    # ---- resume
    first_step, seconds = run.resume()
    started = time.monotonic()

    # ---- loop: a GPU computes a step while its next batch is read and the step before is settled
    batches = run.fetch(first_step, samples.vae) if first_step < config.num_steps else []
    for step in range(first_step, config.num_steps):
        done, is_last = step + 1, step + 1 == config.num_steps
        is_logged, is_evaluated = done % config.log_steps == 0 or is_last, done % config.eval_steps == 0
        is_kept, is_saved = done in config.snapshot_steps, done % config.checkpoint_steps == 0 or is_last
        terms = backward(module, batches, config, step, own.first, own.num_micro_batches)
        run.settle()  # of the step before
        grad_norm = run.apply_gradients(terms["loss"], step, probe)
        if is_logged or is_evaluated or is_kept or is_saved:
            run.settle()
        if is_logged:
            rate = (done - first_step) * config.batch_size / (time.monotonic() - started)
            _log(journal, done, config, _scalars(terms, grad_norm, rate, run, vae_shape))
        if is_evaluated and not is_last:
            scores = evaluate(run.whole_model(), samples.fit, samples.held_out, samples.vae)
            _log(journal, done, config, scores)
        if is_kept:
            run.keep_towers(done)
        if is_saved:
            run.save(done, seconds + time.monotonic() - started)
        if not is_last:
            batches = run.fetch(done, samples.vae)

    # ---- evaluate, export
    scores = export(run, samples, seconds + time.monotonic() - started, out_dir, journal)
    journal.close()
    accelerator.wait_for_everyone()
    return scores


def export(run: Run, samples: Samples, seconds: float, out_dir: Path, journal: Journal) -> dict:
    """Score the trained towers (averaged, where they are) and write them with their card; the scores."""
    config, accelerator = run.config, run.accelerator
    if run.averaged:
        for parameter, average in zip(run.model.parameters(), run.averaged, strict=True):
            parameter.data.copy_(average)
    model = run.whole_model()
    scores = evaluate(model, samples.fit, samples.held_out, samples.vae)
    _log(journal, config.num_steps, config, scores)
    if accelerator.is_main_process:
        model.save_pretrained(out_dir / "weights", dtype=torch.float16, text=config.export_text)
        what = "OpenVision 3: encoder and decoder" if config.openvision3 else "CLIP baseline: vision tower"
        about = {"what": what, "stage": "encoder.train", "config": config}
        write_card(out_dir / "weights", **about, seconds=seconds, scores=scores)
    return scores


def _scalars(
    terms: dict[str, Tensor], grad_norm: Tensor, rate: float, run: Run, vae_shape: VaeShape | None
) -> dict[str, float]:
    """What is logged: means over processes, tau over z_u's deviation (it has no fixed scale), the speed."""
    config, accelerator = run.config, run.accelerator
    means = accelerator.reduce(torch.stack([each.float() for each in terms.values()]), reduction="mean")
    scalars = dict(zip(terms, means.tolist(), strict=True))
    if config.openvision3 is not None:
        scalars["tau_over_std"] = config.objective.tau / scalars["z_u_std"]
    scalars |= {"grad_norm": grad_norm.item(), "samples_per_second": rate}
    scalars |= model_flops_utilisation(config, rate, accelerator, vae_shape)
    if config.skip_non_finite:
        scalars["skipped_steps"] = run.finite.skipped
    if config.stream is not None:
        scalars["bad_samples"] = sum(num_bad(each) for each in gather_object([run.feed.state()]))
    return scalars


def _log(journal: Journal, done: int, config: TrainConfig, scalars: dict[str, float]) -> None:
    finite = {name: value for name, value in scalars.items() if math.isfinite(value)}  # of a step left out
    journal.write(done, config.num_steps, **finite)
