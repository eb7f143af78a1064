"""POPE and MME, whose answers are Yes and No; columns and sources: `harness.replica.benchmarks`."""

import random
from collections.abc import Iterator
from typing import Any

from encoder.data.scenes import wording
from encoder.data.scenes.objects import KINDS, article
from encoder.data.scenes.questions import ANSWERS, facts
from encoder.data.scenes.scene import Scene
from harness.replica import hub
from harness.replica.config import ReplicaConfig
from harness.replica.pictures import draw, jpeg, scenes, size_of

POPE_SETTINGS = ("adversarial", "popular", "random")
_POPE_PER_PICTURE = 3  # questions of each answer in each setting, as published
MME_TOPICS = {  # category -> the kind of fact that its questions are about; None: what is shown
    "existence": None, "count": "count", "position": "slot", "color": "color", "posters": None,
    "celebrity": None, "scene": "place", "landmark": "place", "artwork": None, "OCR": "word",
    "commonsense_reasoning": None, "numerical_calculation": "count", "text_translation": "word",
    "code_reasoning": "most",
}  # fmt: skip
_MME_END = "Please answer yes or no."
Row = dict[str, Any]


def pope(config: ReplicaConfig) -> list[hub.Config]:
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


def mme(config: ReplicaConfig) -> list[hub.Config]:
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
