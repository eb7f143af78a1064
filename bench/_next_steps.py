"""LLaVA-NeXT's rows of bench/llava.py: a training step on cached tokens or latents of views against live
ones, and views cut from pictures against transformers' processor."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from _llava_steps import REPEATS, draw_samples, train
from _table import Row, make_row, seconds
from PIL import Image

from llava_bridge.any_resolution.model import views_of
from llava_bridge.batches import collate
from llava_bridge.config import TILES
from llava_bridge.labels import IGNORE
from llava_bridge.model import build

NUM_PICTURES, PICTURE_SIZE = 8, (128, 128)  # twice the demo's tower: a whole and 2 x 2 tiles
PHOTOGRAPH = (480, 640)


def next_rows(encoder: str, llama: Path) -> list[Row]:
    """The rows `next/...`, in processor time."""
    model, processor = build(encoder, None, llama, "sdpa", seed=0, tiles=TILES)
    model.model.vision_tower.requires_grad_(False)
    views, tower = views_of(processor), model.model.vision_tower.encoder
    num_tokens, num_views = views.num_tokens(PICTURE_SIZE), views.num_views(PICTURE_SIZE)
    vocab = model.config.text_config.vocab_size
    samples = draw_samples(model.config.image_token_index, num_tokens, vocab)[:NUM_PICTURES]
    num_answers = sum(int((sample.labels != IGNORE).sum()) for sample in samples)
    length = sum(len(sample.input_ids) for sample in samples)
    text = collate(samples, None, 0) | {"image_sizes": torch.tensor([PICTURE_SIZE] * NUM_PICTURES)}
    pixels = torch.rand(NUM_PICTURES * num_views, 3, views.side, views.side)
    batches = {
        "cached": text | {"image_tokens": tower.encode(pixels)},
        "latents": text | {"pixel_values": tower.latents(pixels)},
        "live": text | {"pixel_values": pixels},
    }
    model.train()
    works = {name: lambda batch=batch: train(model, [batch], num_answers) for name, batch in batches.items()}
    times = seconds(works, repeats=REPEATS, clock=time.process_time)
    note = f"{NUM_PICTURES} samples, {num_views} views of {views.side} px and {num_tokens} tokens a picture; "
    note += "baseline: VAE and ViT run at every step"
    rows = [
        make_row(f"next/train_{name}", "tokens/s", length / times[name], length / times["live"], note)
        for name in ("cached", "latents")
    ]
    return [*rows, _cut_row(processor)]


def _cut_row(processor) -> Row:
    views = views_of(processor)
    draw = np.random.default_rng(0)
    pictures = [
        Image.fromarray(draw.integers(0, 256, (*PHOTOGRAPH, 3), dtype=np.uint8)) for _ in range(NUM_PICTURES)
    ]
    works = {
        "ours": lambda: [torch.from_numpy(views.cut(picture)).float() / 255 for picture in pictures],
        "theirs": lambda: processor.image_processor(pictures, return_tensors="pt"),
    }
    times = seconds(works, repeats=REPEATS, clock=time.process_time)
    note = f"pictures of {PHOTOGRAPH[1]} x {PHOTOGRAPH[0]} to {views.num_views(PHOTOGRAPH)} views of "
    note += f"{views.side} px; baseline: transformers' PIL processor"
    rates = [NUM_PICTURES / times[name] for name in ("ours", "theirs")]
    return make_row("next/cut_views", "pictures/s", *rates, note)
