"""Stage: one of LLaVA-1.5's two training stages over one frozen encoder, by transformers' Trainer under
DeepSpeed.

`python -m llava_bridge.train <config.yaml> <out_dir>` writes out_dir/weights, a folder that
`AutoModelForImageTextToText` and `AutoProcessor` load after `import llava_bridge.hf`. Stage 1 trains the
projector on captions, stage 2 projector and language model on conversations. Run it with python for one
process, or with torchrun for several.

The loss is averaged over all supervised tokens of a step's batch (transformers 5's rule; LLaVA's own
averaged each micro-batch first). DeepSpeed's resume unpickles its files: they are read from this stage's
own folder only.
Source: LLaVA c121f04, scripts/v1_5/{pretrain,finetune}.sh and llava/train/train.py; own code.
"""

import json
import os
import shutil
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import deepspeed
import deepspeed.ops
import torch
import torch.distributed
from torch.utils.data import Sampler
from transformers import LlavaProcessor, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from encoder.config import ROOT
from encoder.stage import main, progress
from llava_bridge.config import LlavaConfig
from llava_bridge.data import (
    CachedPictures,
    LivePictures,
    LlavaDataset,
    build_dataset,
    collate,
    read_records,
    training_order,
)
from llava_bridge.model import LlavaOverTokens, build, load, save
from llava_bridge.prompt import Template
from llava_bridge.tower import FrozenTower

COMPLETE = "COMPLETE"  # marks a checkpoint whose every file was written


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a stage of LLaVA-1.5 fixes."""

    template: Template
    trains_language_model: bool


RECIPES = {1: Recipe("plain", False), 2: Recipe("vicuna_v1", True)}


class OrderedTrainer(Trainer):
    """A Trainer that visits the samples in an order fixed before the run."""

    def __init__(self, *args, order: list[int], **kwargs):
        self.order = order
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return _FixedOrder(self.order)


class _FixedOrder(Sampler):
    def __init__(self, order: list[int]):
        self.order = order

    def __iter__(self):
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


class StageReport(TrainerCallback):
    """Writes the stage's progress, marks complete checkpoints, keeps the tower's weights, stops on a loss
    that is not finite."""

    def __init__(self, out_dir: Path, batch_size: int, tower: FrozenTower):
        self.out_dir = out_dir
        self.batch_size = batch_size
        self.tower = tower
        self.tower_weights = {
            name: parameter.detach().clone() for name, parameter in tower.named_parameters()
        }

    def on_train_begin(self, args, state, control, **kwargs):
        for name, parameter in self.tower.named_parameters():
            parameter.data = self.tower_weights[name].to(
                parameter.device
            )  # DeepSpeed rounds frozen parameters too
        self.first_step, self.started = state.global_step, time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            progress(self.out_dir, state.global_step, state.max_steps)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs or not state.is_world_process_zero:
            return
        if not torch.isfinite(torch.tensor(logs["loss"])):
            raise ValueError(f"the loss is {logs['loss']} at step {state.global_step}; lower learning_rate")
        rate = (state.global_step - self.first_step) * self.batch_size / (time.monotonic() - self.started)
        progress(
            self.out_dir,
            state.global_step,
            state.max_steps,
            loss=logs["loss"],
            grad_norm=float(logs["grad_norm"]),
            learning_rate=logs["learning_rate"],
            samples_per_second=rate,
        )

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def prepare_process() -> None:
    """Make this process a distributed one, with or without a launcher, and keep DeepSpeed from compiling
    anything.

    Without torchrun's variables DeepSpeed asks for mpi4py. Its first CPU start compiles a shared-memory
    operator for minutes, which gloo does not need.
    """
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_flush_denormal(True)  # denormal numbers slow a CPU many times over


def load_model(config: LlavaConfig) -> tuple[LlavaOverTokens, LlavaProcessor]:
    """The model a stage starts from: encoder, new projector and language model, or what stage 1 wrote."""
    init = ROOT / config.init
    if config.stage == 1:
        return build(config.encoder, config.features, init, config.attention, config.seed)
    model, processor = load(init, config.attention, torch.float32)
    tower = model.config.vision_config
    if (tower.source, tower.features) != (config.encoder, config.features):
        raise ValueError(
            f"{init} was aligned to encoder {tower.source} ({tower.features}), not {config.encoder} "
            f"({config.features}); run stage 1 for this encoder"
        )
    return LlavaOverTokens.adopt(model), processor


def open_pictures(
    config: LlavaConfig, model: LlavaOverTokens, processor: LlavaProcessor
) -> CachedPictures | LivePictures:
    """Cached tokens of this very encoder, or the picture files.

    Raises:
        ValueError: the cached tokens come from other weights, preprocessing or features.
    """
    if config.tokens is None:
        return LivePictures(ROOT / config.image_root, processor.image_processor)
    pictures = CachedPictures(ROOT / config.tokens)
    if pictures.fingerprint != model.config.vision_config.fingerprint:
        raise ValueError(
            f"{config.tokens} holds tokens of another encoder or other features than {config.encoder}; "
            "run encoder.tokens for this one"
        )
    return pictures


def freeze(model: LlavaOverTokens, recipe: Recipe) -> list[str]:
    """Let only the stage's parts learn; returns their names."""
    model.requires_grad_(False)
    parts = {"projector": [model.model.multi_modal_projector]}
    if recipe.trains_language_model:
        parts["language_model"] = [model.model.language_model, model.lm_head]
    for modules in parts.values():
        for module in modules:
            module.requires_grad_(True)
    return list(parts)


def training_arguments(
    config: LlavaConfig, out_dir: Path, num_steps: int, world_size: int
) -> TrainingArguments:
    """LLaVA-1.5's settings in transformers 5's words."""
    micro_batch = config.micro_batch_size or config.batch_size // world_size
    if config.batch_size % (micro_batch * world_size):
        raise ValueError(
            f"batch_size {config.batch_size} must be a multiple of micro_batch_size {micro_batch} x "
            f"{world_size} processes"
        )
    return TrainingArguments(
        output_dir=str(out_dir / "checkpoints"),
        deepspeed=read_deepspeed(config),
        use_cpu=not torch.cuda.is_available(),
        bf16=config.precision == "bf16",
        max_steps=num_steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=config.batch_size // (micro_batch * world_size),
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_fraction,
        weight_decay=config.weight_decay,
        optim="adamw_torch",
        logging_steps=config.log_steps,
        save_steps=config.checkpoint_steps,
        save_total_limit=2,
        seed=config.seed,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_drop_last=True,
        logging_nan_inf_filter=False,
    )


def read_deepspeed(config: LlavaConfig) -> dict | None:
    """DeepSpeed's settings, or None where it is switched off."""
    if config.deepspeed is None:
        return None
    path = ROOT / config.deepspeed
    if not path.is_file():
        raise FileNotFoundError(f"DeepSpeed settings not found: {path}")
    return json.loads(path.read_text())


def describe_engine(trainer: Trainer, config: LlavaConfig) -> dict:
    """What DeepSpeed really runs as.

    Raises:
        ValueError: it is wanted and is not in use, which Accelerate does not mention.
    """
    wanted = read_deepspeed(config)
    if wanted is None:
        return {"zero_stage": None, "backend": None}
    engine = trainer.model_wrapped
    if (
        not isinstance(engine, deepspeed.DeepSpeedEngine)
        or engine.zero_optimization_stage() != wanted["zero_optimization"]["stage"]
    ):
        raise ValueError(
            f"DeepSpeed is not in use as {config.deepspeed} says; the trainer runs {type(engine).__name__}"
        )
    return {"zero_stage": engine.zero_optimization_stage(), "backend": torch.distributed.get_backend()}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; those that a kill cut short are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    complete = [path for path in found if (path / COMPLETE).is_file()]
    for path in set(found) - set(complete):
        shutil.rmtree(path)
    return complete[-1] if complete else None


def train(config: LlavaConfig, out_dir: Path) -> dict:
    # ---- setup
    prepare_process()
    world_size = int(os.environ["WORLD_SIZE"])
    recipe = RECIPES[config.stage]
    torch.manual_seed(config.seed)

    # ---- model, data
    model, processor = load_model(config)
    trained = freeze(model, recipe)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    pictures = open_pictures(config, model, processor)
    dataset: LlavaDataset = build_dataset(
        read_records([ROOT / path for path in config.data]),
        pictures,
        recipe.template,
        processor.tokenizer,
        num_image_tokens=model.config.vision_config.num_tokens,
        max_length=config.max_length,
        max_missing_fraction=config.max_missing_fraction,
    )
    num_steps = max(1, round(config.num_epochs * len(dataset) / config.batch_size))
    order = training_order(dataset.lengths, config.batch_size, num_steps, config.seed)

    # ---- loop: Trainer under DeepSpeed, from the last complete checkpoint
    trainer = OrderedTrainer(
        model=model,
        args=training_arguments(config, out_dir, num_steps, world_size),
        train_dataset=dataset,
        order=order,
        data_collator=lambda samples: collate(samples, pictures, processor.tokenizer.pad_token_id),
        callbacks=[StageReport(out_dir, config.batch_size, model.model.vision_tower)],
    )
    trainer.remove_callback(PrinterCallback)
    started = time.monotonic()
    checkpoint = last_checkpoint(out_dir / "checkpoints")
    output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.monotonic() - started
    engine = describe_engine(trainer, config)

    # ---- save
    if trainer.is_world_process_zero():
        save(model, processor, out_dir / "weights")
        shutil.rmtree(out_dir / "checkpoints")
    report = asdict(dataset.report)
    return {
        "stage": config.stage,
        "template": recipe.template,
        "trained": trained,
        "num_steps": num_steps,
        "samples_seen": num_steps * config.batch_size,
        "training_loss": output.training_loss,
        "seconds": round(seconds, 2),
        "loss_average": "tokens",
        "precision": config.precision,
        "processes": world_size,
        "deepspeed": engine,
        "encoder": {
            "source": config.encoder,
            "features": config.features,
            "num_tokens": model.config.vision_config.num_tokens,
            "fingerprint": model.config.vision_config.fingerprint,
            "cached_tokens": config.tokens is not None,
        },
        "data": report,
    }


if __name__ == "__main__":
    main(LlavaConfig, train)
