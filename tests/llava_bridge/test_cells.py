"""The small Llama's lessons in cells: what it reads, what is drawn, that it learns where things are."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import llava_bridge.demo_llm.train_llm as stage
from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.conversations import layout_record
from encoder.data.scenes.text import VOCABULARY
from encoder.runtime.checkpoint import load_tensors
from encoder.training.options import OptimConfig
from llava_bridge.config import LessonPhase, LlamaShape, TrainLlmConfig
from llava_bridge.demo_llm.cells import build_cell_lessons, embed_cells, tabulate
from llava_bridge.demo_llm.tokenizer import build_tokenizer
from llava_bridge.prompt import IMAGE

SLOTS = ("top left", "top right", "bottom left", "bottom right")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def records():
    return [layout_record(make_scene(0, index, "train"), f"{index}", 0, 4) for index in range(120)]


def test_placeholders_are_read_as_weighted_sums_of_words(tokenizer, records):
    lessons = lessons_of(records, tokenizer, range(100, 120))
    batch = next(lessons.in_order(20, tokenizer.pad_token_id))
    assert batch["topics"] == [record["topics"] for record in records[100:]]
    table = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    read = embed_cells(table, batch)
    for row in range(20):
        ids = batch["input_ids"][row]
        places = (ids == tokenizer.convert_tokens_to_ids(IMAGE)).nonzero().flatten().tolist()
        assert len(places) == 16
        for place, cell in zip(places, records[100 + row]["cells"], strict=True):
            seen = {
                word: float(np.float16(share))
                for word, share in cell.items()
                if float(np.float16(share)) >= 0.02
            }
            expected = sum(
                table[tokenizer.convert_tokens_to_ids(word)] * share for word, share in seen.items()
            )
            assert torch.allclose(read[row, place], expected, atol=1e-5)
        others = [place for place in range(len(ids)) if place not in places]
        assert torch.equal(read[row, others], table[ids[others]])
        assert not batch["is_text"][row, places].any()


def lessons_of(records, tokenizer, rows, unclear=1.0):
    table = tabulate(records, tokenizer)
    return build_cell_lessons({row: records[row] for row in rows}, table, tokenizer, 8, unclear)


def test_a_step_draws_by_seed_and_step_alone_and_nothing_else_than_its_rows(tokenizer, records):
    lessons = lessons_of(records, tokenizer, range(60))
    drawn = [lessons.batch(step, 16, 0, tokenizer.pad_token_id) for step in range(30)]
    again = lessons.batch(7, 16, 0, tokenizer.pad_token_id)
    assert all(torch.equal(again[name], drawn[7][name]) for name in again)
    assert not torch.equal(drawn[0]["noise"], drawn[1]["noise"])
    shown = {tuple(lessons.samples[i].input_ids.tolist()) for i in range(60)}
    for batch in drawn:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            assert tuple(ids[mask.bool()].tolist()) in shown


def test_clear_cells_are_the_scenes_own_and_unclear_ones_spread_around_them(tokenizer, records):
    clear, unclear = (lessons_of(records, tokenizer, range(120), each) for each in (0.0, 1.0))
    one, other = (each.batch(3, 24, 0, tokenizer.pad_token_id) for each in (clear, unclear))
    assert torch.equal(one["word_ids"], other["word_ids"]) and not one["noise"].any()
    values = set(clear.table.shares.float().flatten().tolist())
    assert set(one["weights"].flatten().tolist()) <= values
    both = (one["weights"] > 0) & (other["weights"] > 0) & (one["weights"] < 0.9)
    power = other["weights"][both].log() / one["weights"][both].log()
    assert 0.49 < power.min() < 0.8 and 1.2 < power.max() < 1.51
    assert (other["weights"] > 0).sum() < (one["weights"] > 0).sum()  # the least of them are not seen


def test_layouts_that_cannot_be_read_are_refused(tokenizer, records):
    with pytest.raises(ValueError, match=r"same number of cells, got \[9, 16\]"):
        tabulate([records[0], {**records[1], "cells": records[1]["cells"][:9]}], tokenizer)
    with pytest.raises(ValueError, match=r"same number of cells, got \[0\]"):
        tabulate([{"id": 0, "conversations": []}], tokenizer)
    strange = {**records[0], "cells": [{"quixotic": 1.0}] * 16}
    with pytest.raises(ValueError, match="lacks words of the layouts: quixotic"):
        tabulate([strange], tokenizer)
    asked = [{"from": "human", "value": "<image>\na quixotic cat?"}, {"from": "gpt", "value": "Yes"}]
    with pytest.raises(ValueError, match=r"1 of the lessons' \d+ tokens are not in the vocabulary"):
        lessons_of([{**records[0], "conversations": asked, "topics": ["presence"]}], tokenizer, [0])


def test_broken_and_too_long_layouts_stop_before_training(config, tmp_path):
    with pytest.raises(ValueError, match="num_held_out 0 must be 1 or more"):
        replace(config, num_held_out=0)
    with pytest.raises(ValueError, match=r"has 18 tokens, its cells among them, and shape\.max_length is 16"):
        stage.train(replace(config, shape=replace(config.shape, max_length=16)), tmp_path)
    path = tmp_path / "layouts.jsonl"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match=r"layouts\.jsonl row 319: not JSON"):
        stage.train(config, tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"layouts\.jsonl"):
        stage.train(config, tmp_path)


@pytest.fixture
def config(tmp_path) -> TrainLlmConfig:
    """Four cells, a cat in one of them: where is it?"""
    rows = []
    for i in range(320):
        cells = [{"meadow": 1.0} for _ in SLOTS]
        cells[i % 4] |= {"cat": 1.0}
        turns = [("human", "<image>\nwhere is the cat?"), ("gpt", SLOTS[i % 4])]
        turns = [{"from": who, "value": value} for who, value in turns]
        rows.append({"id": i, "cells": cells, "topics": ["slot"], "conversations": turns})
    (tmp_path / "layouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainLlmConfig(
        layouts=[str(tmp_path / "layouts.jsonl")],
        phases=[LessonPhase(num_steps=200, batch_size=32, unclear=1.0)],
        num_held_out=8,
        log_steps=50,
        checkpoint_steps=40,
        shape=LlamaShape(width=32, depth=2, num_heads=2, mlp_width=64, max_length=64),
        precision="fp32",
        optim=OptimConfig(lr=1e-2, warmup_steps=5),
    )


def test_llama_learns_where_a_thing_is_and_goes_on_from_its_folder(config, tmp_path):
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    scores = stage.train(config, tmp_path / "first")
    assert scores["slot_accuracy"] > 0.9  # without the cells one in four
    folder = tmp_path / "first" / "weights"
    more = replace(
        config, init=str(folder), phases=[LessonPhase(num_steps=1)], optim=OptimConfig(lr=0, warmup_steps=0)
    )
    stage.train(more, tmp_path / "second")
    begun, kept = (load_tensors(each / "model.safetensors") for each in (folder, tmp_path / "second/weights"))
    assert all(torch.equal(begun[name], kept[name]) for name in begun)
    other = replace(more, shape=replace(more.shape, depth=1))
    with pytest.raises(ValueError, match=r"has num_hidden_layers 2, this config asks for 1"):
        stage.train(other, tmp_path / "third")
