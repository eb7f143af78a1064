"""What lmms-eval calls for Scenes-SEED. The columns, the prompt and the letter rule are SEED-Bench's
(lmms-eval 0.7.3)."""

from PIL.Image import Image

from encoder.data.scenes.wording import DIMENSIONS
from llava_bridge.answers import Item, accuracy, parse_choice

__all__ = ["accuracy", "doc_to_text", "doc_to_visual", "process_results"]


def doc_to_visual(doc: dict) -> list[Image]:
    """The question's pictures, RGB."""
    return [image.convert("RGB") for image in doc["image"]]


def doc_to_text(doc: dict) -> str:
    """Question, four lettered options, and the instruction to answer by letter."""
    options = "\n".join(f"{letter}. {doc[f'choice_{letter.lower()}']}" for letter in "ABCD")
    return f"{doc['question']}\n{options}\nAnswer with the option's letter from the given choices directly."


def process_results(doc: dict, results: list[str]) -> dict[str, Item]:
    """One item for the whole set and one for the question's dimension."""
    prediction = parse_choice(results[0])
    item = {
        "question_id": doc["question_id"],
        "group": doc["group"],
        "answer": doc["answer"],
        "prediction": prediction,
        "score": float(prediction == doc["answer"]),
    }
    return {"Scenes-SEED": item, f"Scenes-SEED/{DIMENSIONS[int(doc['question_type_id'])]}": item}
