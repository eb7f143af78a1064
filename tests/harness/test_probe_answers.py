"""A probe's answers: right where its facts are, by chance where they are nothing, as a formula where it is
half sure; and its words are the questions'."""

import pytest
import torch

from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.objects import COLORS, KINDS, article
from encoder.data.scenes.questions import ANSWERS, facts, pope_questions, seed_questions
from encoder.data.scenes.wording import POPE_QUESTION
from encoder.metrics.readout import UNDEFINED
from harness.probe.answers import answer_scores, answers_to, topic_of
from harness.probe.scene_facts import NOTHING, NUM_CELLS, NUM_VALUES, PARTNER, Read, facts_of

SCENES = [make_scene(3, index, "test") for index in range(250)]
CAT, BALL, RED, BLUE = KINDS.index("cat"), KINDS.index("ball"), 0, list(COLORS).index("blue")


def knowing(known):
    """A reader that is sure of facts (N F), and of nothing where they are undefined."""
    sure = []
    for fact, count in zip(known.T, NUM_VALUES, strict=True):
        one = torch.nn.functional.one_hot(fact.clamp_min(0), count).double()
        sure.append(torch.where((fact == UNDEFINED)[:, None], 1 / count, one))
    return Read.of(sure)


def empty():
    """A picture of which a reader is sure that nothing is in it."""
    read = knowing(torch.full((1, len(NUM_VALUES)), UNDEFINED))
    read.kinds.zero_()
    read.kinds[..., NOTHING] = 1
    return read


def test_who_knows_every_fact_answers_every_question_of_the_world():
    read, topics = knowing(facts_of(SCENES)), set()
    for row, scene in enumerate(SCENES):
        for fact in facts(scene):
            scores = answer_scores(read[[row]], fact.question)[0]
            best = scores.argmax().item()
            assert (answers_to(fact.question)[best], (scores == scores[best]).sum()) == (fact.answer, 1), fact
            topics.add(topic_of(fact.question))
        for kind in KINDS:
            scores = answer_scores(read[[row]], POPE_QUESTION.format(a_kind=article(kind)))[0]
            shown = any(item.kind == kind for item in scene.items)
            assert scores.tolist() == pytest.approx([0.0, 1.0] if shown else [1.0, 0.0])
    assert topics == set(ANSWERS)


def test_every_question_of_both_benchmarks_is_known_with_its_options():
    for question in seed_questions(0, 20):
        assert set(question.options) <= set(answers_to(question.question))
    for question in pope_questions(0, 10):
        assert answers_to(question.question) == ("no", "yes")
    with pytest.raises(ValueError, match="no question of Scenes: 'who is this"):
        answer_scores(empty(), "who is this?")


def test_half_sure_numbers_are_those_of_independent_coins():
    read = empty()
    for cell, chance in ((0, 0.5), (3, 0.2)):
        read.kinds[0, cell, CAT], read.kinds[0, cell, NOTHING] = chance, 1 - chance
    none, one, two = 0.5 * 0.8, 0.5 * 0.8 + 0.5 * 0.2, 0.5 * 0.2
    assert answer_scores(read, "Is there a cat in the image?")[0].tolist() == pytest.approx([none, one + two])
    assert answer_scores(read, "how many cats are there?")[0].tolist() == pytest.approx([one, two, 0, 0])
    assert answer_scores(read, "where is the cat?")[0].tolist() == pytest.approx([0.5, 0, 0, 0.2, 0, 0])


def test_colours_and_relations_are_sums_over_the_cells():
    read = empty()
    for cell, kind, chance, color in ((0, CAT, 0.6, RED), (4, CAT, 0.4, BLUE), (1, BALL, 1.0, BLUE)):
        read.kinds[0, cell, kind], read.kinds[0, cell, NOTHING] = chance, 1 - chance
        read.colors[0, cell] = torch.nn.functional.one_hot(torch.tensor(color), len(COLORS)).double()
    asked = answer_scores(read, "what color is the cat?")[0]
    assert (asked[RED], asked[BLUE]) == (pytest.approx(0.6), pytest.approx(0.4))
    left, right, above, below = answer_scores(read, "where is the cat relative to the ball?")[0].tolist()
    assert (left, right, above, below) == pytest.approx((0.6, 0, 0, 0.4))
    same = answer_scores(read, "what has the same color as the ball?")[0]
    assert (same[CAT], same[BALL]) == (pytest.approx(0.4), 0)
    beside = answer_scores(read, "what color is the object left of the ball?")[0]
    assert (beside[RED], beside[BLUE]) == (pytest.approx(0.6), 0)


def test_a_partner_that_shares_a_slot_has_a_cell_of_its_own():
    known = facts_of(SCENES)
    for row, scene in zip(known.tolist(), SCENES, strict=True):
        attached = [item for item in scene.items if item.is_attached]
        assert row[PARTNER] == (KINDS.index(attached[0].kind) if attached else NOTHING)
        others = [item for item in scene.items if not item.is_attached]
        assert sum(kind != NOTHING for kind in row[:PARTNER]) == len(others)
        assert (row[NUM_CELLS + PARTNER] == UNDEFINED) == (not attached)
        assert (row[-1] == UNDEFINED) == (scene.interaction is None)
