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
from encoder.data.scenes.compose import Scene
from encoder.data.scenes.objects import KINDS, article
from encoder.data.scenes.questions import ANSWERS, Fact, facts
from harness.replica import gqa, hub, scienceqa
from harness.replica.config import ReplicaConfig
from harness.replica.mark import readme
from harness.replica.pictures import draw, jpeg, scenes, size_of

FOLDER = "benchmarks"
POPE_SETTINGS = ("adversarial", "popular", "random")
_POPE_PER_PICTURE = 3  # questions of each answer in each setting, as published
MME_TOPICS = {  # category -> the kind of fact that its questions are about; None: what is shown
    "existence": None, "count": "count", "position": "slot", "color": "color", "posters": None,
    "celebrity": None, "scene": "place", "landmark": "place", "artwork": None, "OCR": "word",
    "commonsense_reasoning": None, "numerical_calculation": "count", "text_translation": "word",
    "code_reasoning": "most",
}  # fmt: skip
_MME_END = "Please answer yes or no."
Row = Mapping[str, Any]


def write(root: Path, config: ReplicaConfig) -> str:
    """All five."""
    folder = root / FOLDER
    counts = {
        "SEED-Bench": _write(folder / "SEED-Bench", _seed(config), num_files=2),
        "POPE": _write(folder / "POPE", _pope(config)),
        "MME": _write(folder / "MME", _mme(config), num_files=2),
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


def _pope(config: ReplicaConfig) -> list[hub.Config]:
    """Config `default`: all three settings in one split, told apart by `category`; `Full`: a split each."""
    from datasets import Features, Image

    names = ("id", "question_id", "question", "answer", "image_source")
    features = Features(hub.strings(*names) | {"image": Image()} | hub.strings("category"))
    pictures = [
        (scene, jpeg(draw(scene, size_of(number))), f"COCO_val2014_{number * 331 + 1:012d}")
        for number, scene in zip(
            range(4 * config.questions), scenes(config.seed, "POPE", "test"), strict=False
        )
    ]
    by_setting = {
        setting: [
            {"question_id": str(number + 1), "category": setting} | row
            for number, row in enumerate(
                row for picture in pictures for row in _pope_rows(*picture, f"{config.seed}/{setting}")
            )
        ]
        for setting in POPE_SETTINGS
    }
    rows = [row for of_setting in by_setting.values() for row in of_setting]
    rows = [{"id": str(number)} | row for number, row in enumerate(rows)]
    by_setting = {name: [row for row in rows if row["category"] == name] for name in POPE_SETTINGS}
    return [
        hub.Config("Full", "Full", features, by_setting),
        hub.Config("default", "data", features, {"test": rows}),
    ]


def _pope_rows(scene: Scene, data: bytes, source: str, seed: str) -> Iterator[Row]:
    """Yes and No in turn about one picture; where it shows few kinds, they are asked about again."""
    rng = random.Random(f"{seed}/{source}")
    shown = sorted({item.kind for item in scene.items})
    absent = rng.sample(sorted(set(KINDS) - set(shown)), _POPE_PER_PICTURE)
    for place in range(_POPE_PER_PICTURE):
        for answer, kind in (("yes", shown[place % len(shown)]), ("no", absent[place])):
            question = wording.POPE_QUESTION.format(a_kind=article(kind))
            picture = hub.picture(data, f"{source}.jpg")
            yield {"question": question, "answer": answer, "image_source": source, "image": picture}


def _mme(config: ReplicaConfig) -> list[hub.Config]:
    from datasets import Features, Image

    features = Features(
        hub.strings("question_id") | {"image": Image()} | hub.strings("question", "answer", "category")
    )
    return [hub.Config("default", "data", features, {"test": list(_mme_rows(config))})]


def _mme_rows(config: ReplicaConfig) -> Iterator[Row]:
    """Two rows of one question_id: the same picture, once Yes and once No is right."""
    for category, topic in MME_TOPICS.items():
        rng = random.Random(f"{config.seed}/mme/{category}")
        stream = scenes(config.seed, f"MME/{category}", "test")
        for number in range(config.questions):
            scene, right, wrong = _mme_pair(stream, topic, rng)
            name = f"{category}/{number:04d}.png"
            picture = hub.picture(jpeg(draw(scene, size_of(number))), name.rpartition("/")[2])
            for question, answer in ((right, "Yes"), (wrong, "No")):
                row = {"question_id": name, "image": picture, "question": f"{question} {_MME_END}"}
                yield row | {"answer": answer, "category": category}


def _mme_pair(stream: Iterator[Scene], topic: str | None, rng: random.Random) -> tuple[Scene, str, str]:
    """A scene, a question about it that is true and one that is not."""
    if topic is None:
        scene = next(stream)
        shown = scene.items[0].kind
        absent = rng.choice(sorted(set(KINDS) - {item.kind for item in scene.items}))
        return scene, *(f"Is there {article(kind)} in this image?" for kind in (shown, absent))
    while True:
        scene = next(stream)
        asked = [fact for fact in facts(scene) if fact.topic == topic]
        if asked:
            break
    fact = rng.choice(asked)
    wrong = rng.choice([answer for answer in ANSWERS[topic] if answer != fact.answer])
    return scene, *(f'"{fact.question}" Is the answer "{answer}"?' for answer in (fact.answer, wrong))
