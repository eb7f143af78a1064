"""Stage: train the demo's small Llama from scratch, on text alone.

`python -m llava_bridge.train_llm <config.yaml> <out_dir>` writes out_dir/weights (fp16 safetensors,
tokenizer, card.yaml). The corpus gives it captions and reading: a picture's caption takes the picture's
place in the first question, so stage 2 only has to teach it to read the picture instead. The prompt format
is stage 2's own (`vicuna_v1`), the loss is on all tokens, and once more on answers.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from encoder.data.scenes.text import VOCABULARY
from encoder.runtime import checkpoint
from encoder.runtime.card import write_card
from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device
from encoder.runtime.trackers import Journal
from encoder.training.finite import FiniteSteps
from encoder.training.optim import MuonWithAdamW, autocast, build_adamw, update
from llava_bridge.batches import collate
from llava_bridge.config import LlamaShape, TrainLlmConfig
from llava_bridge.data import DataReport, LlavaDataset, read_records, training_order
from llava_bridge.demo_llm.lessons import ask_for_words, build_lessons, draw_lessons
from llava_bridge.demo_llm.tokenizer import build_tokenizer
from llava_bridge.prompt import IGNORE, encode_conversations

LENGTH_STEP = 128  # tokens


def build_llama(shape: LlamaShape, tokenizer: PreTrainedTokenizerBase, attention: str) -> LlamaForCausalLM:
    """A Llama with random weights for this tokenizer."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_heads,
            initializer_range=shape.width**-0.5,  # 0.02 suits widths of thousands
            intermediate_size=shape.mlp_width,
            max_position_embeddings=shape.max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation=attention,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        )
    )


def build_optimiser(model: LlamaForCausalLM, config: TrainLlmConfig) -> torch.optim.AdamW | MuonWithAdamW:
    """AdamW, or Muon on the blocks' matrices where the config gives its rate."""
    if config.muon_lr is None:
        return build_adamw(model, config.optim)
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return MuonWithAdamW(matrices, rest, config.optim, config.muon_lr)


def read_corpus(config: TrainLlmConfig, tokenizer: PreTrainedTokenizerBase) -> LlavaDataset:
    """Every row of the corpus, tokenised in its own template: conversations in `vicuna_v1`, bare text in
    `plain`."""
    records = read_records([ROOT / path for path in config.corpus])
    draw = random.Random(config.seed)
    records = [ask_for_words(row) if draw.random() < config.free_answer_fraction else row for row in records]
    encoded: list = [None] * len(records)
    for template, is_text in (("vicuna_v1", False), ("plain", True)):
        rows = [i for i, record in enumerate(records) if ("text" in record) == is_text]
        samples = encode_conversations(
            [records[i] for i in rows], template, tokenizer, 0, config.shape.max_length
        )
        for i, sample in zip(rows, samples, strict=True):
            encoded[i] = sample
    report = DataReport.of_whole(records)
    dataset = LlavaDataset(encoded, [None] * len(records), report)
    num_unknown = int((dataset.input_ids == tokenizer.unk_token_id).sum())
    if num_unknown:
        raise ValueError(
            f"{num_unknown} of the corpus's {len(dataset.input_ids)} tokens are not in the vocabulary; "
            "add their words to encoder.data.scenes.wording"
        )
    return dataset


def train_step(
    token_losses: Callable[[Tensor], Tensor], batch: dict[str, Tensor], precision: str, text_weight: float
) -> dict[str, Tensor]:
    """loss = answers + text_weight * text: mean cross entropy of the supervised tokens, and of all tokens.

    Answers alone are a token or two of every hundred; from all tokens a model learns to look back far sooner.
    """
    is_text, is_answer = batch["attention_mask"][:, 1:], (batch["labels"][:, 1:] != IGNORE).float()
    with autocast(precision, batch["input_ids"].device.type):
        nll = token_losses(batch["input_ids"])
    answers, text = (nll * is_answer).sum() / is_answer.sum(), (nll * is_text).sum() / is_text.sum()
    return {"loss": answers + text_weight * text, "answers": answers, "text": text}


def next_token_losses(model: LlamaForCausalLM, input_ids: Tensor) -> Tensor:
    """Cross entropy of every token but the first, B L-1. Padding is on the right: causality hides it."""
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")


def round_up_length(batch: dict[str, Tensor], pad_id: int) -> dict[str, Tensor]:
    """The batch with its length rounded up to a multiple of `LENGTH_STEP`: few shapes, each compiled once."""
    short = -batch["input_ids"].shape[1] % LENGTH_STEP
    fill = {"input_ids": pad_id, "labels": IGNORE, "attention_mask": 0}
    return {name: F.pad(tensor, (0, short), value=fill[name]) for name, tensor in batch.items()}


@torch.no_grad()
def evaluate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    dataset: LlavaDataset,
    rows: list[int],
    config: TrainLlmConfig,
) -> dict[str, float]:
    """Loss per supervised token and the share of them that greedy decoding gets right: all of them, and
    those that are an option's letter (chance 1/4) or Yes/No (chance 1/2)."""
    kinds = {"letter": ["A", "B", "C", "D"], "yes_no": ["Yes", "No"]}
    kinds = {
        kind: torch.tensor(tokenizer.convert_tokens_to_ids(words), device=model.device)
        for kind, words in kinds.items()
    }
    losses, targets, predictions = [], [], []
    for start in range(0, len(rows), config.batch_size):
        samples = [dataset[i] for i in rows[start : start + config.batch_size]]
        batch = collate(samples, None, tokenizer.pad_token_id)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with autocast(config.precision, model.device.type):
            logits = model(batch["input_ids"], batch["attention_mask"]).logits.float()
        labels = batch["labels"][:, 1:]
        logits, labels = logits[:, :-1][labels != IGNORE], labels[labels != IGNORE]
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
        targets.append(labels)
        predictions.append(logits.argmax(-1))
    targets, is_right = torch.cat(targets), torch.cat(predictions) == torch.cat(targets)
    scores = {"loss": torch.cat(losses).mean().item(), "token_accuracy": is_right.float().mean().item()}
    for kind, ids in kinds.items():
        asked = is_right[torch.isin(targets, ids)]
        if len(asked):
            scores[f"{kind}_accuracy"] = asked.float().mean().item()
    return {**scores, "num_tokens": len(targets)}


@dataclass(frozen=True, slots=True)
class Course:
    """What is trained on, step by step: lessons, then rows of the corpus, of which the last are held out."""

    corpus: LlavaDataset
    num_train: int  # rows
    order: list[int]  # of these, batch after batch
    lessons: LlavaDataset | None  # None without num_lesson_steps
    config: TrainLlmConfig

    @property
    def num_steps(self) -> int:
        return self.config.num_lesson_steps + self.config.num_steps

    def is_lesson(self, step: int) -> bool:
        return step < self.config.num_lesson_steps

    def batch(self, step: int, pad_id: int) -> dict[str, Tensor]:
        """The padded rows of a step; those of the corpus to few lengths, see `round_up_length`."""
        config = self.config
        if self.is_lesson(step):
            rows = draw_lessons(
                len(self.lessons), step, config.num_lesson_steps, config.lesson_batch_size, config.seed
            )
            return collate([self.lessons[i] for i in rows], None, pad_id)
        start = (step - config.num_lesson_steps) * config.batch_size
        rows = self.order[start : start + config.batch_size]
        return round_up_length(collate([self.corpus[i] for i in rows], None, pad_id), pad_id)


def plan_course(config: TrainLlmConfig, tokenizer: PreTrainedTokenizerBase) -> Course:
    """The corpus and the lessons, tokenised, in the order that the seed gives.

    Raises: ValueError if no row is left to train on.
    """
    corpus = read_corpus(config, tokenizer)
    num_train = len(corpus) - config.num_held_out
    if num_train <= 0:
        raise ValueError(
            f"num_held_out {config.num_held_out} leaves none of the corpus's {len(corpus)} rows to train on"
        )
    order = training_order(corpus.lengths[:num_train], config.batch_size, config.num_steps, config.seed)
    lessons = None
    if config.num_lesson_steps:
        records = read_records([ROOT / path for path in config.corpus])[:num_train]
        lessons = build_lessons(records, tokenizer, config.seed)
    return Course(corpus, num_train, order, lessons, config)


def train(config: TrainLlmConfig, out_dir: Path) -> dict:
    journal = Journal(out_dir, config.trackers, config)

    # ---- data
    tokenizer = build_tokenizer(VOCABULARY)
    course = plan_course(config, tokenizer)
    num_steps = course.num_steps

    # ---- model, optimiser
    torch.manual_seed(config.seed)
    torch.set_flush_denormal(True)  # denormal numbers slow a CPU many times over
    device = require_device(config.device)
    model = build_llama(config.shape, tokenizer, config.attention).to(device)
    optimiser = build_optimiser(model, config)
    lesson_losses = partial(next_token_losses, model)  # of too many lengths to compile
    corpus_losses = partial(next_token_losses, model)
    if config.compile:
        corpus_losses = torch.compile(corpus_losses, dynamic=False)

    # ---- resume
    path, first_step, seconds = out_dir / "checkpoint.pt", 0, 0.0
    finite = FiniteSteps(config.skip_non_finite)
    if newest := checkpoint.newest(path):
        state = checkpoint.load(newest)
        finite.skipped = state.get("skipped", 0)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first_step, seconds = state["step"], state["seconds"]
    started = time.monotonic() - seconds

    # ---- loop
    for step in range(first_step, num_steps):
        batch = course.batch(step, tokenizer.pad_token_id)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        token_losses = lesson_losses if course.is_lesson(step) else corpus_losses
        terms = train_step(token_losses, batch, config.precision, config.text_weight)
        grad_norm = update(optimiser, terms["loss"], config.optim, step, num_steps, finite=finite)
        done = step + 1
        if done % config.log_steps == 0 or done == num_steps:
            rate = (done - first_step) / (time.monotonic() - started - seconds)
            scalars = {name: value.item() for name, value in terms.items()}
            journal.write(done, num_steps, **scalars, grad_norm=grad_norm, steps_per_second=rate)
        if done % config.checkpoint_steps == 0 or done == num_steps:
            state = {"step": done, "seconds": time.monotonic() - started, "skipped": finite.skipped}
            state |= {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            checkpoint.save(path, state, keep=config.keep_checkpoints)

    # ---- evaluate, export
    journal.close()
    return export(model, tokenizer, course, time.monotonic() - started, out_dir / "weights")


def export(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    course: Course,
    seconds: float,
    folder: Path,
) -> dict:
    """Score the model on the rows held out and write it (fp16) with its tokenizer and card; the scores."""
    held_out = list(range(course.num_train, len(course.corpus)))
    scores = evaluate(model.eval(), tokenizer, course.corpus, held_out, course.config)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_card(
        folder,
        what="a small Llama that speaks Scenes",
        stage="llava_bridge.train_llm",
        config=course.config,
        seconds=seconds,
        scores=scores,
    )
    return scores
