"""Questions about scenes: the facts of a scene, Scenes-SEED in groups of four twins, Scenes-POPE in groups
of two.

A *twin group* has the same words and the same options over different scenes, and every answer is right
exactly once, so that an answer made from the words alone is right by chance: 25 % and 50 %.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from encoder.data.scenes import wording
from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.objects import (
    AFFINITY,
    COLORS,
    COLUMNS,
    KINDS,
    PLACES,
    PLURALS,
    ROWS,
    SIGN_WORDS,
    SIZES,
    article,
)
from encoder.data.scenes.scene import Item, Scene, Split, pick, pick_weighted
from encoder.data.scenes.text import relations

POPE_SETTINGS = ("random", "popular", "adversarial")
EVAL_FIRST_INDEX = 1_000_000  # the evaluation's scenes are not those of the test shards
_POOL_STEP, _POOL_LIMIT = 1000, 200_000
_FACTS_PER_SCENE = (
    2  # Scenes-SEED asks at most so much about one picture: answers should be nearly independent
)
NUM_POPULAR = 5

ANSWERS: dict[str, tuple[str, ...]] = {
    "place": tuple(PLACES),
    "kind_of_color": KINDS,
    "kind_at_slot": KINDS,
    "color": tuple(COLORS),
    "look": tuple(f"{size} {color}" for size in SIZES for color in COLORS),
    "slot": tuple(f"{row} {column}" for row in ROWS for column in COLUMNS),
    "count": wording.NUMBERS[1:5],
    "relation": tuple(wording.RELATIONS),
    "interaction": tuple(wording.INTERACTION_ANSWERS.values()),
    "same_color": KINDS,
    "color_beside": tuple(COLORS),
    "most": KINDS,
    "word": SIGN_WORDS,
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A question about one scene and its only right answer among `ANSWERS[topic]`."""

    topic: str
    question: str
    answer: str

    @property
    def dimension(self) -> int:
        return wording.QUESTIONS[self.topic][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedQuestion:
    scene: Scene
    question: str
    options: tuple[str, str, str, str]
    answer: str  # a letter
    dimension: int
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PopeQuestion:
    scene: Scene
    question: str
    answer: str  # "yes" or "no"
    category: str
    group: int


def _fact(topic: str, answer: str, **words: str) -> Fact:
    return Fact(topic, wording.QUESTIONS[topic][1].format(**words), answer)


def facts(scene: Scene) -> list[Fact]:
    """Everything that can be asked about `scene` with exactly one right answer."""
    items = scene.items
    counts = Counter(item.kind for item in items)
    unique = [item for item in items if counts[item.kind] == 1]
    found = [_fact("place", scene.place)]
    for color, count in Counter(item.color for item in items).items():
        if count == 1:
            found.append(_fact("kind_of_color", next(i.kind for i in items if i.color == color), color=color))
    for slot, count in Counter(item.slot for item in items).items():
        if count == 1:
            found.append(_fact("kind_at_slot", next(i.kind for i in items if i.slot == slot), slot=slot))
    for item in unique:
        found.append(_fact("color", item.color, kind=item.kind))
        found.append(_fact("look", f"{item.size} {item.color}", kind=item.kind))
        if not item.is_attached:
            found.append(_fact("slot", item.slot, kind=item.kind))
    for kind, count in counts.items():
        if count < len(wording.NUMBERS) - 1:
            found.append(_fact("count", wording.NUMBERS[count], kinds=PLURALS[kind]))
    for first, relation, second in relations(scene):
        if counts[first.kind] == counts[second.kind] == 1:
            found.append(_fact("relation", relation, kind=first.kind, other=second.kind))
    if scene.interaction is not None:
        actor, verb, base = items[scene.interaction[0]], scene.interaction[1], items[scene.interaction[2]]
        if counts[actor.kind] == counts[base.kind] == 1:
            found.append(
                _fact("interaction", wording.INTERACTION_ANSWERS[verb], kind=actor.kind, other=base.kind)
            )
    if scene.sign is not None:
        found.append(_fact("word", scene.sign.word))
    return found + _reasoning(scene, unique, counts)


def _reasoning(scene: Scene, unique: Sequence[Item], counts: Counter[str]) -> list[Fact]:
    """Facts that take two steps: compare colours, find a neighbour and look at it, count and compare."""
    found = []
    for item in unique:
        alike = {other.kind for other in scene.items if other.color == item.color} - {item.kind}
        if len(alike) == 1:
            found.append(_fact("same_color", alike.pop(), kind=item.kind))
        if item.is_attached or any(other.is_attached for other in scene.items):
            continue
        for relation, words in wording.RELATIONS.items():
            beside = [
                other for other in scene.items if other is not item and _is_towards(other, relation, item)
            ]
            if len(beside) == 1 and (beside[0].row == item.row or beside[0].column == item.column):
                found.append(_fact("color_beside", beside[0].color, relation=words, kind=item.kind))
    ranked = counts.most_common(2)
    if ranked[0][1] > 1 and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
        found.append(_fact("most", ranked[0][0]))
    return found


def _is_towards(other: Item, relation: str, item: Item) -> bool:
    """Whether `other` lies on that side of `item`, even if not in line with it."""
    columns = COLUMNS.index(other.column) - COLUMNS.index(item.column)
    rows = ROWS.index(other.row) - ROWS.index(item.row)
    return {"left": columns < 0, "right": columns > 0, "above": rows < 0, "below": rows > 0}[relation]


def _pool(seed: int, split: Split) -> Iterator[list[Scene]]:
    for first in range(EVAL_FIRST_INDEX, EVAL_FIRST_INDEX + _POOL_LIMIT, _POOL_STEP):
        yield [make_scene(seed, index, split) for index in range(first, first + _POOL_STEP)]


def seed_questions(seed: int, num_per_dimension: int, split: Split = "test") -> list[SeedQuestion]:
    """Scenes-SEED: `num_per_dimension` questions (rounded up to whole groups of four) in each of the nine
    dimensions.

    Topics of one dimension take turns. Raises: ValueError when the pool of scenes is too small for so many
    groups.
    """
    num_groups = -(-num_per_dimension // 4)
    quota = _topic_quota(num_groups)
    waiting: dict[tuple[str, str], dict[str, list[Scene]]] = defaultdict(lambda: defaultdict(list))
    groups: dict[str, list[tuple[str, dict[str, Scene]]]] = defaultdict(list)
    rng = random.Random(seed)
    for scenes in _pool(seed, split):
        for scene in scenes:
            wanted = [fact for fact in facts(scene) if len(groups[fact.topic]) < quota[fact.topic]]
            wanted.sort(key=lambda fact: (len(groups[fact.topic]) / quota[fact.topic], rng.random()))
            for fact in wanted[:_FACTS_PER_SCENE]:
                if len(groups[fact.topic]) == quota[fact.topic]:
                    continue
                shelf = waiting[fact.topic, fact.question]
                shelf[fact.answer].append(scene)
                if len(shelf) >= 4:
                    answers = _four_answers(rng, shelf)
                    groups[fact.topic].append((fact.question, {a: shelf[a].pop() for a in answers}))
                    for answer in [a for a in shelf if not shelf[a]]:
                        del shelf[answer]
        if all(len(groups[topic]) >= count for topic, count in quota.items()):
            return _laid_out(groups, rng)
    raise ValueError(
        f"{num_per_dimension} questions a dimension need more than {_POOL_LIMIT} scenes; ask for fewer"
    )


def _topic_quota(num_groups: int) -> dict[str, int]:
    quota = {}
    for dimension in wording.DIMENSIONS:
        topics = [topic for topic, (number, _) in wording.QUESTIONS.items() if number == dimension]
        for place, topic in enumerate(topics):
            quota[topic] = num_groups // len(topics) + (place < num_groups % len(topics))
    return quota


def _four_answers(rng: random.Random, shelf: dict[str, list[Scene]]) -> list[str]:
    answers = sorted(shelf)
    return [answers.pop(int(rng.random() * len(answers))) for _ in range(4)]


def _laid_out(
    groups: dict[str, list[tuple[str, dict[str, Scene]]]], rng: random.Random
) -> list[SeedQuestion]:
    questions: list[SeedQuestion] = []
    topics = sorted(groups, key=list(wording.QUESTIONS).index)
    number = 0
    for topic in topics:
        for question, scenes in groups[topic]:
            options = tuple(scenes)
            order = sorted(range(4), key=lambda _: rng.random())
            for place in order:
                questions.append(
                    SeedQuestion(
                        scene=scenes[options[place]],
                        question=question,
                        options=options,
                        answer=wording.LETTERS[place],
                        dimension=wording.QUESTIONS[topic][0],
                        group=number,
                    )
                )
            number += 1
    return questions


def pope_questions(seed: int, num_pairs: int, split: Split = "test") -> list[PopeQuestion]:
    """Scenes-POPE: `num_pairs` twin pairs in each setting; what is asked for is absent once and present once.

    random: any absent kind. popular: one of the kinds seen most. adversarial: the absent kind that goes best
    with the place, and the twin that has it is at the same place.
    """
    scenes: list[Scene] = []
    questions: list[PopeQuestion] = []
    rng = random.Random(seed + 1)
    chunks = _pool(seed, split)
    while len(scenes) < 6 * num_pairs:
        scenes += next(chunks)
    seen = Counter(kind for scene in scenes for kind in {item.kind for item in scene.items})
    popular = [kind for kind, _ in seen.most_common(NUM_POPULAR)]
    free = sorted(scenes, key=lambda _: rng.random())
    for setting in POPE_SETTINGS:
        made = 0
        while made < num_pairs:
            if not free:
                free = sorted(next(chunks), key=lambda _: rng.random())
            without = free.pop()
            kind = absent_kind(rng, without, setting, popular)
            if kind is None:
                continue
            twin = next(
                (i for i in range(len(free) - 1, -1, -1) if _is_twin(free[i], without, kind, setting)), None
            )
            if twin is None:
                continue
            with_it = free.pop(twin)
            text = wording.POPE_QUESTION.format(a_kind=article(kind))
            group = len(questions) // 2
            for scene, answer in ((with_it, "yes"), (without, "no")):
                questions.append(
                    PopeQuestion(scene=scene, question=text, answer=answer, category=setting, group=group)
                )
            made += 1
    return questions


def absent_kind(rng: random.Random, scene: Scene, setting: str, popular: Sequence[str]) -> str | None:
    """A kind that `scene` does not show, chosen as the setting says; None where all candidates are shown."""
    shown = {item.kind for item in scene.items}
    if setting == "random":
        return pick(rng, [kind for kind in KINDS if kind not in shown])
    if setting == "popular":
        absent = [kind for kind in popular if kind not in shown]
        return pick(rng, absent) if absent else None
    weights = {kind: weight for kind, weight in AFFINITY[scene.place].items() if kind not in shown}
    best = max(weights.values())
    return pick_weighted(rng, {kind: weight for kind, weight in weights.items() if weight == best})


def _is_twin(scene: Scene, without: Scene, kind: str, setting: str) -> bool:
    if setting == "adversarial" and scene.place != without.place:
        return False
    return any(item.kind == kind for item in scene.items)
