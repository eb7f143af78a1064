"""What lmms-eval calls for Scenes-SEED. The columns are SEED-Bench's, and so is the protocol of its paper:
the answer is the option that the model finds likeliest after the question (arXiv:2307.16125).

The options are no part of the prompt: to answer by letter is a skill of its own, which a Llama of 2 M
parameters does not have, and not what is measured here. The likelihood is the mean over an option's tokens.
"""

from PIL.Image import Image

from encoder.data.pictures import as_rgb
from encoder.data.scenes.wording import DIMENSIONS, LETTERS, WORD_PROMPT
from llava_bridge.answers import Item, accuracy, likeliest

__all__ = ["accuracy", "doc_to_choice", "doc_to_target", "doc_to_text", "doc_to_visual", "process_results"]


def doc_to_visual(doc: dict) -> list[Image]:
    """The question's pictures, RGB."""
    return [as_rgb(image) for image in doc["image"]]


def doc_to_text(doc: dict) -> str:
    """The question, and the instruction to answer it shortly."""
    return f"{doc['question']}\n{WORD_PROMPT}"


def doc_to_choice(doc: dict) -> list[str]:
    """The four options."""
    return [doc[f"choice_{letter.lower()}"] for letter in LETTERS]


def doc_to_target(doc: dict) -> int:
    """The right option's place."""
    return LETTERS.index(doc["answer"])


def process_results(doc: dict, results: list[tuple[float, bool]]) -> dict[str, Item]:
    """One item for the whole set and one for the question's dimension."""
    item = likeliest(doc, results)
    return {"Scenes-SEED": item, f"Scenes-SEED/{DIMENSIONS[int(doc['question_type_id'])]}": item}
