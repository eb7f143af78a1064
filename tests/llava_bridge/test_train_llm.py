"""The small Llama's stage: it learns to read, resumes exactly, and refuses words it cannot know."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import llava_bridge.demo_llm.train_llm as stage
from encoder.data.scenes.wording import LETTER_PROMPT, WORD_PROMPT
from encoder.runtime.checkpoint import load_tensors
from encoder.training.options import OptimConfig
from llava_bridge.config import LlamaShape, TrainLlmConfig
from llava_bridge.demo_llm.lessons import ask_for_words, build_lessons, draw_lessons
from llava_bridge.demo_llm.tokenizer import build_tokenizer

COLORS = ["red", "blue", "green", "white"]


@pytest.fixture
def config(tmp_path) -> TrainLlmConfig:
    rows = []
    for i in range(64):
        color = COLORS[i % 4]
        rows.append(
            {
                "id": i,
                "conversations": [
                    {"from": "human", "value": f"a {color} cat.\nwhat color is the cat?"},
                    {"from": "gpt", "value": color},
                ],
            }
            if i % 5
            else {"id": i, "text": f"a {color} cat."}
        )
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainLlmConfig(
        num_lesson_steps=10,
        lesson_batch_size=8,
        corpus=[str(tmp_path / "text.jsonl")],
        num_steps=60,
        batch_size=8,
        num_held_out=8,
        log_steps=10,
        checkpoint_steps=20,
        shape=LlamaShape(width=32, depth=2, num_heads=2, mlp_width=64, max_length=64),
        precision="fp32",
        optim=OptimConfig(lr=1e-2, warmup_steps=5),
    )


def test_llama_learns_to_read_and_its_folder_loads(config, tmp_path):
    scores = stage.train(config, tmp_path)
    assert scores["token_accuracy"] > 0.5  # untrained: under 1 in 100
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

    def die_at_step_35(*args):
        if next(calls) == 35:
            raise KeyboardInterrupt
        return real_step(*args)

    real_step = stage.train_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "train_step", die_at_step_35)
        stage.train(config, killed)
    stage.train(config, killed)
    first, second = (load_tensors(folder / "weights" / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tensorboard_shows_what_the_log_holds(config, tmp_path, tensorboard_holds_the_log):
    few = {"num_steps": 2, "num_lesson_steps": 1, "log_steps": 1, "trackers": ["tensorboard"]}
    stage.train(replace(config, **few), tmp_path)
    tensorboard_holds_the_log(tmp_path, [1, 2, 3])


def test_word_outside_the_vocabulary_is_refused(config, tmp_path):
    (tmp_path / "text.jsonl").write_text(json.dumps({"id": 0, "text": "a quixotic cat"}) + "\n")
    with pytest.raises(ValueError, match="1 of the corpus's 5 tokens are not in the vocabulary"):
        stage.train(config, tmp_path)


def test_lettered_questions_become_free_ones():
    lettered = f"a red cat.\nwhat color is the cat?\nA. blue\nB. red\n{LETTER_PROMPT}"
    turns = [("human", lettered), ("gpt", "B"), ("human", "Is there a cat?"), ("gpt", "Yes")]
    record = {"id": 0, "conversations": [{"from": who, "value": value} for who, value in turns]}
    asked = [turn["value"] for turn in ask_for_words(record)["conversations"]]
    free = f"a red cat.\nwhat color is the cat?\n{WORD_PROMPT}"
    assert asked == [free, "red", "Is there a cat?", "Yes"]


def test_lessons_grow_and_depend_on_seed_and_step_alone():
    turns = [("human", f"a red cat.\nwhat color is the cat?\nA. blue\nB. red\n{LETTER_PROMPT}"), ("gpt", "B")]
    turns += [("human", f"Is there a cat in the image?\n{WORD_PROMPT}"), ("gpt", "Yes")]
    record = {"id": 0, "conversations": [{"from": who, "value": value} for who, value in turns]}
    tokenizer = build_tokenizer([value for _, value in turns])
    lessons = build_lessons([record] * 50, tokenizer, seed=0)
    assert (lessons.lengths[1:] >= lessons.lengths[:-1]).all()
    answers = {tokenizer.decode(lessons[i].input_ids[-2]) for i in range(len(lessons))}
    assert answers == {"red", "B", "Yes"}
    early, late = (draw_lessons(200, step, 100, 64, seed=0) for step in (0, 99))
    assert max(early) < 20 <= max(late)
    assert early == draw_lessons(200, 0, 100, 64, seed=0)
