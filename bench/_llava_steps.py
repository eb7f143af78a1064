"""Training steps behind bench/llava.py: packed rows against padded ones, and the loss in parts against logits
of all positions."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
from _table import Row, make_row, peak_bytes, seconds
from torch.nn.functional import cross_entropy

from llava_bridge.batches import Sample, collate
from llava_bridge.labels import IGNORE
from llava_bridge.loss import summed_loss
from llava_bridge.model import LlavaOverTokens
from llava_bridge.packing import PER_SAMPLE

NUM_SAMPLES, MICRO_BATCH, PACK_LENGTH = 64, 16, 2048
LOSS_POSITIONS, LOSS_WIDTH, LOSS_VOCAB, LOSS_PART = 1024, 256, 32_000, 2**22  # a sixteenth of MAX_LOGITS
REPEATS = 3


class Tokens:
    """Cached tokens under any name, as `CachedPictures` gives them."""

    broken = ()

    def __init__(self, tokens: torch.Tensor):
        self.tokens = tokens  # 1 N D

    def inputs(self, names: list[str]) -> dict[str, torch.Tensor]:
        return {"image_tokens": self.tokens.expand(max(1, len(names)), -1, -1)}


def draw_samples(image_id: int, num_image_tokens: int, vocab_size: int) -> list[Sample]:
    """Samples with the lengths that the module's docstring states; the last third of each is its answer."""
    draw = np.random.default_rng(0)
    samples = []
    for _ in range(NUM_SAMPLES):
        length = int(min(496, max(12, draw.lognormal(np.log(60), 0.9))))
        ids = torch.from_numpy(draw.integers(5, vocab_size, num_image_tokens + length))
        ids[:num_image_tokens] = image_id
        labels = torch.full_like(ids, IGNORE)
        labels[-(length // 3) :] = ids[-(length // 3) :]
        samples.append(Sample(ids, labels, "picture"))
    return samples


def train(model: LlavaOverTokens, batches: list[dict], num_tokens: int) -> None:
    """Forward and backward of every batch, as one step."""
    for batch in batches:
        model(**batch, num_items_in_batch=num_tokens).loss.backward()
    model.zero_grad()


def packing_rows(model: LlavaOverTokens, samples: list[Sample], pictures: Tokens) -> list[Row]:
    """Packed rows against padded ones, and attention per sample against the mask of whole rows."""
    language_model = model.model.language_model
    num_tokens = sum(len(sample.input_ids) for sample in samples)
    num_answers = sum(int((sample.labels != IGNORE).sum()) for sample in samples)
    by_length = sorted(samples, key=lambda sample: len(sample.input_ids))

    def batches(samples: list[Sample], **options) -> list[dict]:
        return [
            collate(samples[i : i + MICRO_BATCH], pictures, 0, **options)
            for i in range(0, NUM_SAMPLES, MICRO_BATCH)
        ]

    packed = batches(samples, pack_length=PACK_LENGTH)
    rows_of = {"packed": packed, "random": batches(samples), "grouped": batches(by_length), "masked": packed}

    def attend(kind: str) -> None:
        language_model.set_attn_implementation(PER_SAMPLE if kind == "packed" else "sdpa")

    def step(kind: str) -> None:
        attend(kind)
        train(model, rows_of[kind], num_answers)

    losses = {}
    for kind, rows in rows_of.items():
        attend(kind)
        with torch.no_grad():
            losses[kind] = sum(model(**row, num_items_in_batch=num_answers).loss.item() for row in rows)
    times = seconds({kind: partial(step, kind) for kind in rows_of}, repeats=REPEATS, clock=time.process_time)
    attend("random")
    places = {kind: sum(row["input_ids"].numel() for row in rows) for kind, rows in rows_of.items()}
    what = {
        "random": ("train_packed", f"padded to the longest of {MICRO_BATCH} drawn at random"),
        "grouped": ("train_packed/grouped", f"padded to the longest of {MICRO_BATCH} of similar length"),
        "masked": ("train_packed/per_sample", "in the same rows under transformers' mask of whole rows"),
    }
    table = []
    for kind, (name, baseline) in what.items():
        note = f"rows of {PACK_LENGTH}: {num_tokens} tokens in {places['packed']} places against "
        note += f"{places[kind]} {baseline}; losses differ by {abs(losses[kind] - losses['packed']):.1e}"
        table.append(make_row(name, "tokens/s", num_tokens / times["packed"], num_tokens / times[kind], note))
    return table


def loss_rows() -> list[Row]:
    """The loss in parts against logits of all positions, a third of which is supervised."""
    torch.manual_seed(0)
    head = torch.nn.Linear(LOSS_WIDTH, LOSS_VOCAB, bias=False)
    hidden = torch.randn(LOSS_POSITIONS, LOSS_WIDTH, requires_grad=True)
    targets = torch.randint(LOSS_VOCAB, (LOSS_POSITIONS,))
    is_supervised = torch.arange(LOSS_POSITIONS) % 3 == 0
    labels = targets.masked_fill(~is_supervised, IGNORE)

    def everywhere() -> None:
        cross_entropy(head(hidden).float(), labels, reduction="sum", ignore_index=IGNORE).backward()
        head.zero_grad()

    def supervised(max_logits: int | None = None) -> None:
        summed_loss(head, hidden[is_supervised], targets[is_supervised], max_logits).backward()
        head.zero_grad()

    works = {"parts": partial(supervised, LOSS_PART), "supervised": supervised, "all": everywhere}
    times = seconds(works, repeats=REPEATS, clock=time.process_time)
    mb = {name: peak_bytes(work) / 2**20 for name, work in works.items()}
    setting = f"{LOSS_POSITIONS} positions, a third supervised, width {LOSS_WIDTH}, vocabulary {LOSS_VOCAB}; "
    setting += f"{LOSS_PART // LOSS_VOCAB} supervised positions at a time against logits of all; in one go "
    rates = {name: LOSS_POSITIONS / time_ for name, time_ in times.items()}
    memory_note = setting + f"{mb['supervised']:.4g} MiB"
    rate_note = setting + f"{rates['supervised']:.4g} positions/s"
    return [
        make_row("memory/loss", "MiB", mb["parts"], mb["all"], memory_note, higher_is_better=False),
        make_row("train_loss", "positions/s", rates["parts"], rates["all"], rate_note),
    ]
