"""Stage: train the demo's small Llama from scratch, without a picture.

`python -m llava_bridge.train_llm <config.yaml> <out_dir>` writes out_dir/weights (fp16 safetensors,
tokenizer, card.yaml). It reads captions first (`lessons`, then the corpus): a picture's caption takes the
picture's place in the first question. Then it reads scenes laid out in cells (`cells`), which stand where a
picture's tokens will stand. The prompt format is stage 2's own (`vicuna_v1`), the loss is on all words, and
once more on answers.
"""

import time
from collections.abc import Callable, Iterable
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
from llava_bridge.config import LlamaShape, TrainLlmConfig
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
    token_losses: Callable[[dict[str, Tensor]], Tensor],
    batch: dict[str, Tensor],
    precision: str,
    text_weight: float,
) -> dict[str, Tensor]:
    """loss = answers + text_weight * text: mean cross entropy of the supervised tokens, and of all words.

    Answers alone are a token or two of every hundred; from all words a model learns to look back far sooner.
    """
    is_text, is_answer = batch["is_text"][:, 1:], (batch["labels"][:, 1:] != IGNORE).float()
    with autocast(precision, batch["input_ids"].device.type):
        nll = token_losses(batch)
    answers, text = (nll * is_answer).sum() / is_answer.sum(), (nll * is_text).sum() / is_text.sum()
    return {"loss": answers + text_weight * text, "answers": answers, "text": text}


def predict(model: LlamaForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Logits (B L-1 V, float32) of every token but the first. Padding is on the right: causality hides it.
    Where the batch has cells, the model reads them in place of the placeholders."""
    if "word_ids" in batch:
        inputs = {"inputs_embeds": embed_cells(model.get_input_embeddings().weight, batch)}
    else:
        inputs = {"input_ids": batch["input_ids"]}
    return model(**inputs, use_cache=False).logits[:, :-1].float()


def next_token_losses(model: LlamaForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Cross entropy of every token but the first, B L-1."""
    logits = predict(model, batch)
    return F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")


@torch.no_grad()
def evaluate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterable[dict[str, Tensor]],
    precision: str,
) -> dict[str, float]:
    """Loss per supervised token and the share of them that greedy decoding gets right: all of them, and
    those that are an option's letter (chance 1/4) or Yes/No (chance 1/2)."""
    kinds = {"letter": ["A", "B", "C", "D"], "yes_no": ["Yes", "No"]}
    kinds = {
        kind: torch.tensor(tokenizer.convert_tokens_to_ids(words), device=model.device)
        for kind, words in kinds.items()
    }
    losses, targets, predictions = [], [], []
    for batch in batches:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with autocast(precision, model.device.type):
            logits = predict(model, batch)
        labels = batch["labels"][:, 1:]
        logits, labels = logits[labels != IGNORE], labels[labels != IGNORE]
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
    free_losses = partial(next_token_losses, model)  # of too many lengths to compile
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
        token_losses = corpus_losses if course.reads_corpus(step) else free_losses
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
    held_out = course.held_out(tokenizer.pad_token_id)
    scores = {
        f"{kind}{name}": score
        for kind, batches in held_out.items()
        for name, score in evaluate(model.eval(), tokenizer, batches, course.config.precision).items()
    }
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
