"""Answer parsers on real strings, and rates against lmms-eval's own functions."""

import numpy as np
import pytest
from lmms_eval.tasks.pope import utils as lmms_pope

from encoder.data.scenes.wording import DIMENSIONS
from encoder.runtime.config import ROOT
from harness.tasks import scenes_pope, scenes_seed
from llava_bridge.answers import (
    accuracy,
    bootstrap_stderr,
    f1,
    mean_f1_of_settings,
    mme_stderr,
    parse_choice,
    parse_yes_no_exact,
    parse_yes_no_official,
    precision,
    recall,
    yes_ratio,
)

ANSWERS = [
    "Yes",
    "yes.",
    "No",
    "no, there is not",
    "",
    "Yes, there is a dog. No cat.",
    "not",
    "I see none",
    "No.",
    "yes",
]


@pytest.mark.parametrize(
    ("text", "exact", "official"),
    [
        ("Yes", "yes", "yes"),
        ("yes ", "yes", "yes"),
        ("Yes.", "other", "yes"),
        ("no, there is not", "other", "no"),
        ("No", "no", "no"),
        ("", "other", "yes"),
        ("(B)", "other", "yes"),
        ("Yes, there is a dog. No cat.", "other", "yes"),
        ("There is no, well, dog", "other", "no"),
        ("nothing", "other", "yes"),
    ],
)
def test_yes_no_parsers_read_real_answers(text, exact, official):
    assert parse_yes_no_exact(text) == exact
    assert parse_yes_no_official(text) == official


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("b. red", "B"),
        ("  C", "C"),
        ("D.", "D"),
        ("", ""),
        ("E", ""),
        ("Blue", ""),
        ("Yes.", ""),
        ("A cat", "A"),
    ],
)
def test_choice_parser_reads_real_answers(text, letter):
    assert parse_choice(text) == letter


def pope_items(parser: str) -> tuple[list[dict], list[dict]]:
    """Our items and lmms-eval's for the same answers, half of them to a true yes."""
    ours, theirs = [], []
    for i, text in enumerate(ANSWERS):
        doc = {
            "question_id": str(i),
            "group": i // 2,
            "answer": "yes" if i % 2 else "no",
            "category": "random",
        }
        ours.append(scenes_pope.process_results(doc, [text])[f"Scenes-POPE/random/f1/{parser}"])
        theirs.append(lmms_pope.pope_process_results(doc, [text])["pope_accuracy"])
    return ours, theirs


def test_exact_rates_are_those_of_lmms_eval():
    ours, theirs = pope_items("exact")
    assert accuracy(ours) == lmms_pope.pope_aggregate_accuracy(theirs)
    assert precision(ours) == lmms_pope.pope_aggregate_precision(theirs)
    assert recall(ours) == lmms_pope.pope_aggregate_recall(theirs)
    assert f1(ours) == lmms_pope.pope_aggregate_f1_score(theirs)


def test_official_rates_against_a_count_by_hand():
    items, _ = pope_items("official")
    # truth alternates no, yes; official readings: yes yes no no yes yes no yes no yes
    assert accuracy(items) == 7 / 10
    assert precision(items) == 4 / 6
    assert recall(items) == 4 / 5
    assert f1(items) == pytest.approx(8 / 11)
    assert yes_ratio(items) == 6 / 10


def test_mean_f1_averages_the_settings():
    right = {"answer": "yes", "prediction": "yes", "score": 1.0}
    wrong = {"answer": "yes", "prediction": "no", "score": 0.0}
    items = [{**right, "setting": "random"}] * 5 + [{**wrong, "setting": "popular"}]
    assert mean_f1_of_settings(items) == 0.5


def test_seed_item_counts_for_the_whole_and_for_its_dimension():
    doc = {"question_id": "3", "group": 0, "answer": "C", "question_type_id": 5}
    items = scenes_seed.process_results(doc, [(2.0, False), (3.0, False), (0.5, True), (0.6, False)])
    assert set(items) == {"Scenes-SEED", "Scenes-SEED/Instances Counting"}
    assert items["Scenes-SEED"]["score"] == 1.0
    wrong = scenes_seed.process_results(doc, [(2.0, False), (0.1, True), (0.5, False), (0.6, False)])
    assert (wrong["Scenes-SEED"]["prediction"], wrong["Scenes-SEED"]["score"]) == ("B", 0.0)


def test_bootstrap_counts_a_group_as_one_draw():
    """Groups of equal answers: the error is that of 25 draws, not of 100."""
    items = [{"group": group, "score": float(group % 2)} for group in range(25) for _ in range(4)]
    stderr = bootstrap_stderr(items, accuracy, seed=0, num_resamples=2000)
    assert stderr == pytest.approx((0.48 * 0.52 / 25) ** 0.5, rel=0.1)


def test_every_dimension_of_scenes_has_its_metric():
    text = (ROOT / "harness" / "tasks" / "scenes_seed.yaml").read_text()
    assert all(f"metric: Scenes-SEED/{name}," in text for name in DIMENSIONS.values())


def test_mmes_error_is_the_spread_of_its_sum_over_categories():
    """Four categories of some tens of pictures, against the scores of 600 draws of them."""
    generator = np.random.default_rng(0)
    sizes, both_right, one_right = (30, 40, 60, 150), (0.5, 0.7, 0.6, 0.3), (0.3, 0.2, 0.2, 0.5)

    def draw() -> list[dict]:
        items = []
        for category, size in enumerate(sizes):
            kinds = generator.random(size)
            for picture, kind in enumerate(kinds):
                right = (
                    2 if kind < both_right[category] else kind < both_right[category] + one_right[category]
                )
                scores = [float(right > 0), float(right > 1)]
                items += [{"category": category, "question_id": picture, "score": each} for each in scores]
        return items

    def score(items) -> float:
        points = np.array([each["score"] for each in items]).reshape(-1, 2).sum(axis=1)
        points = np.array([0.0, 50.0, 200.0])[points.astype(int)]
        return sum(each.mean() for each in np.split(points, np.cumsum(sizes)[:-1]))

    draws = [draw() for _ in range(600)]
    expected = np.std([score(items) for items in draws], ddof=1)
    assert np.mean([mme_stderr(items) for items in draws[:100]]) == pytest.approx(expected, rel=0.1)
    assert mme_stderr(draws[0]) > 10  # points; that of a mean of 0 and 1 would be about 0.02


def test_mmes_error_is_unknown_where_a_category_has_one_picture():
    items = [{"category": "color", "question_id": "0.png", "score": 1.0} for _ in range(2)]
    assert mme_stderr(items) is None
