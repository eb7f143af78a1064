"""What lmms-eval calls for Scenes-POPE. The columns and the prompt are those of POPE in lmms-eval 0.7.3."""

from PIL.Image import Image

from encoder.data.pictures import as_rgb
from llava_bridge.answers import (
    YES_NO_PARSERS,
    Item,
    accuracy,
    f1,
    mean_f1_of_settings,
    precision,
    recall,
    yes_ratio,
)

__all__ = [
    "accuracy",
    "doc_to_text",
    "doc_to_visual",
    "f1",
    "mean_f1_of_settings",
    "precision",
    "process_results",
    "recall",
    "yes_ratio",
]
RATES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def doc_to_visual(doc: dict) -> list[Image]:
    """The question's picture, RGB."""
    return [as_rgb(doc["image"])]


def doc_to_text(doc: dict) -> str:
    """The question and the instruction to answer shortly."""
    return f"{doc['question'].strip()}\nAnswer the question using a single word or phrase."


def process_results(doc: dict, results: list[str]) -> dict[str, Item]:
    """An item for each rate of the question's setting under each parser, and one for the mean F1."""
    truth = doc["answer"].strip().lower()
    items = {}
    for parser, parse in YES_NO_PARSERS.items():
        prediction = parse(results[0])
        items[parser] = {
            "question_id": doc["question_id"],
            "group": doc["group"],
            "setting": doc["category"],
            "answer": truth,
            "prediction": prediction,
            "score": float(prediction == truth),
        }
    rates = {
        f"Scenes-POPE/{doc['category']}/{rate}/{parser}": items[parser] for parser in items for rate in RATES
    }
    return {"Scenes-POPE/f1/official": items["official"], **rates}
