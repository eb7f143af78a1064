"""Stage: one of the two training stages of LLaVA-1.5 or LLaVA-NeXT over one frozen encoder, by transformers'
Trainer under DeepSpeed.

`python -m llava_bridge.train <config.yaml> <out_dir>` writes out_dir/weights, a folder that
`AutoModelForImageTextToText` and `AutoProcessor` load after `import llava_bridge.hf`. Stage 1 trains the
projector on captions, stage 2 projector and language model on conversations. Run it with python for one
process, or with torchrun for several.

The loss is averaged over all supervised tokens of a step's batch (transformers 5's rule), or first over each
micro-batch (LLaVA's own): `loss_average`.
Source: LLaVA c121f04, scripts/v1_5/{pretrain,finetune}.sh and llava/train/train.py; own code.
"""

import json
import os
from functools import partial
from pathlib import Path

import deepspeed
import torch
import torch.distributed
from transformers import PrinterCallback, TrainingArguments

from encoder.runtime import hub
from encoder.runtime.config import ROOT
from encoder.runtime.stage import is_first_process, main, write_json
from encoder.runtime.trackers import Journal
from llava_bridge.any_resolution.model import check_framework, draw_newline, learns_newline, views_of
from llava_bridge.any_resolution.pictures import open_views
from llava_bridge.attention import choose_attention
from llava_bridge.batches import collate
from llava_bridge.config import LlavaConfig
from llava_bridge.data import describe_data, read_dataset
from llava_bridge.engine import (
    check_engine,
    describe_engine,
    last_checkpoint,
    make_universal,
    prepare_process,
    read_deepspeed,
    read_mark,
    remove_checkpoints,
    wait_for_all,
)
from llava_bridge.language_model import check_positions
from llava_bridge.lora import add_lora, merge_lora, save_adapter
from llava_bridge.model import (
    Processor,
    adopt,
    assemble,
    describe_saved,
    describe_start,
    load,
    outline_new,
    outline_saved,
    save,
)
from llava_bridge.order import describe_steps, training_order
from llava_bridge.over_tokens import OverTokens
from llava_bridge.packing import attend_within_samples
from llava_bridge.pictures import open_pictures
from llava_bridge.spread import spread_weights
from llava_bridge.tower import FrozenTowerConfig
from llava_bridge.trainer import (
    OrderedTrainer,
    StageReport,
    compile_blocks,
    describe_tower,
    hide_tower,
    mean_loss,
    show_tower,
)

RESULT = "result.json"  # the stage's result, written before its checkpoints are removed


def open_start(config: LlavaConfig) -> tuple[FrozenTowerConfig, Processor]:
    """The tower and the processor of what a stage starts from: what its data needs to be read.

    Raises:
        FileNotFoundError, ValueError: as `describe_start`; stage 1's model is of another encoder.
    """
    if config.stage == 1:
        llm = hub.place(config.init)
        tiles = config.tiles if config.framework == "llava_next" else None
        tower, processor = describe_start(
            config.encoder, config.features, llm, config.num_image_tokens, tiles
        )
    else:
        init = ROOT / config.init
        tower, processor = describe_saved(init)
        if (tower.source, tower.features) != (config.encoder, config.features):
            raise ValueError(
                f"{init} was aligned to encoder {tower.source} ({tower.features}), not {config.encoder} "
                f"({config.features}); run stage 1 for this encoder"
            )
        if config.num_image_tokens not in (None, tower.num_tokens):
            raise ValueError(
                f"{init} was aligned at {tower.num_tokens} picture tokens, not num_image_tokens "
                f"{config.num_image_tokens}; run stage 1 with it"
            )
        check_framework(config, processor, init)
    if config.framework == "llava_1_5":
        processor.image_processor.aspect = config.aspect
    return tower, processor


def load_model(config: LlavaConfig, tower: FrozenTowerConfig, processor: Processor) -> OverTokens:
    """The model a stage starts from: encoder, new projector and language model, or what stage 1 wrote.

    The first process reads the weights, for all. They are in the type that is trained: DeepSpeed keeps no
    more digits in its float32 copies than the weights it is given in bf16 have.
    """
    settings = read_deepspeed(config.deepspeed)
    dtype = torch.bfloat16 if settings and config.chosen_precision == "bf16" else torch.float32
    llm = hub.place(config.init) if config.stage == 1 else None
    if not is_first_process():
        if config.stage == 1:
            model = outline_new(tower, processor, llm, config.attention)
        else:
            model = outline_saved(ROOT / config.init, config.attention)
    elif config.stage == 1:
        model = assemble(tower, processor, llm, config.attention, config.seed, dtype)
    else:
        model = adopt(load(ROOT / config.init, config.attention, dtype)[0])
        if config.framework == "llava_next" and config.newline == "official":
            draw_newline(model, config.seed + 1, dtype)
        model.model.vision_tower.float()  # the type of its output; the encoder keeps its own
    if int(os.environ["WORLD_SIZE"]) > 1:
        splits = settings is not None and settings["zero_optimization"]["stage"] == 3
        spread_weights(model, model.model.vision_tower, settings if splits else None)
    return model


def freeze(model: OverTokens, config: LlavaConfig) -> list[str]:
    """Let only the stage's parts learn; returns their names."""
    model.requires_grad_(False)
    parts = {"projector": list(model.model.multi_modal_projector.parameters())}
    if learns_newline(config):
        parts["newline"] = [model.model.image_newline]
    if config.lora_rank is not None:
        language_model = model.model.language_model
        parts["lora"] = add_lora(language_model, config.lora_rank, config.lora_alpha, config.lora_dropout)
    elif config.stage == 2:
        parts["language_model"] = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    for parameters in parts.values():
        for parameter in parameters:
            parameter.requires_grad_(True)
    return list(parts)


def training_arguments(
    config: LlavaConfig, out_dir: Path, num_steps: int, world_size: int, is_reshaped: bool
) -> TrainingArguments:
    """LLaVA-1.5's settings in transformers 5's words. `is_reshaped`: the run goes on from a checkpoint of
    another number of processes."""
    settings = read_deepspeed(config.deepspeed)
    if is_reshaped:
        settings["checkpoint"] = {"load_universal": True}
    micro_batch = config.micro_batch_size or config.batch_size // world_size
    if config.batch_size % (micro_batch * world_size):
        raise ValueError(
            f"batch_size {config.batch_size} must be a multiple of micro_batch_size {micro_batch} x "
            f"{world_size} processes"
        )
    return TrainingArguments(
        output_dir=str(out_dir / "checkpoints"),
        deepspeed=settings,
        use_cpu=not torch.cuda.is_available(),
        bf16=config.chosen_precision == "bf16",
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


def export(trainer: OrderedTrainer, model: OverTokens, processor: Processor, out_dir: Path) -> None:
    """Write the trained model, gathered from all processes where ZeRO-3 has split it, to out_dir/weights, and
    its adapters, where it has some, to out_dir/adapter. Every process calls."""
    config, state, engine = trainer.config, None, trainer.model_wrapped
    if isinstance(engine, deepspeed.DeepSpeedEngine) and engine.zero_optimization_stage() == 3:
        state = trainer.accelerator.get_state_dict(engine)
    show_tower(model)
    if not trainer.is_world_process_zero():
        return
    if state is not None:
        tower = model.model.vision_tower.state_dict()
        state |= {f"model.vision_tower.{name}": tensor for name, tensor in tower.items()}
    if config.lora_rank is not None:
        state, lora = state or model.state_dict(), (config.lora_rank, config.lora_alpha)
        save_adapter(state, out_dir / "adapter", config.init, *lora, config.lora_dropout)
        state = merge_lora(state, *lora)
    save(model, processor, out_dir / "weights", config.chosen_template, state)


def describe_recipe(config: LlavaConfig, trained: list[str]) -> dict:
    """What the result says of how it was trained."""
    names = ("stage", "loss_average", "grouping", "pack_length", "compile")
    chosen = {name: getattr(config, name) for name in names} | {"precision": config.chosen_precision}
    start = {"source": config.init, "revision": hub.commit_of(hub.place(config.init))}
    return {**chosen, "template": config.chosen_template, "trained": trained, "init": start}


def train(config: LlavaConfig, out_dir: Path) -> dict:
    # ---- setup
    if (out_dir / RESULT).is_file():  # killed between its last step and its end
        remove_checkpoints(out_dir / "checkpoints")
        return json.loads((out_dir / RESULT).read_text())
    prepare_process()
    world_size = int(os.environ["WORLD_SIZE"])
    journal = Journal(out_dir, config.trackers, config, is_main=is_first_process())

    # ---- data, before the model is built
    tower_config, processor = open_start(config)
    if config.framework == "llava_next":
        pictures = open_views(config, tower_config, views_of(processor), out_dir)
        num_image_tokens = pictures.num_tokens
    else:
        pictures = open_pictures(config, tower_config, processor.image_processor, out_dir)
        num_image_tokens = tower_config.num_tokens
    dataset = read_dataset(config, num_image_tokens, processor.tokenizer, pictures, out_dir)
    start = hub.place(config.init) if config.stage == 1 else ROOT / config.init
    check_positions(start, int(dataset.lengths.max()))
    num_steps = max(1, round(config.num_epochs * len(dataset) / config.batch_size))
    order = training_order(
        dataset.lengths,
        config.batch_size,
        num_steps,
        config.seed,
        grouping=config.grouping,
        has_picture=dataset.has_picture,
    )

    steps_of = describe_steps(order, len(dataset), dataset.report.sha256)
    checkpoint = last_checkpoint(out_dir / "checkpoints")
    mark = read_mark(checkpoint, world_size)
    mark.check_data(steps_of, out_dir)
    make_batch = partial(
        collate,
        pictures=pictures,
        pad_id=processor.tokenizer.pad_token_id,
        length_multiple=config.length_multiple,
        pack_length=config.pack_length,
    )

    # ---- model
    torch.manual_seed(config.seed)
    model = load_model(config, tower_config, processor)
    settings = read_deepspeed(config.deepspeed)
    choose_attention(model, config, settings and settings["zero_optimization"]["stage"])
    if config.pack_length is not None and not config.compile:  # which would compile every mix of lengths anew
        attend_within_samples(model)
    trained = freeze(model, config)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if config.compile:
        compile_blocks(model)

    # ---- loop: Trainer under DeepSpeed, from the last complete checkpoint
    is_reshaped = config.deepspeed is not None and mark.processes != world_size
    arguments = training_arguments(config, out_dir, num_steps, world_size, is_reshaped)
    if is_reshaped:
        make_universal(checkpoint)
    report = StageReport(journal, config.batch_size, world_size, mark.seconds, steps_of)
    tower = hide_tower(model)
    trainer = OrderedTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        order=order,
        config=config,
        is_reshaped=is_reshaped,
        data_collator=make_batch,
        callbacks=[report],
    )
    trainer.remove_callback(PrinterCallback)
    check_engine(trainer, config.deepspeed)
    if pictures.needs_tower:
        tower.to(trainer.args.device)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    engine = describe_engine(trainer)
    journal.close()

    # ---- save
    export(trainer, model, processor, out_dir)
    result = {
        **describe_recipe(config, trained),
        "num_steps": num_steps,
        "samples_seen": num_steps * config.batch_size,
        "training_loss": mean_loss(trainer.state.log_history),
        "seconds": round(report.seconds(), 2),
        "processes": world_size,
        "deepspeed": engine,
        "encoder": describe_tower(config, model),
        "data": describe_data(dataset, pictures, config),
    }
    if trainer.is_world_process_zero():
        write_json(out_dir / RESULT, result)
        remove_checkpoints(out_dir / "checkpoints")
    wait_for_all()  # no process says it is done before the files are there
    return result


if __name__ == "__main__":
    main(LlavaConfig, train)
