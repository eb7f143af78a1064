"""What the small Llama is taught, step by step: single questions of one topic, of some, of all, then whole
conversations.

To answer what colour a thing is, it must find the cells that hold the thing. Asked for nothing else it finds
them after some 10,000 questions; asked for everything at once it had not after half a million answers. What
it can find by, it soon reads other facts from: so one topic comes first (docs/findings.md).
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from encoder.runtime.config import ROOT
from llava_bridge.config import ANY_TOPIC, CAPTION, LessonPhase, TrainLlmConfig
from llava_bridge.demo_llm.cells import CellLessons, build_cell_lessons, read_layouts, tabulate
from llava_bridge.prompt import IMAGE


@dataclass(frozen=True, slots=True)
class Course:
    """The lessons of each of the config's phases; the last rows of the layouts are held out."""

    lessons: list[CellLessons]
    held_out: CellLessons
    config: TrainLlmConfig

    @property
    def num_steps(self) -> int:
        return sum(phase.num_steps for phase in self.config.phases)

    def batch(self, step: int, pad_id: int) -> dict[str, Tensor]:
        """The rows of a step, as `CellLessons.batch` gives them."""
        begun = 0
        for phase, lessons in zip(self.config.phases, self.lessons, strict=True):
            if step < begun + phase.num_steps:
                return lessons.batch(step, phase.batch_size, self.config.seed, pad_id)
            begun += phase.num_steps
        raise IndexError(f"step {step} of a course of {begun}")

    def scored(self, pad_id: int) -> Iterator[dict[str, Any]]:
        """The rows held out, in clear cells."""
        return self.held_out.in_order(self.config.phases[-1].batch_size, pad_id)


def plan_course(config: TrainLlmConfig, tokenizer: PreTrainedTokenizerBase) -> Course:
    """The scenes in cells, tokenised for each phase.

    Raises: ValueError if no row is left to train on, a phase has none to ask of its topics, or a layout does
    not fit the model.
    """
    records = read_layouts([ROOT / path for path in config.layouts])
    num_train = len(records) - config.num_held_out
    if num_train < 1:
        raise ValueError(
            f"num_held_out {config.num_held_out} leaves none of the layouts' {len(records)} rows to train on"
        )
    table, width = tabulate(records, tokenizer), config.shape.width
    rows = dict(enumerate(records[:num_train]))
    lessons = [
        build_cell_lessons(_asked(rows, phase, config.seed), table, tokenizer, width, phase.unclear)
        for phase in config.phases
    ]
    last = dict(enumerate(records[num_train:], start=num_train))
    held_out = build_cell_lessons(last, table, tokenizer, width)
    longest = max(int(each.samples.lengths.max()) for each in (*lessons, held_out))
    if longest > config.shape.max_length:
        raise ValueError(
            f"the longest of the layouts has {longest} tokens, its cells among them, and shape.max_length is "
            f"{config.shape.max_length}; raise it, or write them with a smaller layout_grid"
        )
    return Course(lessons, held_out, config)


def _asked(rows: Mapping[int, Mapping], phase: LessonPhase, seed: int) -> dict[int, Mapping]:
    """The rows as a phase asks them: whole, or one question of its topics each, where one has any."""
    if phase.topics is None:
        return dict(rows)
    draw = random.Random(seed)
    single = {row: single_question(record, phase.topics, draw) for row, record in rows.items()}
    asked = {row: record for row, record in single.items() if record is not None}
    if not asked:
        known = sorted({topic for record in rows.values() for topic in record["topics"]})
        raise ValueError(f"no layout asks for {', '.join(phase.topics)}; their topics are {', '.join(known)}")
    return asked


def single_question(record: Mapping, topics: Sequence[str], draw: random.Random) -> Mapping | None:
    """The record with one of its questions of `topics` alone; None where it has none. A caption is no
    question: only a phase that names it is told it."""
    turns = record["conversations"]
    if turns[0]["value"] == IMAGE:
        return record if CAPTION in topics else None
    chosen = [i for i, topic in enumerate(record["topics"]) if ANY_TOPIC in topics or topic in topics]
    if not chosen:
        return None
    turn = draw.choice(chosen)
    question, answer = turns[2 * turn : 2 * turn + 2]
    words = question["value"].removeprefix(f"{IMAGE}\n")
    question = {**question, "value": f"{IMAGE}\n{words}"}
    return {**record, "conversations": [question, answer], "topics": [record["topics"][turn]]}
