"""What a model's text answer means, and the rates and standard errors over many of them.

Yes/no answers are read twice, because the two parsers differ: `exact` is lmms-eval's (the whole answer is
"yes" or "no"), `official` is POPE's own (first sentence; "no" or "not" among its words means no, anything
else yes). All values are fractions.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

LETTERS = "ABCD"  # of a question's options
_LETTER = re.compile(r"^\W*([A-Da-d])(?![A-Za-z])")
Item = Mapping[str, object]  # {"question_id", "group", "answer", "prediction", "score"}


def parse_choice(text: str) -> str:
    """The option letter that an answer opens with ("B", "(B)", "b. red"), or "" if there is none."""
    found = _LETTER.match(text.strip())
    return found.group(1).upper() if found else ""


def parse_yes_no_exact(text: str) -> str:
    """ "yes" or "no" if that is the whole answer, else "other". Source: lmms-eval 0.7.3,
    tasks/pope/utils.py."""
    text = text.strip().lower()
    return text if text in ("yes", "no") else "other"


def parse_yes_no_official(text: str) -> str:
    """ "no" if the first sentence has the word No, no or not, else "yes", even for an empty answer.

    Source: POPE's evaluate.py as LLaVA c121f04 carries it (llava/eval/eval_pope.py).
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


YES_NO_PARSERS: dict[str, Callable[[str], str]] = {
    "exact": parse_yes_no_exact,
    "official": parse_yes_no_official,
}


def _confusion(items: Sequence[Item]) -> tuple[int, int, int]:
    pairs = [(item["answer"], item["prediction"]) for item in items]
    return pairs.count(("yes", "yes")), pairs.count(("no", "yes")), pairs.count(("yes", "no"))


def accuracy(items: Sequence[Item]) -> float:
    """Mean of the items' `score`."""
    return sum(float(item["score"]) for item in items) / len(items)


def precision(items: Sequence[Item]) -> float:
    """True yes among predicted yes; 0 where nothing was predicted yes."""
    true_yes, false_yes, _ = _confusion(items)
    return true_yes / (true_yes + false_yes) if true_yes + false_yes else 0.0


def recall(items: Sequence[Item]) -> float:
    """Predicted yes among the true yes that were answered yes or no, as lmms-eval counts; 0 where there is
    none."""
    true_yes, _, false_no = _confusion(items)
    return true_yes / (true_yes + false_no) if true_yes + false_no else 0.0


def f1(items: Sequence[Item]) -> float:
    """Harmonic mean of precision and recall; 0 where both are."""
    total = precision(items) + recall(items)
    return 2 * precision(items) * recall(items) / total if total else 0.0


def yes_ratio(items: Sequence[Item]) -> float:
    """Share of the predictions that are yes (lmms-eval's metric of this name counts the ground truth
    instead)."""
    return sum(item["prediction"] == "yes" for item in items) / len(items)


def mean_f1_of_settings(items: Sequence[Item]) -> float:
    """F1 averaged over the items' `setting`s, as LLaVA-1.5's published POPE score is."""
    settings = sorted({item["setting"] for item in items})
    return sum(f1([item for item in items if item["setting"] == setting]) for setting in settings) / len(
        settings
    )


def bootstrap_stderr(
    items: Sequence[Item], aggregate: Callable[[Sequence[Item]], float], seed: int, num_resamples: int = 200
) -> float:
    """Standard error of `aggregate` when whole groups of questions are drawn again with replacement.

    Questions of one group share words and options, so they are not independent draws.
    """
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault(item["group"], []).append(item)
    members = list(groups.values())
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples):
        drawn = generator.integers(len(members), size=len(members))
        values.append(aggregate([item for group in drawn for item in members[group]]))
    return float(np.std(values, ddof=1))


def mme_points(answers: Sequence[float]) -> float:
    """Points of one of MME's pictures, 0 to 200: percent of right answers, and 100 more if all are."""
    return 100 * sum(answers) / len(answers) + 100 * (sum(answers) == len(answers))


def mme_stderr(items: Sequence[Item]) -> float | None:
    """Standard error, in points, of MME's score: the sum over categories of their pictures' mean points.

    Pictures are independent draws and the two questions of one are not: each category adds the variance of
    its pictures' points over their number. None where a category has one picture, whose spread is unknown.
    items: {"category", "question_id" (the picture's), "score"}.
    """
    categories: dict[object, dict[object, list[float]]] = {}
    for item in items:
        pictures = categories.setdefault(item["category"], {})
        pictures.setdefault(item["question_id"], []).append(float(item["score"]))
    points = [[mme_points(answers) for answers in pictures.values()] for pictures in categories.values()]
    if any(len(each) == 1 for each in points):
        return None
    return float(sum(np.var(each, ddof=1) / len(each) for each in points) ** 0.5)


def likeliest(doc: dict, results: list[tuple[float, bool]]) -> Item:
    """The answer to a question of several options, by SEED-Bench's protocol: the option of least loss.

    results: (mean loss of its tokens, whether greedy decoding gives it) of each option; of equals, the first.
    """
    losses = [loss for loss, _ in results]
    prediction = LETTERS[losses.index(min(losses))]
    return {
        "question_id": doc["question_id"],
        "group": doc["group"],
        "answer": doc["answer"],
        "prediction": prediction,
        "score": float(prediction == doc["answer"]),
    }
