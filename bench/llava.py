"""How fast the LLaVA bridge trains and answers: `python bench/llava.py` prints a table and writes
results/bench/llava.json.

The demo's encoder and Llama on one thread, in processor time. Lengths of the packing rows are drawn like the
665k mix, a quarter as long: 16 picture tokens and a lognormal text (median 60 tokens, sigma 0.9, at most
496). The batches of the padded rows are drawn at random, as transformers does unless told otherwise.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from _table import ROOT, Row, make_row, peak_bytes, publish, seconds
from PIL import Image

import llava_bridge.hf  # noqa: F401 - registers the tower
from llava_bridge.data import Sample, collate
from llava_bridge.lmms import LlavaLmms
from llava_bridge.model import LlavaOverTokens, build, save
from llava_bridge.prompt import IGNORE, SYSTEM

ENCODER, LLAMA = "ov3-demo", ROOT / "weights" / "demo" / "llama"
NUM_SAMPLES, MICRO_BATCH, PACK_LENGTH, NUM_QUESTIONS, NEW_TOKENS = 32, 16, 512, 32, 8
REPEATS = 3


class Tokens:
    """Cached tokens under any name, as `CachedPictures` gives them."""

    field, broken = "image_tokens", ()

    def __init__(self, tokens: torch.Tensor):
        self.tokens = tokens  # 1 N D

    def stack(self, names: list[str]) -> torch.Tensor:
        return self.tokens.expand(max(1, len(names)), -1, -1)


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


def training_rows(model: LlavaOverTokens) -> list[Row]:
    """Packed against padded rows, cached against live tower, supervised positions against all."""
    config = model.config
    pictures = Tokens(torch.randn(1, config.image_seq_length, config.vision_config.hidden_size))
    samples = draw_samples(config.image_token_index, config.image_seq_length, config.text_config.vocab_size)
    num_tokens = sum(len(sample.input_ids) for sample in samples)
    num_answers = sum(int((sample.labels != IGNORE).sum()) for sample in samples)
    chunks = [samples[i : i + MICRO_BATCH] for i in range(0, NUM_SAMPLES, MICRO_BATCH)]
    padded = [collate(chunk, pictures, 0) for chunk in chunks]
    packed = [collate(chunk, pictures, 0, pack_length=PACK_LENGTH) for chunk in chunks]
    with torch.no_grad():
        losses = [
            sum(model(**b, num_items_in_batch=num_answers).loss for b in rows) for rows in (packed, padded)
        ]
    difference = abs(losses[0] - losses[1]).item()
    works = {
        "packed": lambda: train(model, packed, num_answers),
        "padded": lambda: train(model, padded, num_answers),
    }
    times = seconds(works, repeats=REPEATS, clock=time.process_time)
    slots = [sum(batch["input_ids"].numel() for batch in rows) for rows in (packed, padded)]
    note = f"rows of {PACK_LENGTH}: {num_tokens} tokens in {slots[0]} places against {slots[1]} when padded "
    note += f"to the longest of {MICRO_BATCH}; losses differ by {difference:.1e}"
    rates = [num_tokens / times[name] for name in works]
    rows = [make_row("train_packed", "tokens/s", *rates, note)]

    size = config.vision_config.image_size
    live = collate(samples[:MICRO_BATCH], None, 0) | {"pixel_values": torch.rand(MICRO_BATCH, 3, size, size)}
    works = {
        "cached": lambda: train(model, padded[:1], num_answers),
        "live": lambda: train(model, [live], num_answers),
    }
    times = seconds(works, repeats=REPEATS, clock=time.process_time)
    note = f"the demo's VAE and encoder at {size} px; baseline: the tower runs at every step"
    rows.append(make_row("train_cached", "samples/s", *(MICRO_BATCH / times[name] for name in works), note))

    plain = dict(padded[0])
    ours = peak_bytes(lambda: train(model, [padded[0]], num_answers))

    def all_logits() -> None:
        features = model.model.multi_modal_projector(plain["image_tokens"])
        pictures_ = {"image": SimpleNamespace(pooler_output=list(features))}
        inputs = {name: tensor for name, tensor in plain.items() if name != "image_tokens"}
        super(LlavaOverTokens, model).forward(
            **inputs, mm_encoder_outputs=pictures_, use_cache=False
        ).loss.backward()
        model.zero_grad()

    note = f"a vocabulary of {config.text_config.vocab_size}; baseline: transformers' loss on all positions"
    mb = [value / 2**20 for value in (ours, peak_bytes(all_logits))]
    return [*rows, make_row("memory/train_step", "MiB", *mb, note, higher_is_better=False)]


def generation_row(folder: Path) -> Row:
    """Our model object at batch 16 against lmms-eval's own wrapper, which takes one question at a time."""
    videos = ModuleType("decord")  # the wrapper imports it, for videos alone; it is not among our packages
    videos.VideoReader = videos.cpu = None
    sys.modules.setdefault("decord", videos)
    from lmms_eval.models.simple.llava_hf import LlavaHf

    draw = np.random.default_rng(0)
    docs = [
        {"image": Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8))}
        for _ in range(NUM_QUESTIONS)
    ]
    words = SYSTEM.lower().replace(".", "").split()

    def requests() -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                args=(" ".join(words[: 4 + i % 9]), {"max_new_tokens": NEW_TOKENS, "until": ["\n\n"]},
                      lambda doc: [doc["image"]], i, "task", "test")
            )
            for i in range(NUM_QUESTIONS)
        ]  # fmt: skip

    theirs = LlavaHf(pretrained=str(folder), device_map="cpu", device="cpu", attn_implementation="sdpa")
    theirs.task_dict = {"task": {"test": docs}}

    def ask_ours() -> None:  # a new object each time: no picture is known from the pass before
        ours = LlavaLmms(theirs.model, theirs._image_processor, batch_size=16)
        ours.task_dict = theirs.task_dict
        ours.generate_until(requests())

    theirs.model.generation_config.eos_token_id = None  # both write all of their tokens
    works = {"ours": ask_ours, "theirs": lambda: theirs.generate_until(requests())}
    times = seconds(works, repeats=2, clock=time.process_time)
    rates = [NUM_QUESTIONS / times[name] for name in works]
    note = f"{NUM_QUESTIONS} pictures, up to {NEW_TOKENS} tokens; ours at batch 16, lmms-eval's llava_hf at 1"
    return make_row("generate_batched", "samples/s", *rates, note)


def main() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model, processor = build(ENCODER, None, LLAMA, "sdpa", seed=0)
    model.model.vision_tower.requires_grad_(False)
    rows = training_rows(model.train())
    with tempfile.TemporaryDirectory() as folder:
        save(model, processor, Path(folder))
        rows.append(generation_row(Path(folder)))
    publish("llava", rows, setting="one thread, fp32")


if __name__ == "__main__":
    sys.exit(main())
