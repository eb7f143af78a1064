"""Scenes: facts, twin groups, and that words alone tell nothing."""

import random
import re
from collections import Counter, defaultdict
from math import log

import pytest

from encoder.data.scenes.compose import make_scene, split_of
from encoder.data.scenes.conversations import (
    choice_turn,
    conversation,
    instruct_record,
    presence_turn,
    short_conversation,
    text_record,
)
from encoder.data.scenes.questions import ANSWERS, facts, pope_questions, seed_questions
from encoder.data.scenes.text import VOCABULARY, split_words
from encoder.data.scenes.wording import DESCRIBE, DIMENSIONS, LETTERS, WORD_PROMPT

SCENES = [make_scene(21, index, "train") for index in range(700)]


@pytest.fixture(scope="module")
def seed_set():
    return seed_questions(0, 448)  # 9 x 448 = 4032


@pytest.fixture(scope="module")
def pope_set():
    return pope_questions(0, 670)  # 3 x 2 x 670 = 4020


def groups_of(questions):
    groups = defaultdict(list)
    for question in questions:
        groups[question.group].append(question)
    return groups


def only(values):
    (value,) = set(values)
    return value


def test_facts_agree_with_the_truth():
    for scene in SCENES:
        truth = scene.truth()
        objects = truth["objects"]
        for fact in facts(scene):
            words = fact.question.rstrip("?").split()
            assert fact.answer in ANSWERS[fact.topic]
            if fact.topic == "place":
                assert fact.answer == truth["place"]
            elif fact.topic == "kind_of_color":
                assert fact.answer == only(o["kind"] for o in objects if o["color"] in words)
            elif fact.topic == "color":
                assert fact.answer == only(o["color"] for o in objects if o["kind"] in words)
            elif fact.topic == "look":
                assert fact.answer == only(f"{o['size']} {o['color']}" for o in objects if o["kind"] in words)
            elif fact.topic == "slot":
                assert fact.answer == only(f"{o['row']} {o['column']}" for o in objects if o["kind"] in words)
            elif fact.topic == "word":
                assert fact.answer == truth["sign"]["word"]


def test_two_step_facts_agree_with_the_positions():
    checked = Counter()
    for scene in SCENES:
        by_kind = defaultdict(list)
        for item in scene.items:
            by_kind[item.kind].append(item)
        for fact in facts(scene):
            words = fact.question.rstrip("?").split()
            named = [kind for kind in by_kind if kind in words]
            if fact.topic == "relation":
                a, b = sorted(named, key=words.index)
                p, q = by_kind[a][0].pose, by_kind[b][0].pose
                dx, dy = p.x - q.x, p.y - q.y
                expected = (
                    ("left" if dx < 0 else "right") if abs(dx) > 0.2 else ("above" if dy < 0 else "below")
                )
                assert fact.answer == expected
            elif fact.topic == "color_beside":
                p = by_kind[named[0]][0].pose
                side = words[5]
                beside = [
                    i.color
                    for i in scene.items
                    if {"left": p.x - i.pose.x > 0.2, "right": i.pose.x - p.x > 0.2,
                        "above": p.y - i.pose.y > 0.2, "below": i.pose.y - p.y > 0.2}[side]
                ]  # fmt: skip
                assert [fact.answer] == beside
            elif fact.topic == "most":
                assert all(len(by_kind[fact.answer]) > len(v) for k, v in by_kind.items() if k != fact.answer)
            elif fact.topic == "same_color":
                color = by_kind[named[0]][0].color
                assert {i.kind for i in scene.items if i.color == color} == {named[0], fact.answer}
            checked[fact.topic] += 1
    assert min(checked[t] for t in ("relation", "color_beside", "most", "same_color")) > 50


def test_seed_has_nine_even_dimensions(seed_set):
    assert Counter(q.dimension for q in seed_set) == dict.fromkeys(DIMENSIONS, 448)


def test_seed_twins_share_words_and_every_letter_is_right_once(seed_set):
    for group in groups_of(seed_set).values():
        assert len({(q.question, q.options, q.dimension) for q in group}) == 1
        assert sorted(q.answer for q in group) == list(LETTERS)
        assert len(set(group[0].options)) == 4
        assert len({id(q.scene) for q in group}) == 4


def test_seed_answers_are_true_and_the_other_options_false(seed_set):
    for question in seed_set:
        right = {f.answer for f in facts(question.scene) if f.question == question.question}
        assert right == {question.options[LETTERS.index(question.answer)]}


def test_seed_asks_little_about_one_picture(seed_set):
    assert max(Counter(id(q.scene) for q in seed_set).values()) <= 2


def test_pope_twins_share_words_and_each_answer_is_right_once(pope_set):
    assert Counter(q.category for q in pope_set) == dict.fromkeys(("random", "popular", "adversarial"), 1340)
    for group in groups_of(pope_set).values():
        assert only(q.question for q in group)
        assert sorted(q.answer for q in group) == ["no", "yes"]
        for question in group:
            kind = question.question.split()[3]
            assert (question.answer == "yes") == (kind in {item.kind for item in question.scene.items})


def test_pope_settings_ask_for_what_they_say(pope_set):
    asked = {
        s: {q.question for q in pope_set if q.category == s} for s in ("random", "popular", "adversarial")
    }
    assert len(asked["random"]) == 16
    assert len(asked["popular"]) == 5
    for group in groups_of(pope_set).values():
        if group[0].category == "adversarial":
            assert only(q.scene.place for q in group)


def test_questions_come_from_test_scenes(seed_set, pope_set):
    assert all(split_of(q.scene.truth()) == "test" for q in [*seed_set[::20], *pope_set[::20]])


def test_too_many_questions_for_the_pool_are_refused(monkeypatch):
    monkeypatch.setattr("encoder.data.scenes.questions._POOL_LIMIT", 1000)
    with pytest.raises(ValueError, match="ask for fewer"):
        seed_questions(0, 400)


def ngrams(text):
    words = split_words(text)
    return [tuple(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)]


class NgramModel:
    """Naive Bayes over n-grams of the question for each answer text, fitted on train-split questions."""

    def __init__(self, pairs):
        self.answers = Counter(answer for _, answer in pairs)
        self.grams = defaultdict(Counter)
        for question, answer in pairs:
            self.grams[answer].update(ngrams(question))

    def score(self, question, answer):
        total = sum(self.grams[answer].values()) + 1000
        return log(self.answers[answer] + 1) + sum(
            log((self.grams[answer][g] + 0.1) / total) for g in ngrams(question)
        )


def test_an_ngram_model_answers_seed_at_chance(seed_set):
    rng = random.Random(0)
    pairs = []
    for scene in SCENES:
        for fact in facts(scene):
            prompt, letter = choice_turn(scene, fact, rng)
            pairs += [(fact.question, fact.answer), (prompt, letter)]
    model = NgramModel(pairs)
    by_text = by_letter = 0
    guesses = {}
    for q in seed_set:
        key = (q.question, q.options)
        if key not in guesses:
            best = max(range(4), key=lambda i, q=q: model.score(q.question, q.options[i]))
            prompt = " ".join([q.question, *(f"{a}. {o}" for a, o in zip(LETTERS, q.options, strict=True))])
            guesses[key] = LETTERS[best], max(LETTERS, key=lambda a, p=prompt: model.score(p, a))
        by_text += guesses[key][0] == q.answer
        by_letter += guesses[key][1] == q.answer
    assert abs(by_text / len(seed_set) - 0.25) < 0.03
    assert abs(by_letter / len(seed_set) - 0.25) < 0.03


def test_an_ngram_model_answers_pope_at_chance(pope_set):
    rng = random.Random(1)
    model = NgramModel([presence_turn(scene, rng) for scene in SCENES for _ in range(3)])
    right = 0
    for q in pope_set:
        guess = max(("Yes", "No"), key=lambda a, q=q: model.score(q.question, a))
        right += guess.lower() == q.answer
    assert abs(right / len(pope_set) - 0.5) < 0.03


def test_training_conversations_are_even_and_cover_everything():
    turns = [turn for i, scene in enumerate(SCENES) for turn in conversation(scene, random.Random(i))]
    letters = Counter(answer for _, answer in turns if answer in LETTERS)
    assert max(letters.values()) / sum(letters.values()) < 0.28
    yes = Counter(answer for question, answer in turns if "in the image" in question)
    assert abs(yes["Yes"] / sum(yes.values()) - 0.5) < 0.05
    starts = {question.split()[0] + question.split()[1] for question, _ in turns}
    assert {
        "whichscene",
        "whatcolor",
        "whereis",
        "howmany",
        "howdoes",
        "whichkind",
        "whatdoes",
        "Isthere",
    } <= starts
    assert 6 <= len(turns) / len(SCENES) <= 8
    assert {word for turn in turns for text in turn for word in split_words(text)} <= set(VOCABULARY)


def test_short_conversations_instruct_once_and_ask_first_what_is_there():
    firsts = Counter()
    for i, scene in enumerate(SCENES):
        texts = [turn["value"] for turn in instruct_record(scene, f"{i}", "x.png", 0)["conversations"]]
        questions, num_kinds = texts[::2], len({item.kind for item in scene.items})
        assert questions[0].startswith("<image>\n") and questions[0].endswith(f"\n{WORD_PROMPT}")
        assert not any(WORD_PROMPT in question or "<image>" in question for question in questions[1:])
        assert len(set(questions)) == len(questions)
        assert not any(question in DESCRIBE for question in questions[:-1])
        is_presence = ["in the image?" in question for question in questions]
        assert is_presence == sorted(is_presence, reverse=True)
        assert sum(is_presence) in (0, min(2, num_kinds))
        num_others = len(questions) - sum(is_presence) - (questions[-1] in DESCRIBE)
        assert num_others <= (3 if any(is_presence) else 4)
        firsts[" ".join(questions[0].split()[1:3])] += 1
    assert {"Is there", "which scene", "what color", "where is", "how many"} <= set(firsts)
    assert 0.4 < firsts["Is there"] / len(SCENES) < 0.6


def test_short_conversations_answer_yes_as_often_as_no():
    answers = Counter()
    for i, scene in enumerate(SCENES):
        kinds = {item.kind for item in scene.items}
        for draw in range(10):
            for question, answer in short_conversation(scene, random.Random(f"{i}/{draw}")):
                if found := re.match(r"Is there an? (\w+) in the image", question):
                    assert (found[1] in kinds) == (answer == "Yes")
                    answers[answer] += 1
    assert abs(answers["Yes"] / answers.total() - 0.5) < 0.02  # 7,000 draws: a standard error of 0.006


def test_choice_turns_put_the_right_answer_behind_their_letter():
    rng = random.Random(3)
    for scene in SCENES[:100]:
        for fact in facts(scene):
            prompt, letter = choice_turn(scene, fact, rng)
            lines = prompt.split("\n")
            assert f"{letter}. {fact.answer}" == lines[1 + LETTERS.index(letter)]
            assert len({line[3:] for line in lines[1:5]}) == 4


def test_text_rows_put_the_caption_where_the_picture_will_be():
    rows = [text_record(scene, f"{i}", 0) for i, scene in enumerate(SCENES[:60])]
    assert {"text" in row for row in rows} == {True, False}
    for row, scene in zip(rows, SCENES, strict=False):
        first = row["text"] if "text" in row else row["conversations"][0]["value"]
        assert scene.items[0].color in first.split("\n")[0]
