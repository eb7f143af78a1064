"""The small Llama's first lessons: one question about one caption, the shortest first.

In a conversation of 350 tokens every token looks at every other with 1/350 of its attention, so hardly any
gradient says where to look, and a Llama trained on whole conversations from the start still guesses after
36,000 of them. In 40 tokens it learns to look within 160 steps; from there the lessons grow to the length
of conversations.
"""

import random
import re
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from encoder.data.scenes.wording import WORD_PROMPT
from encoder.runtime.checkpoint import step_generator
from llava_bridge.data import DataReport, LlavaDataset
from llava_bridge.prompt import Segment, tokenise

LESSONS_PER_ROW = 4
YES_NO_SHARE = 0.35  # what is absent is harder to learn than what is where
LETTER_SHARE = 0.4  # of the lettered questions drawn; the others are asked freely
SUFFIX_SHARE = 0.5  # of the free and yes/no questions that keep "Answer the question using ..."
_OPTION = re.compile(r"^([A-D])\. (.*)$", re.MULTILINE)
_FIRST_SHARE = 0.1  # of the lessons, the shortest, that the first step draws from


def build_lessons(records: Sequence[Mapping], tokenizer: PreTrainedTokenizerBase, seed: int) -> LlavaDataset:
    """Single questions of conversations whose first turn opens with a caption line, the shortest lesson
    first.

    There is no system prompt: it is the same in every text and only draws attention.
    """
    draw = random.Random(seed)
    rendered = [
        _lesson(record["conversations"], tokenizer.eos_token, draw)
        for record in records
        if "text" not in record
        for _ in range(LESSONS_PER_ROW)
    ]
    encoded = sorted(tokenise(rendered, tokenizer, 0), key=lambda sample: len(sample.input_ids))
    report = DataReport.of_whole(records)
    return LlavaDataset(encoded, [None] * len(encoded), report)


def draw_lessons(num_lessons: int, step: int, num_steps: int, batch_size: int, seed: int) -> list[int]:
    """The lessons of a step, drawn from the shortest; their share grows from a tenth to all over
    `num_steps`."""
    share = _FIRST_SHARE + (1 - _FIRST_SHARE) * step / num_steps
    limit = max(1, int(num_lessons * share))
    return torch.randint(limit, (batch_size,), generator=step_generator(seed, step, "lessons")).tolist()


def ask_for_words(record: dict) -> dict:
    """The record with each lettered question asked without options and answered by the right one's words."""
    turns = []
    for human, answer in zip(record["conversations"][::2], record["conversations"][1::2], strict=True):
        question, options = split_options(human["value"])
        if answer["value"] in options:
            human = {**human, "value": f"{question}\n{WORD_PROMPT}"}
            answer = {**answer, "value": options[answer["value"]]}
        turns += [human, answer]
    return {**record, "conversations": turns}


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """A question without its option lines and what follows them, and the options by letter (or none)."""
    options = dict(_OPTION.findall(text))
    return _OPTION.split(text)[0].rstrip("\n"), options


def _lesson(turns: Sequence[Mapping], eos: str, draw: random.Random) -> list[Segment]:
    caption, _, first = turns[0]["value"].partition("\n")
    questions = [first, *(turn["value"] for turn in turns[2::2])]
    pairs = list(zip(questions, (turn["value"] for turn in turns[1::2]), strict=True))
    yes_no = [pair for pair in pairs if pair[1] in ("Yes", "No")]
    question, answer = draw.choice(yes_no if yes_no and draw.random() < YES_NO_SHARE else pairs)
    stem, options = split_options(question)
    if answer in options and draw.random() >= LETTER_SHARE:
        question, answer = f"{stem}\n{WORD_PROMPT}", options[answer]
    if draw.random() >= SUFFIX_SHARE:
        question = question.removesuffix(f"\n{WORD_PROMPT}")
    return [Segment(f"USER: {caption}\n{question} ASSISTANT:", False), Segment(f" {answer}{eos}", True)]
