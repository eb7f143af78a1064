"""ScienceQA as lmms-eval's data set holds it: all rows, and those with a picture.

Source: the card of lmms-lab/ScienceQA (configs ScienceQA-FULL and ScienceQA-IMG with all columns and types;
4,241 and 2,017 test rows); lmms-eval 0.7.3, `tasks/scienceqa`. The answer is a number, from 0; a row has two
to five choices; a row of text alone has no picture, and no hint is an empty one.
"""

import random
from typing import Any

from encoder.data.scenes.questions import ANSWERS, facts
from encoder.data.scenes.text import re_caption
from harness.replica import hub
from harness.replica.config import ReplicaConfig
from harness.replica.pictures import draw, png, scenes, size_of

SPLITS = {"train": "train", "validation": "val", "test": "test"}  # its split -> that of Scenes
_SUBJECTS = ("natural science", "language science", "social science")


def configs(config: ReplicaConfig) -> list[hub.Config]:
    """Both configs; half of the rows have a picture."""
    from datasets import Features, Image, List, Value

    names = ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    features = Features(
        {"image": Image(), "question": Value("string"), "choices": List(Value("string"))}
        | {"answer": Value("int8")}
        | hub.strings(*names)
    )
    rows = {split: _rows(config, split) for split in SPLITS}
    pictured = {split: [row for row in of_split if row["image"]] for split, of_split in rows.items()}
    return [
        hub.Config("ScienceQA-FULL", "ScienceQA-FULL", features, rows),
        hub.Config("ScienceQA-IMG", "ScienceQA-IMG", features, pictured),
    ]


def _rows(config: ReplicaConfig, split: str) -> list[dict[str, Any]]:
    rng = random.Random(f"{config.seed}/scienceqa/{split}")
    stream = scenes(config.seed, f"ScienceQA/{split}", SPLITS[split])
    rows = []
    for number in range(8 * config.questions):
        scene = next(stream)
        fact = rng.choice(facts(scene))
        others = [answer for answer in ANSWERS[fact.topic] if answer != fact.answer]
        wrong = rng.sample(others, min(len(others), 1 + number % 4))
        choices = rng.sample([fact.answer, *wrong], 1 + len(wrong))
        is_pictured = number % 2 == 0
        rows.append({
            "image": hub.picture(png(draw(scene, size_of(number))), "image.png") if is_pictured else None,
            "question": fact.question.capitalize(),
            "choices": choices,
            "answer": choices.index(fact.answer),
            "hint": "" if number % 4 == 0 else re_caption(scene),
            "task": "closed choice",
            "grade": f"grade{1 + number % 12}",
            "subject": _SUBJECTS[number % 3],
            "topic": "scenes",
            "category": "Looking",
            "skill": fact.topic,
            "lecture": "",
            "solution": f"It is {fact.answer}.",
        })  # fmt: skip
    return rows
