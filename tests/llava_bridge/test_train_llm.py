"""The small Llama's stage: it learns to read, resumes exactly, counts its answers by topic and refuses what
cannot be taught."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import llava_bridge.demo_llm.train_llm as stage
from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.conversations import layout_record
from encoder.data.scenes.text import VOCABULARY
from encoder.data.scenes.wording import QUESTIONS
from encoder.runtime.checkpoint import load_tensors
from encoder.training.options import OptimConfig
from llava_bridge.config import LessonPhase, LlamaShape, TrainLlmConfig
from llava_bridge.demo_llm.course import single_question
from llava_bridge.demo_llm.tokenizer import build_tokenizer
from llava_bridge.prompt import IGNORE

COLORS, KINDS = ["red", "blue", "green", "white"], ["cat", "bird"]


@pytest.fixture
def config(tmp_path) -> TrainLlmConfig:
    """Two things in two cells, each of a colour: what colour is the one that is asked for?"""
    rows = []
    for i in range(256):
        colors = COLORS[i % 4], COLORS[i // 4 % 4]
        cells = [{kind: 1.0, color: 1.0} for kind, color in zip(KINDS, colors, strict=True)]
        asked = i // 16 % 2
        turns = [f"<image>\nwhat color is the {KINDS[asked]}?", colors[asked], "which scene is this?", "city"]
        turns = [
            {"from": who, "value": value} for who, value in zip(["human", "gpt"] * 2, turns, strict=True)
        ]
        rows.append({"id": i, "conversations": turns, "topics": ["color", "place"], "cells": cells})
    (tmp_path / "layouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainLlmConfig(
        layouts=[str(tmp_path / "layouts.jsonl")],
        phases=[
            LessonPhase(num_steps=250, batch_size=32, topics=["color"]),
            LessonPhase(num_steps=100, batch_size=16),
        ],
        muon_lr=0.02,
        num_held_out=32,
        log_steps=10,
        checkpoint_steps=20,
        shape=LlamaShape(width=32, depth=2, num_heads=2, mlp_width=64, max_length=64),
        precision="fp32",
        optim=OptimConfig(lr=3e-3, final_lr=1e-3, warmup_steps=5),
    )


def test_llama_learns_to_read_and_its_folder_loads(config, tmp_path):
    scores = stage.train(config, tmp_path)
    assert scores["color_accuracy"] > 0.9  # a colour of the scene: half of the time
    assert scores["place_accuracy"] == 1 and scores["num_tokens"] == 32 * 4  # each with the end of the answer
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "weights"),
        AutoTokenizer.from_pretrained(tmp_path / "weights"),
    )
    assert model.dtype == torch.float16
    assert len(tokenizer) == model.config.vocab_size
    assert (tmp_path / "weights" / "card.yaml").is_file()


def test_killed_run_goes_on_to_the_weights_of_an_uninterrupted_one(config, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    stage.train(config, whole)
    calls = iter(range(1000))

    def die_at_step_255(*args):
        if next(calls) == 255:
            raise KeyboardInterrupt
        return real_step(*args)

    real_step = stage.train_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "train_step", die_at_step_255)
        stage.train(config, killed)
    stage.train(config, killed)
    first, second = (load_tensors(folder / "weights" / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tensorboard_shows_what_the_log_holds(config, tmp_path, tensorboard_holds_the_log):
    phases = [LessonPhase(num_steps=1, topics=["any"]), LessonPhase(num_steps=2)]
    stage.train(replace(config, phases=phases, log_steps=1, trackers=["tensorboard"]), tmp_path)
    tensorboard_holds_the_log(tmp_path, [1, 2, 3])


def test_what_cannot_be_taught_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="no layout asks for colour; their topics are color, place"):
        stage.train(replace(config, phases=[LessonPhase(num_steps=1, topics=["colour"])]), tmp_path)
    with pytest.raises(ValueError, match="leaves none of the layouts' 256 rows"):
        stage.train(replace(config, num_held_out=256), tmp_path)
    path = tmp_path / "layouts.jsonl"
    path.write_text(path.read_text().replace('"topics": ["color", "place"]', '"topics": ["color"]', 1))
    with pytest.raises(ValueError, match=r"layouts\.jsonl row 0: 1 topics for 2 questions"):
        stage.train(config, tmp_path)
    with pytest.raises(ValueError, match="topics is empty"):
        LessonPhase(num_steps=1, topics=[])
    with pytest.raises(ValueError, match=r"unclear 1\.5 must be 0 to 1"):
        LessonPhase(num_steps=1, unclear=1.5)
    with pytest.raises(ValueError, match="layouts and phases must not be empty"):
        replace(config, phases=[])


def test_answers_are_the_runs_of_supervised_tokens():
    labels = torch.tensor([IGNORE, 5, 6, IGNORE, IGNORE, 7, IGNORE, 8])
    assert stage.answer_spans(labels) == [slice(1, 3), slice(5, 6), slice(7, 8)]
    assert stage.answer_spans(torch.full((3,), IGNORE)) == []


def test_captions_are_scored_word_by_word(monkeypatch):
    """A model that foresees every word but the colour."""
    tokenizer = build_tokenizer(VOCABULARY)
    said = tokenizer("a red cat. a sign says stop.", return_tensors="pt").input_ids
    batch = {"input_ids": said, "labels": said.clone(), "topics": [["caption"]]}
    wrong = said.clone()
    wrong[said == tokenizer.convert_tokens_to_ids("red")] = tokenizer.convert_tokens_to_ids("blue")

    monkeypatch.setattr(
        stage, "predict", lambda model, batch: F.one_hot(wrong[:, 1:], len(tokenizer)).float()
    )
    scores = stage.evaluate(
        SimpleNamespace(device=torch.device("cpu")), [batch], "fp32", stage.caption_words(tokenizer)
    )
    assert scores["sign_in_captions_accuracy"] == scores["kind_in_captions_accuracy"] == 1
    assert scores["color_in_captions_accuracy"] == 0
    assert "number_in_captions_accuracy" not in scores and "caption_accuracy" not in scores


def test_a_single_question_keeps_its_answer_and_its_topic():
    words = {topic: wording.split("{")[0] for topic, (_, wording) in QUESTIONS.items()}
    draw, seen = random.Random(0), set()
    for index in range(400):
        record = layout_record(make_scene(0, index, "train"), f"{index}", 0, 4)
        assert len(record["topics"]) == len(record["conversations"]) // 2
        single = single_question(record, ["any"], draw)
        if record["topics"] == ["caption"]:
            assert single is None and single_question(record, ["any", "caption"], draw) == record
            continue
        (question, answer), (topic,) = single["conversations"], single["topics"]
        seen.add(topic)
        assert question["value"].startswith("<image>\n" + words.get(topic, ""))
        said = record["conversations"]
        turn = record["topics"].index(topic)
        if record["topics"].count(topic) == 1:
            assert answer == said[2 * turn + 1] and said[2 * turn]["value"].endswith(
                question["value"].removeprefix("<image>\n")
            )
        color = single_question(record, ["color", "look"], draw)
        assert (color is None) == (not {"color", "look"} & set(record["topics"]))
        assert color is None or color["topics"][0] in ("color", "look")
    assert seen == {*QUESTIONS, "presence", "description"}
