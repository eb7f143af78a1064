"""How fast the LLaVA bridge trains and answers: `python bench/llava.py` prints a table and writes
results/bench/llava.json, and beside it llava_load.json with the rows load/<n>_ranks (memory at loading, see
`_loading.py`), llava_records.json with records/<found|made> (memory of the records, see `_records.py`) and
llava_next.json with next/... (LLaVA-NeXT's views, see `_next_steps.py`); `python bench/llava.py load`,
`... records` and `... next` run these alone.

The demo's encoder and Llama on one thread, in processor time. Lengths of the packing rows are drawn like the
665k mix, a quarter as long: 16 picture tokens and a lognormal text (median 60 tokens, sigma 0.9, at most
496). Padded rows come twice, both by our own padded path: 16 samples drawn at random, as transformers does
unless told otherwise and LLaVA in its first stage, and 16 of similar length out of 64, as LLaVA does in its
second (out of 128).
"""

from __future__ import annotations

import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from _llava_steps import MICRO_BATCH, REPEATS, Tokens, draw_samples, loss_rows, packing_rows, train
from _loading import loading_rows
from _next_steps import next_rows
from _records import record_rows
from _table import ROOT, Row, make_row, peak_bytes, publish, seconds
from PIL import Image

import llava_bridge.hf  # noqa: F401 - registers the tower
from encoder.runtime.config import choose
from llava_bridge.batches import collate
from llava_bridge.labels import IGNORE
from llava_bridge.lmms import LlavaLmms
from llava_bridge.model import LlavaOverTokens, build, save
from llava_bridge.prompt import SYSTEM

_ALONE = dict.fromkeys(("load", "records", "next"))  # parts that can be run alone
ENCODER, LLAMA = "ov3-demo", ROOT / "weights" / "demo" / "llama"
NUM_QUESTIONS, NEW_TOKENS = 32, 8


def training_rows(model: LlavaOverTokens) -> list[Row]:
    """Packed against padded rows, cached against live tower, supervised positions against all."""
    config = model.config
    pictures = Tokens(torch.randn(1, config.image_seq_length, config.vision_config.hidden_size))
    samples = draw_samples(config.image_token_index, config.image_seq_length, config.text_config.vocab_size)
    rows = packing_rows(model, samples, pictures)
    samples = samples[:MICRO_BATCH]
    num_answers = sum(int((sample.labels != IGNORE).sum()) for sample in samples)
    padded = collate(samples, pictures, 0)

    size = config.vision_config.image_size
    live = collate(samples, None, 0) | {"pixel_values": torch.rand(MICRO_BATCH, 3, size, size)}
    works = {
        "cached": lambda: train(model, [padded], num_answers),
        "live": lambda: train(model, [live], num_answers),
    }
    times = seconds(works, repeats=REPEATS, clock=time.process_time)
    note = f"the demo's VAE and encoder at {size} px; baseline: the tower runs at every step"
    rows.append(make_row("train_cached", "samples/s", *(MICRO_BATCH / times[name] for name in works), note))

    plain = dict(padded)
    ours = peak_bytes(lambda: train(model, [padded], num_answers))

    def all_logits() -> None:
        features = model.model.multi_modal_projector(plain["image_tokens"])
        pictures_ = {"image": SimpleNamespace(pooler_output=list(features))}
        inputs = {name: tensor for name, tensor in plain.items() if name != "image_tokens"}
        model.plain.forward(model, **inputs, mm_encoder_outputs=pictures_, use_cache=False).loss.backward()
        model.zero_grad()

    note = f"a vocabulary of {config.text_config.vocab_size}; baseline: transformers' loss on all positions"
    mb = [value / 2**20 for value in (ours, peak_bytes(all_logits))]
    return [*rows, make_row("memory/train_step", "MiB", *mb, note, higher_is_better=False)]


def generation_row(folder: Path) -> Row:
    """Our model object at batch 16 against lmms-eval's own wrapper, which takes one question at a time."""
    if find_spec("decord") is None:  # the wrapper imports it, for videos alone; it is not among our packages
        sys.modules["decord"] = videos = ModuleType("decord")
        videos.VideoReader = videos.cpu = None
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
    wanted = sys.argv[1:] or list(_ALONE)
    for name in wanted:
        choose(_ALONE, name, "part of bench/llava.py")
    if "load" in wanted:
        publish("llava_load", loading_rows(), setting="one thread a process, gloo, fp32")
    if "records" in wanted:
        publish("llava_records", record_rows(), setting="one thread a process")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if "next" in wanted:
        publish("llava_next", next_rows(ENCODER, LLAMA), setting="one thread, fp32")
    if sys.argv[1:]:
        return
    model, processor = build(ENCODER, None, LLAMA, "sdpa", seed=0)
    model.model.vision_tower.requires_grad_(False)
    rows = training_rows(model.train()) + loss_rows()
    with tempfile.TemporaryDirectory() as folder:
        save(model, processor, Path(folder))
        rows.append(generation_row(Path(folder)))
    publish("llava", rows, setting="one thread, fp32")


if __name__ == "__main__":
    sys.exit(main())
