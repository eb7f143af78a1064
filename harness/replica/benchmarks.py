"""The five benchmarks of the paper's table as the hub holds them for lmms-eval: lmms-lab-encoder/{SEED-Bench,
POPE, MME, GQA, ScienceQA}, with the folders, columns and types of each.

Source: lmms-eval 0.7.3, `tasks/{seedbench,pope,mme,gqa,scienceqa}/*.yaml` and `utils.py` (data set, config,
split, the columns that are read); the cards of lmms-lab/MME and lmms-lab/ScienceQA (all columns and types);
of the other three only the columns that lmms-eval reads and the folders are checked, the rest is from
memory of their cards. Reference sheet "LLaVA-1.5 recipe", Sec. 3.2 and 3.3.
"""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from encoder.data.scenes import wording
from encoder.data.scenes.questions import ANSWERS, Fact, facts
from harness.replica import gqa, hub, scienceqa, yes_no
from harness.replica.config import ReplicaConfig
from harness.replica.mark import readme
from harness.replica.pictures import draw, jpeg, scenes, size_of

FOLDER = "benchmarks"
Row = Mapping[str, Any]


def write(root: Path, config: ReplicaConfig) -> str:
    """All five."""
    folder = root / FOLDER
    counts = {
        "SEED-Bench": _write(folder / "SEED-Bench", _seed(config), num_files=2),
        "POPE": _write(folder / "POPE", yes_no.pope(config)),
        "MME": _write(folder / "MME", yes_no.mme(config), num_files=2),
        "GQA": _write(folder / "GQA", gqa.configs(config)),
        "ScienceQA": _write(folder / "ScienceQA", scienceqa.configs(config)),
    }
    return ", ".join(f"{name} {num}" for name, num in counts.items()) + " rows"


def _write(folder: Path, configs: list[hub.Config], num_files: int = 1) -> int:
    text = readme(folder.name, f"hub: lmms-lab-encoder/{folder.name}, before: lmms-lab/{folder.name}")
    folder.mkdir(parents=True)
    return hub.write_data_set(folder, configs, text, num_files)


def _seed(config: ReplicaConfig) -> list[hub.Config]:
    from datasets import Features, Image, List, Value

    features = Features(
        hub.strings("answer", "choice_a", "choice_b", "choice_c", "choice_d")
        | hub.strings("data_id", "data_type", "question", "question_id")
        | {"question_type_id": Value("int16"), "image": List(Image()), "segment": List(Value("int64"))}
    )
    return [hub.Config("default", "data", features, {"test": list(_seed_rows(config))})]


def _seed_rows(config: ReplicaConfig) -> Iterator[Row]:
    """Dimensions 1 to 9 ask about a picture; 10 to 12 about a video, given as frames."""
    rng = random.Random(f"{config.seed}/seed")
    left = dict.fromkeys(wording.DIMENSIONS, config.questions)
    stream, number = scenes(config.seed, "SEED-Bench", "test"), 0
    while any(left.values()):
        scene = next(stream)
        asked = [fact for fact in facts(scene) if left[fact.dimension]]
        if asked:
            fact = rng.choice(asked)
            left[fact.dimension] -= 1
            frames = [jpeg(draw(scene, size_of(number)))]
            yield _seed_row(fact, fact.dimension, f"{number:06d}_image", frames, rng)
            number += 1
    for dimension in (10, 11, 12):
        frames = [jpeg(draw(next(stream), size_of(0))) for _ in range(4)]
        yield _seed_row(facts(next(stream))[0], dimension, f"v_{dimension}.mp4", frames, rng)


def _seed_row(fact: Fact, dimension: int, name: str, frames: list[bytes], rng: random.Random) -> Row:
    others = rng.sample([answer for answer in ANSWERS[fact.topic] if answer != fact.answer], 3)
    options = rng.sample([fact.answer, *others], 4)
    is_picture = len(frames) == 1
    return {
        "answer": "ABCD"[options.index(fact.answer)],
        **{f"choice_{letter}": option for letter, option in zip("abcd", options, strict=True)},
        "data_id": name,
        "data_type": "image" if is_picture else "video",
        "question": fact.question.capitalize(),
        "question_id": f"{100_000 + rng.randrange(900_000)}",
        "question_type_id": dimension,
        "image": [hub.picture(frame, f"{name}_{place}.jpg") for place, frame in enumerate(frames)],
        "segment": None if is_picture else [0, 4],
    }
