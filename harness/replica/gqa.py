"""GQA as lmms-eval's data set holds it: questions and pictures apart, joined by `imageId`.

Source: lmms-eval 0.7.3, `tasks/gqa/gqa.yaml` and `utils.py` (configs testdev_balanced_{instructions,images},
split testdev; imageId, question, answer; id, image). The other columns are GQA's own question fields, from
memory of the card. Published: 12,578 questions about 398 pictures.
"""

from typing import Any

from encoder.data.scenes.questions import Fact, facts
from harness.replica import hub
from harness.replica.config import ReplicaConfig
from harness.replica.pictures import draw, jpeg, scenes, size_of

_PER_PICTURE = 3


def configs(config: ReplicaConfig) -> list[hub.Config]:
    """The two configs of the balanced test-dev set."""
    from datasets import Features, Image

    questions, pictures = [], []
    stream = scenes(config.seed, "GQA", "test")
    for number in range(4 * config.questions):
        scene, name = next(stream), f"n{number * 10007 + 161313}"
        pictures.append({"id": name, "image": hub.picture(jpeg(draw(scene, size_of(number))), f"{name}.jpg")})
        for place, fact in enumerate(facts(scene)[:_PER_PICTURE]):
            questions.append(_question(f"20{number:04d}{place:03d}", name, fact))
    image = Features(hub.strings("id") | {"image": Image()})
    name = "testdev_balanced"
    return [
        hub.Config(f"{name}_images", f"{name}_images", image, {"testdev": pictures}),
        hub.Config(f"{name}_instructions", f"{name}_instructions", _features(), {"testdev": questions}),
    ]


def _features() -> Any:
    from datasets import Features, List, Value

    note = hub.strings("objectId", "value")
    operation = hub.strings("operation", "argument") | {"dependencies": List(Value("int32"))}
    return Features(
        hub.strings("id", "imageId", "question", "answer", "fullAnswer")
        | {"isBalanced": Value("bool"), "groups": hub.strings("global", "local")}
        | hub.strings("entailed", "equivalent")
        | {"types": hub.strings("structural", "semantic", "detailed")}
        | {"annotations": {part: List(note) for part in ("question", "answer", "fullAnswer")}}
        | {"semantic": List(operation)}
        | hub.strings("semanticStr")
    )


def _question(number: str, picture: str, fact: Fact) -> dict[str, Any]:
    return {
        "id": number,
        "imageId": picture,
        "question": fact.question.capitalize(),
        "answer": fact.answer,
        "fullAnswer": f"It is {fact.answer}.",
        "isBalanced": True,
        "groups": {"global": None, "local": f"{fact.topic}_{picture}"},
        "entailed": f"['{number}']",
        "equivalent": f"['{number}']",
        "types": {"structural": "query", "semantic": "attr", "detailed": fact.topic},
        "annotations": {"question": [{"objectId": "0", "value": picture}], "answer": [], "fullAnswer": []},
        "semantic": [{"operation": "query", "argument": fact.topic, "dependencies": [0]}],
        "semanticStr": f"query: {fact.topic} [0]",
    }
