"""The heaviest steps of the demo as bench/breakdown.py takes them apart, each beside the form that it had
before: LLaVA's second stage, a step of the diffusion transformer, the scoring of answers, SSIM.

Weights are the demo's or random; sizes are the demo's, and conversations those of its second stage.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from unittest import mock

import torch
from _table import ROOT, Row, Work, make_row, seconds
from PIL import Image
from torch.nn.functional import conv2d

import llava_bridge.hf  # noqa: F401 - registers the tower
from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.conversations import instruct_record, word_prompt
from encoder.data.scenes.wording import DESCRIBE, WORD_PROMPT
from harness.metrics import psnr_ssim
from llava_bridge.attention import WIDE, choose_attention
from llava_bridge.batches import Sample, collate
from llava_bridge.config import LlavaConfig
from llava_bridge.labels import Segment
from llava_bridge.lmms import LlavaLmms
from llava_bridge.model import build
from llava_bridge.prompt import SYSTEM, encode_conversations
from rae_bridge.config import DiTOptimConfig, TrainDiTConfig
from rae_bridge.dit import build_dit
from rae_bridge.shapes import DiTConfig
from rae_bridge.train import build_optimiser, draw_batch, train_step

LLAMA = ROOT / "weights" / "demo" / "llama"
KINDS = {  # of operations, by a part of their names; whatever fits none is element-wise
    "attention": ("scaled_dot_product",),
    "matrix products": ("::mm", "addmm", "bmm", "convolution", "mkldnn"),
    "copies and casts": ("copy_", "aten::cat", "clone", "index"),
}
ELEMENTWISE = "element-wise and the rest"
NUM_ROWS, NUM_DRAWN, FIRST_SCENE, NUM_IMAGE_TOKENS = 32, 256, 12_000, 16  # a batch of the demo's pictures
NUM_QUESTIONS, NUM_OPTIONS = 16, 4
REPEATS = 2


def kinds_of(work: Work) -> dict[str, float]:
    """Share of `work`'s processor time by kind of operation, from torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    spent = dict.fromkeys([*KINDS, ELEMENTWISE], 0.0)
    for event in profile.key_averages():
        kind = next((k for k, parts in KINDS.items() if any(p in event.key for p in parts)), ELEMENTWISE)
        spent[kind] += event.self_cpu_time_total
    return {kind: value / sum(spent.values()) for kind, value in spent.items()}


def compared(name: str, unit: str, count: int, note: str, **works: Work) -> list[Row]:
    """Rates of `now` and `before`, and the milliseconds of each by kind of operation."""
    times = seconds(works, repeats=REPEATS, clock=time.process_time)
    rows = [make_row(name, unit, count / times["now"], count / times["before"], note)]
    shares = {side: kinds_of(work) for side, work in works.items()}
    for kind in [*KINDS, ELEMENTWISE]:
        now, before = (1e3 * times[side] * shares[side][kind] for side in ("now", "before"))
        said = f"{shares['now'][kind]:.0%} of the step, {shares['before'][kind]:.0%} before"
        rows.append(make_row(f"{name}/{kind}", "ms", now, max(before, 1e-3), said, higher_is_better=False))
    return rows


def conversations(*, instructs_each: bool) -> list[dict]:
    """Records of stage 2; `instructs_each`: all short questions say how to answer, not the first alone."""
    scenes = [make_scene(1, FIRST_SCENE + i, "train") for i in range(NUM_DRAWN)]
    rows = [instruct_record(scene, f"{i}", "x.png", 1) for i, scene in enumerate(scenes)]
    for turn in (turn for row in rows for turn in row["conversations"] if instructs_each):
        if turn["from"] == "human" and turn["value"] not in DESCRIBE and WORD_PROMPT not in turn["value"]:
            turn["value"] = word_prompt(turn["value"])
    return rows


def instruct_rows() -> list[Row]:
    """Forward and backward of one batch of stage 2, in bf16 as DeepSpeed runs it."""
    config = LlavaConfig(
        stage=2, encoder="blind", data=[], tokens="", init="", batch_size=NUM_ROWS, learning_rate=1e-3
    )
    model, processor = build("blind", None, LLAMA, "sdpa", seed=0)
    choose_attention(model, config, zero_stage=2)
    model.model.vision_tower.requires_grad_(False)
    model = model.bfloat16().train()
    tokens = {"image_tokens": torch.randn(NUM_ROWS, NUM_IMAGE_TOKENS, 192)}

    def encode(*, instructs_each: bool) -> list[Sample]:
        records = conversations(instructs_each=instructs_each)
        encoded = encode_conversations(records, "vicuna_v1", processor.tokenizer, NUM_IMAGE_TOKENS, 512)
        return [
            Sample(torch.from_numpy(row.input_ids).long(), torch.from_numpy(row.labels).long(), None)
            for row in encoded
        ]

    samples, told = encode(instructs_each=False), encode(instructs_each=True)

    def batch(samples: list[Sample], length_multiple: int) -> dict:
        by_length = sorted(samples, key=lambda sample: len(sample.input_ids))  # as the stage groups them
        middle = by_length[(NUM_DRAWN - NUM_ROWS) // 2 :][:NUM_ROWS]
        return collate(middle, None, 0, length_multiple=length_multiple) | tokens

    now, each, before = batch(samples, 8), batch(told, 8), batch(samples, 32)
    length = before["input_ids"].shape[1]
    before["position_ids"] = torch.arange(length).expand(NUM_ROWS, length)  # keeps the mask, shares nothing

    def step(batch: dict, attention: str) -> None:
        model.model.language_model.config._attn_implementation = attention
        model(**batch, num_items_in_batch=16 * NUM_ROWS).loss.backward()
        model.zero_grad()

    works = {"now": partial(step, now, WIDE), "before": partial(step, before, "sdpa")}
    note = f"forward and backward of {NUM_ROWS} samples; before: bf16 attention under a mask, the system "
    note += f"prompt in every row, rows padded to {length}"
    table = compared("llava_instruct", "samples/s", NUM_ROWS, note, **works)
    works = {"now": works["now"], "before": partial(step, each, WIDE)}
    times = seconds(works, repeats=REPEATS, clock=time.process_time)
    counts = [int(rows["attention_mask"].sum()) for rows in (now, each)]
    note = f"{counts[0]} tokens; before: the instruction to answer shortly in every short question, "
    note += f"{counts[1]} tokens"
    rates = (NUM_ROWS / times["now"], NUM_ROWS / times["before"])
    return [*table, make_row("llava_instruct/instructed_once", "samples/s", *rates, note)]


def ssim_row() -> Row:
    """SSIM of the demo's reconstructions, its local means by matrix products and by convolution."""
    pixels, noise = torch.rand(100, 3, 64, 64), torch.randn(100, 3, 64, 64)
    pair = pixels, (pixels + 0.1 * noise).clamp(0, 1)

    def convolved(pixels: torch.Tensor) -> torch.Tensor:
        weights = psnr_ssim._window_means(psnr_ssim._WINDOW).expand(3, 1, -1)  # one window fits: its weights
        return conv2d(conv2d(pixels, weights[..., None], groups=3), weights[..., None, :], groups=3)

    def before() -> torch.Tensor:
        with mock.patch.object(psnr_ssim, "_blur", convolved):
            return psnr_ssim.ssim(*pair)

    if (before() - psnr_ssim.ssim(*pair)).abs().max() > 1e-12:
        raise ValueError("the two forms of SSIM differ")
    times = seconds({"now": lambda: psnr_ssim.ssim(*pair), "before": before}, clock=time.process_time)
    rates = (len(pixels) / times["now"], len(pixels) / times["before"])
    return make_row(
        "score/ssim", "pictures/s", *rates, "64 px, float64; before: torch's convolution of groups"
    )


@contextlib.contextmanager
def real_rotary() -> Iterator[None]:
    """The form of the rotary embedding that is compiled, and was once the only one."""
    with mock.patch.object(torch.compiler, "is_compiling", lambda: True):
        yield


def diffusion_rows() -> list[Row]:
    """A whole training step of the demo's DiT-DH and a pass of its sampling."""
    sizes = {"hidden_size": (192, 256), "depth": (6, 2), "num_heads": (3, 4)}
    shape = DiTConfig(**sizes, input_size=4, in_channels=192, num_classes=16)
    config = TrainDiTConfig(
        tokens="", num_classes=16, num_steps=1, batch_size=64, precision="bf16", optim=DiTOptimConfig()
    )
    model = build_dit(shape)
    optimiser = build_optimiser(model, config.optim)
    batch = draw_batch(torch.randn(64, 192, 4, 4), torch.arange(64) % 16, config, 1.0, step=0)

    def train() -> None:
        train_step(model, optimiser, batch, config, step=100)

    def sample() -> None:
        with torch.no_grad():
            model(batch.x_t, batch.t, batch.y)

    def before(work: Work) -> None:
        with real_rotary():
            work()

    note = "64 samples of 16 tokens; before: rotary positions in real numbers"
    rows = compared("rae_train", "samples/s", 64, note, now=train, before=partial(before, train))
    works = {"now": sample, "before": partial(before, sample)}
    times = seconds(works, repeats=REPEATS, clock=time.process_time)
    note = "one pass in fp32; before: as above"
    return [*rows, make_row("rae_generate", "samples/s", 64 / times["now"], 64 / times["before"], note)]


def answer_row() -> Row:
    """Four options of a question scored together, which share its words, and each in a batch of its own."""
    model, processor = build("blind", None, LLAMA, "eager", seed=0)
    scorer = LlavaLmms(model, processor)
    picture, words = Image.new("RGB", (64, 64)), SYSTEM.lower().split()
    asked = [
        [
            ([Segment(scorer._prompt(" ".join(words[q:][:12]), 1), False), Segment(f" {o}", True)], [picture])
            for o in ("red", "blue", "left of", "right of")[:NUM_OPTIONS]
        ]
        for q in range(NUM_QUESTIONS)
    ]
    together = [option for question in asked for option in question]
    apart = [list(options) for options in zip(*asked, strict=True)]
    works = {
        "now": lambda: scorer._score(together),
        "before": lambda: [scorer._score(options) for options in apart],
    }
    times = seconds(works, repeats=REPEATS, clock=time.process_time)
    rates = (len(together) / times["now"], len(together) / times["before"])
    note = (
        f"options of {NUM_QUESTIONS} questions, {NUM_OPTIONS} each; before: a question run for every option"
    )
    return make_row("llava_evaluate", "options/s", *rates, note)


def step_rows() -> list[Row]:
    """All of them, on one thread."""
    torch.manual_seed(0)
    return [*instruct_rows(), *diffusion_rows(), answer_row(), ssim_row()]
