"""What lmms-eval calls for Own-Captions: the caption that the model finds likeliest after the words that it
was trained to answer with a caption. The likelihood is the mean over a caption's tokens."""

from encoder.data.scenes.wording import LETTERS
from llava_bridge.answers import Item, accuracy

__all__ = ["accuracy", "doc_to_text", "process_results"]


def doc_to_text(doc: dict) -> str:
    """The words of the training data, as they are."""
    return doc["question"]


def process_results(doc: dict, results: list[tuple[float, bool]]) -> dict[str, Item]:
    """One item for the whole set.

    results: (mean loss of its tokens, whether greedy decoding gives it) of each; of equals, the first.
    """
    losses = [loss for loss, _ in results]
    prediction = LETTERS[losses.index(min(losses))]
    item = {
        "question_id": doc["question_id"],
        "group": doc["group"],
        "answer": doc["answer"],
        "prediction": prediction,
        "score": float(prediction == doc["answer"]),
    }
    return {"Own-Captions": item}
