"""Training texts of Scenes: LLaVA's two stages, and a text corpus that teaches a language model to read the
world.

Questions are worded and answered as lmms-eval's SEED-Bench and POPE tasks want them. Letters are drawn
evenly, Yes and No are drawn evenly, and frequent answers are asked for less often, so that the words hold no
prior to lean on.
"""

from __future__ import annotations

import functools
import random
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

from encoder.data.scenes import wording
from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.layout import lay_out
from encoder.data.scenes.objects import AFFINITY, KINDS, article
from encoder.data.scenes.questions import ANSWERS, Fact, facts
from encoder.data.scenes.scene import Scene, pick, pick_weighted
from encoder.data.scenes.text import re_caption

Turn = tuple[str, str]  # question, answer
_RARE = {7, 9}  # dimensions that few scenes can be asked about: asked whenever they can be
_NUM_CHOICE_TURNS = 5
_NUM_PRESENCE_TURNS, _NUM_SHORT_TURNS = 2, 4  # of a short conversation: Yes/No at most; others without those
_DESCRIBED = 0.12  # of all conversations
_NUM_LAYOUT_PRESENCE, _NUM_LAYOUT_TURNS = 3, 9  # of a scene laid out in cells: Yes/No at most; others at most
_LAYOUT_WITH_PRESENCE, _LAYOUT_DESCRIBED, _LAYOUT_CAPTIONED = 0.7, 0.1, 0.2  # of these scenes
_CENSUS = 1500  # scenes that tell how frequent each answer is
_FAVOUR = 2.5  # how much less strict than exactly even answers


def letter_prompt(question: str, options: tuple[str, ...]) -> str:
    """The words of lmms-eval's `seed_doc_to_text`."""
    lines = [f"{letter}. {option}" for letter, option in zip(wording.LETTERS, options, strict=True)]
    return "\n".join([question, *lines, wording.LETTER_PROMPT])


def word_prompt(question: str) -> str:
    """The words of lmms-eval's `pope_doc_to_text`."""
    return f"{question}\n{wording.WORD_PROMPT}"


def conversation(scene: Scene, rng: random.Random) -> list[Turn]:
    """Short turns: one or two Yes/No, a few with options, one with a free short answer; sometimes a
    description."""
    chosen = _choose_facts(scene, rng)
    # what is there is asked first: later questions name things that are there
    turns = [presence_turn(scene, rng) for _ in range(1 + (rng.random() < 0.5))]
    others = [choice_turn(scene, fact, rng) for fact in chosen[:_NUM_CHOICE_TURNS]]
    if chosen:
        fact = pick(rng, chosen[_NUM_CHOICE_TURNS:] or chosen)
        others.append((word_prompt(fact.question), fact.answer))
    return turns + sorted(others, key=lambda _: rng.random()) + _description(scene, rng)


def short_conversation(scene: Scene, rng: random.Random) -> list[Turn]:
    """Turns answered in words, the first alone with the instruction to answer so: half of the time two Yes/No
    (about different kinds; one where a single kind is shown) and at most three others, else at most four
    others; sometimes a description.

    What is there is asked first or not at all, since the others name it; so any question may be the first, as
    a benchmark's only one is.
    """
    others = [(fact.question, fact.answer) for fact in _choose_facts(scene, rng)][:_NUM_SHORT_TURNS]
    presence: list[Turn] = []
    if rng.random() < 0.5 or not others:
        presence = _presence_turns(scene, rng, _NUM_PRESENCE_TURNS)
        others = others[: _NUM_SHORT_TURNS - 1]
    (first, answer), *rest = presence + sorted(others, key=lambda _: rng.random())
    return [(word_prompt(first), answer), *rest, *_description(scene, rng)]


def _presence_turns(scene: Scene, rng: random.Random, most: int) -> list[Turn]:
    """At most `most` questions about different kinds; no more than kinds are shown."""
    answers: dict[str, str] = {}  # by kind
    for _ in range(min(most, len({item.kind for item in scene.items}))):
        kind, answer = _draw_presence(scene, rng, answers)
        answers[kind] = answer
    return [(_presence_question(kind), answer) for kind, answer in answers.items()]


def _choose_facts(scene: Scene, rng: random.Random) -> list[Fact]:
    """One fact of each dimension that the scene can be asked about, those of rare ones first."""
    keep = _keep_shares()
    kept: dict[int, dict[str, list[Fact]]] = defaultdict(lambda: defaultdict(list))
    for fact in facts(scene):
        if rng.random() < keep[fact.topic, fact.answer]:
            kept[fact.dimension][fact.topic].append(fact)
    order = sorted(kept, key=lambda dimension: (dimension not in _RARE, rng.random()))
    return [pick(rng, pick(rng, list(kept[dimension].values()))) for dimension in order]


def _description(scene: Scene, rng: random.Random) -> list[Turn]:
    """One turn for 12 % of the conversations, none for the others."""
    return [] if rng.random() >= _DESCRIBED else [_describe(scene, rng)]


def _describe(scene: Scene, rng: random.Random) -> Turn:
    return pick(rng, wording.DESCRIBE), re_caption(scene, variant=int(rng.random() * 16))


def choice_turn(scene: Scene, fact: Fact, rng: random.Random) -> Turn:
    """A question with four options, one right; half of the time one wrong option is true of something else
    here."""
    wrong = [answer for answer in ANSWERS[fact.topic] if answer != fact.answer]
    here = sorted({other.answer for other in facts(scene) if other.topic == fact.topic} - {fact.answer})
    options = [fact.answer]
    if here and rng.random() < 0.5:
        options.append(pick(rng, here))
    while len(options) < 4:
        option = pick(rng, wrong)
        if option not in options:
            options.append(option)
    options = sorted(options, key=lambda _: rng.random())
    return letter_prompt(fact.question, tuple(options)), wording.LETTERS[options.index(fact.answer)]


def presence_turn(scene: Scene, rng: random.Random) -> Turn:
    """Is it there? Yes as often as No; what is absent is as frequent as what is shown, half of it apt for
    the place."""
    kind, answer = _draw_presence(scene, rng)
    return word_prompt(_presence_question(kind)), answer


def _draw_presence(scene: Scene, rng: random.Random, asked: Collection[str] = ()) -> Turn:
    """A kind not asked for before, and whether it is there; Yes and No alike while a shown kind is left."""
    present = {item.kind for item in scene.items}
    if rng.random() < 0.5:
        return pick(rng, sorted(present.difference(asked))), "Yes"
    weights = AFFINITY[scene.place] if rng.random() < 0.5 else _kind_frequency()
    absent = {name: weight for name, weight in weights.items() if name not in present.union(asked)}
    return pick_weighted(rng, absent), "No"


def _presence_question(kind: str) -> str:
    return wording.POPE_QUESTION.format(a_kind=article(kind))


def pretrain_record(scene: Scene, name: str, image: str) -> dict[str, Any]:
    """LLaVA stage 1 (`plain`): a picture and its dense caption."""
    return _record(name, [("<image>", re_caption(scene))], image)


def instruct_record(scene: Scene, name: str, image: str, seed: int) -> dict[str, Any]:
    """LLaVA stage 2: a picture and a few turns, all answered in words; the first begins with `<image>`.

    Few turns of few words: a small model learns to look from a short context far sooner than from a long one.
    """
    rng = random.Random(f"instruct/{seed}/{name}")
    (question, answer), *rest = short_conversation(scene, rng)
    return _record(name, [(f"<image>\n{question}", answer), *rest], image)


def text_record(scene: Scene, name: str, seed: int) -> dict[str, Any]:
    """Reading: a dense caption stands where the picture will stand, then turns. Every second row is two
    captions of one scene: to foresee the second, a model must look back at the first, word by word."""
    rng = random.Random(f"text/{seed}/{name}")
    caption = re_caption(scene, variant=int(rng.random() * 16))
    if rng.random() < 0.5:
        return {"id": name, "text": f"{caption}\n{re_caption(scene, variant=16 + int(rng.random() * 16))}"}
    (question, answer), *rest = conversation(scene, rng)
    return _record(name, [(f"{caption}\n{question}", answer), *rest], None)


def layout_record(scene: Scene, name: str, seed: int, grid: int) -> dict[str, Any]:
    """Reading by place: the scene's cells (`layout.lay_out`) stand where a picture will stand. Most rows ask
    in many turns for what they hold, one in ten asks for a description, and one in five is a caption alone as
    stage 1 has it: the frozen language model must know how to say what it sees before a projector can learn
    from what it says. `topics` says what each turn is about."""
    rng = random.Random(f"layout/{seed}/{name}")
    if rng.random() < _LAYOUT_CAPTIONED:
        topics, turns = ["caption"], [("<image>", re_caption(scene, variant=int(rng.random() * 16)))]
    else:
        topics, ((question, answer), *rest) = _layout_turns(scene, rng)
        turns = [(f"<image>\n{question}", answer), *rest]
    return _record(name, turns, None) | {"topics": topics, "cells": lay_out(scene, grid)}


def _layout_turns(scene: Scene, rng: random.Random) -> tuple[list[str], list[Turn]]:
    """The turns of a scene laid out in cells, and the topic of each."""
    if rng.random() < _LAYOUT_DESCRIBED:
        return ["description"], [_describe(scene, rng)]
    facts_ = list(dict.fromkeys([*_choose_facts(scene, rng), *_choose_facts(scene, rng)]))[:_NUM_LAYOUT_TURNS]
    presence: list[Turn] = []
    if rng.random() < _LAYOUT_WITH_PRESENCE or not facts_:
        presence = _presence_turns(scene, rng, _NUM_LAYOUT_PRESENCE)
    facts_ = sorted(facts_, key=lambda _: rng.random())
    (first, answer), *rest = presence + [(fact.question, fact.answer) for fact in facts_]
    topics = ["presence"] * len(presence) + [fact.topic for fact in facts_]
    return topics, [(word_prompt(first) if rng.random() < 0.5 else first, answer), *rest]


def _record(name: str, turns: list[Turn], image: str | None) -> dict[str, Any]:
    values = []
    for question, answer in turns:
        values += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name} | ({"image": image} if image else {}) | {"conversations": values}


@functools.cache
def _census() -> tuple[Counter[tuple[str, str]], Counter[str]]:
    answers: Counter[tuple[str, str]] = Counter()
    kinds: Counter[str] = Counter()
    for index in range(_CENSUS):
        scene = make_scene(0, index, "train")
        answers.update((fact.topic, fact.answer) for fact in facts(scene))
        kinds.update({item.kind for item in scene.items})
    return answers, kinds


@functools.cache
def _keep_shares() -> dict[tuple[str, str], float]:
    """With which probability a question with this answer is kept, so that a topic's answers come out nearly
    even."""
    counts = _census()[0]
    shares = {}
    for topic, answers in ANSWERS.items():
        rarest = min(counts[topic, answer] or 1 for answer in answers)
        for answer in answers:
            shares[topic, answer] = min(1.0, _FAVOUR * rarest / (counts[topic, answer] or 1))
    return shares


@functools.cache
def _kind_frequency() -> dict[str, float]:
    return {kind: float(_census()[1][kind]) for kind in KINDS}
