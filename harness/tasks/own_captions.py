"""What lmms-eval calls for Own-Captions: the caption that the model finds likeliest after the words that it
was trained to answer with a caption. The likelihood is the mean over a caption's tokens."""

from llava_bridge.answers import Item, accuracy, likeliest

__all__ = ["accuracy", "doc_to_text", "process_results"]


def doc_to_text(doc: dict) -> str:
    """The words of the training data, as they are."""
    return doc["question"]


def process_results(doc: dict, results: list[tuple[float, bool]]) -> dict[str, Item]:
    """One item for the whole set."""
    return {"Own-Captions": likeliest(doc, results)}
