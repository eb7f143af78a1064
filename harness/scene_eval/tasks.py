"""Prompts with their truths: each says something of a scene that was composed, so that it can be drawn.

The nine tasks are GenEval's six and the world's size, place and sign. They leave the pairs out that no train
picture showed; those have tasks of their own. Letters: M prompts.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from encoder.data.options import HeldOut
from encoder.data.scenes import wording
from encoder.data.scenes.compose import NOTHING_HELD_OUT, make_scene
from encoder.data.scenes.objects import PLACES, PLURALS, article
from encoder.data.scenes.scene import Item, Scene, Split, pick
from encoder.data.scenes.text import relations
from harness.scene_eval.config import tasks_of
from harness.scene_eval.facts import Fact, Seen, all_hold, there

# Prompts that a task has at least, before one is taken twice
_DIFFERENT = {"single": 16, "counting": 16, "size": 24, "sign": 8}
_MOST_SCENES = 400  # looked at for each prompt wanted of a task


@dataclass(frozen=True, slots=True)
class ScenePrompt:
    """A prompt, the facts that make a picture of it right, and the scene that it was made of."""

    prompt: str
    task: str
    facts: list[Fact]
    scene: int  # index of its scene
    swapped: list[Fact] = field(default_factory=list)  # binding: the facts of exchanged colours
    chance: float = 0.0  # share of random scenes of which the facts hold

    def record(self) -> dict[str, Any]:
        """As a line of JSON."""
        return asdict(self)


Told = tuple[str, list[Fact]]


def _single(scene: Scene, rng: random.Random) -> Told | None:
    item = pick(rng, scene.items)
    return article(item.kind), [there(item.kind)]


def _two(scene: Scene, rng: random.Random) -> Told | None:
    pair = _pair(scene, rng)
    if pair is None:
        return None
    words = " and ".join(article(item.kind) for item in pair)
    return words, [there(item.kind) for item in pair]


def _counting(scene: Scene, rng: random.Random) -> Told | None:
    counts = Counter(item.kind for item in scene.items)
    several = [kind for kind, count in counts.items() if count > 1]
    if not several:
        return None
    kind = pick(rng, several)
    words = f"{wording.NUMBERS[counts[kind]]} {PLURALS[kind]}"
    return words, [{"fact": "count", "kind": kind, "count": counts[kind]}]


def _colour(scene: Scene, rng: random.Random) -> Told | None:
    item = pick(rng, scene.items)
    return f"{article(item.color)} {item.kind}", [there(item.kind, color=item.color)]


def _position(scene: Scene, rng: random.Random) -> Told | None:
    found = [each for each in relations(scene) if each[0].kind != each[2].kind]
    if not found:
        return None
    first, relation, second = pick(rng, found)
    words = f"{article(first.kind)} {wording.RELATIONS[relation]} {article(second.kind)}"
    return words, [{"fact": "relation", "first": first.kind, "relation": relation, "second": second.kind}]


def _binding(scene: Scene, rng: random.Random) -> Told | None:
    pair = _pair(scene, rng)
    if pair is None or pair[0].color == pair[1].color:
        return None
    words = " and ".join(f"{article(item.color)} {item.kind}" for item in pair)
    return words, [there(item.kind, color=item.color) for item in pair]


def _size(scene: Scene, rng: random.Random) -> Told | None:
    item = pick(rng, scene.items)
    return f"a {item.size} {item.kind}", [there(item.kind, size=item.size)]


def _place(scene: Scene, rng: random.Random) -> Told | None:
    item = pick(rng, scene.items)
    words = f"{article(item.kind)} {PLACES[scene.place]}"
    return words, [there(item.kind), {"fact": "place", "place": scene.place}]


def _sign(scene: Scene, rng: random.Random) -> Told | None:
    if scene.sign is None:
        return None
    return f"a sign says {scene.sign.word}", [{"fact": "word", "word": scene.sign.word}]


def _slot(scene: Scene, rng: random.Random) -> Told | None:
    standing = [item for item in scene.items if not item.is_attached]
    item = pick(rng, standing)
    return f"{article(item.kind)} at the {item.slot}", [there(item.kind, slot=item.slot)]


def _pair(scene: Scene, rng: random.Random) -> tuple[Item, Item] | None:
    """Two objects of different kinds."""
    first = pick(rng, scene.items)
    others = [item for item in scene.items if item.kind != first.kind]
    return (first, pick(rng, others)) if others else None


_MAKE: dict[str, Callable[[Scene, random.Random], Told | None]] = {
    "single": _single, "two": _two, "counting": _counting, "colour": _colour, "position": _position,
    "binding": _binding, "size": _size, "place": _place, "sign": _sign, "slot": _slot,
    "unseen-colour": _colour, "unseen-slot": _slot,
}  # fmt: skip


def is_unseen(facts: list[Fact], held_out: HeldOut) -> bool:
    """Whether a fact is of a pair that is held out."""
    return any(held_out.has(fact.get("kind"), fact.get("color"), fact.get("slot")) for fact in facts)


def make_prompts(
    seed: int,
    split: Split,
    num: int,
    *,
    first: int = 0,
    held_out: HeldOut = NOTHING_HELD_OUT,
    tasks: tuple[str, ...] | None = None,
) -> list[ScenePrompt]:
    """`num` prompts of each task, in order of the tasks, of scenes of a split from number `first` on. The
    same arguments give the same prompts.

    Raises: ValueError: there are not so many different ones.
    """
    tasks = tasks or tasks_of(held_out)
    found: dict[str, list[ScenePrompt]] = {task: [] for task in tasks}
    taken: Counter[tuple[str, str]] = Counter()
    unseen = {"unseen-colour": held_out.colors, "unseen-slot": held_out.slots}
    different = _DIFFERENT | {task: sum(map(len, pairs.values())) for task, pairs in unseen.items()}
    for index in range(first, first + _MOST_SCENES * num):
        left = [task for task in tasks if len(found[task]) < num]
        if not left:
            return [prompt for task in tasks for prompt in found[task]]
        scene = make_scene(seed, index, split)
        for task in left:
            made = _made(scene, index, task, held_out, random.Random(f"{seed}/{index}/{task}"))
            again = len(found[task]) // different.get(task, num)
            if made is not None and taken[task, made.prompt] <= again:
                taken[task, made.prompt] += 1
                found[task].append(made)
    counts = {task: len(found[task]) for task in tasks if len(found[task]) < num}
    raise ValueError(f"{_MOST_SCENES * num} scenes gave too few different prompts, {num} wanted: {counts}")


def _made(scene: Scene, index: int, task: str, held_out: HeldOut, rng: random.Random) -> ScenePrompt | None:
    """A task's prompt of a scene; None where it has none whose facts hold of it, seen or unseen as wanted."""
    told = _MAKE[task](scene, rng)
    if told is None:
        return None
    words, facts = told
    seen, swapped = Seen.of(scene), []
    if task == "binding":
        one, two = facts
        swapped = [{**one, "color": two["color"]}, {**two, "color": one["color"]}]
    is_wrong = is_unseen(facts, held_out) != task.startswith("unseen")
    if is_wrong or not all_hold(facts, seen) or (swapped and all_hold(swapped, seen)):
        return None
    return ScenePrompt(words, task, facts, index, swapped)


def random_truths(seed: int, split: Split, num: int, first: int) -> Iterator[Seen]:
    """What is in scenes that no prompt was made of."""
    return (Seen.of(make_scene(seed, index, split)) for index in range(first, first + num))
