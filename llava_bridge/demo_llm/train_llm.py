"""Stage: train the demo's small Llama from scratch, without a picture.

`python -m llava_bridge.train_llm <config.yaml> <out_dir>` writes out_dir/weights (fp16 safetensors,
tokenizer, card.yaml). It reads scenes laid out in cells (`cells`), which stand where a picture's tokens will
stand, in phases (`course`). The prompt format is stage 2's own (`vicuna_v1`), captions are written as stage
1 has them, and the loss is on all words, and once more on answers.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from encoder.data.scenes.objects import COLORS, COLUMNS, KINDS, ROWS, SIGN_WORDS, SIZES
from encoder.data.scenes.text import VOCABULARY
from encoder.data.scenes.wording import NUMBERS
from encoder.runtime import checkpoint
from encoder.runtime.card import write_card
from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device
from encoder.runtime.trackers import Journal
from encoder.training.finite import FiniteSteps
from encoder.training.optim import MuonWithAdamW, autocast, build_adamw, update
from llava_bridge.config import CAPTION, LlamaShape, TrainLlmConfig
from llava_bridge.demo_llm.cells import embed_cells
from llava_bridge.demo_llm.course import Course, plan_course
from llava_bridge.demo_llm.tokenizer import build_tokenizer
from llava_bridge.prompt import IGNORE


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


def start(config: TrainLlmConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """The model that training starts from: `init`'s weights, or random ones.

    Raises: ValueError if `init` has another shape or vocabulary.
    """
    model = build_llama(config.shape, tokenizer, config.attention)
    if config.init is None:
        return model
    begun = LlamaForCausalLM.from_pretrained(ROOT / config.init, dtype=torch.float32)
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    ):
        there, here = getattr(begun.config, name), getattr(model.config, name)
        if there != here:
            raise ValueError(
                f"the Llama in init {config.init} has {name} {there}, this config asks for {here}; "
                "give its shape, or train it anew with today's vocabulary"
            )
    model.load_state_dict(begun.state_dict())
    return model


def build_optimiser(model: LlamaForCausalLM, config: TrainLlmConfig) -> torch.optim.AdamW | MuonWithAdamW:
    """AdamW, or Muon on the blocks' matrices where the config gives its rate."""
    if config.muon_lr is None:
        return build_adamw(model, config.optim)
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return MuonWithAdamW(matrices, rest, config.optim, config.muon_lr)


def train_step(
    model: LlamaForCausalLM, batch: Mapping[str, Tensor], precision: str, text_weight: float
) -> dict[str, Tensor]:
    """loss = answers + text_weight * text: mean cross entropy of the supervised tokens, and of all words.

    Answers alone are a token or two of every hundred; from all words a model learns to look back far sooner.
    """
    is_text, is_answer = batch["is_text"][:, 1:], (batch["labels"][:, 1:] != IGNORE).float()
    with autocast(precision, batch["input_ids"].device.type):
        nll = next_token_losses(model, batch)
    answers, text = (nll * is_answer).sum() / is_answer.sum(), (nll * is_text).sum() / is_text.sum()
    return {"loss": answers + text_weight * text, "answers": answers, "text": text}


def predict(model: LlamaForCausalLM, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (B L-1 V, float32) of every token but the first; the model reads cells in place of the
    placeholders. Padding is on the right: causality hides it."""
    read = embed_cells(model.get_input_embeddings().weight, batch)
    return model(inputs_embeds=read, use_cache=False).logits[:, :-1].float()


def next_token_losses(model: LlamaForCausalLM, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross entropy of every token but the first, B L-1."""
    logits = predict(model, batch)
    return F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")


def caption_words(tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """The ids of the words that tell what a scene holds, by what they tell. (left and right, which name
    columns, are said of relations too.)"""
    words = {
        "sign": SIGN_WORDS,
        "number": NUMBERS[1:],
        "kind": KINDS,
        "color": COLORS,
        "size": SIZES,
        "row": ROWS,
        "column": COLUMNS,
    }
    return {name: torch.tensor(tokenizer.convert_tokens_to_ids(list(each))) for name, each in words.items()}


@torch.no_grad()
def evaluate(
    model: LlamaForCausalLM,
    batches: Iterable[dict[str, Any]],
    precision: str,
    words: Mapping[str, Tensor],
) -> dict[str, float]:
    """Loss per supervised token, the share of them that greedy decoding gets right, and by topic the share of
    answers that it gets right to the last word. Of captions and descriptions, whose wording is free, the
    share of each kind of `words` (`caption_words`): what stage 1 can teach a projector is what they say
    rightly of clear cells."""
    losses, hits, answered = [], [], defaultdict(list)
    for batch in batches:
        topics = batch.pop("topics")
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with autocast(precision, model.device.type):
            logits = predict(model, batch)
        labels = batch["labels"][:, 1:]
        is_answer, is_right = labels != IGNORE, logits.argmax(-1) == labels
        losses.append(F.cross_entropy(logits[is_answer], labels[is_answer], reduction="none"))
        hits.append(is_right[is_answer])
        for row, names in enumerate(topics):
            if names[0] in (CAPTION, "description"):
                for name, ids in words.items():
                    answered[f"{name}_in_captions"] += is_right[row, torch.isin(labels[row], ids)].tolist()
                continue
            for name, answer in zip(names, answer_spans(labels[row]), strict=True):
                answered[name].append(bool(is_right[row, answer].all()))
    loss, accuracy = torch.cat(losses).mean().item(), torch.cat(hits).float().mean().item()
    accuracies = {
        f"{name}_accuracy": sum(each) / len(each) for name, each in sorted(answered.items()) if each
    }
    return {"loss": loss, "token_accuracy": accuracy, **accuracies, "num_tokens": sum(map(len, hits))}


def answer_spans(labels: Tensor) -> list[slice]:
    """Where the answers stand in a conversation's labels (L)."""
    is_answer = F.pad((labels != IGNORE).int(), (1, 1))
    edges = is_answer.diff()
    begins, ends = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
    return [slice(begin, end) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


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
    model = start(config, tokenizer).to(device)
    optimiser = build_optimiser(model, config)

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
        terms = train_step(model, batch, config.precision, config.text_weight)
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
    words = {name: ids.to(model.device) for name, ids in caption_words(tokenizer).items()}
    scores = evaluate(model.eval(), course.scored(tokenizer.pad_token_id), course.config.precision, words)
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
