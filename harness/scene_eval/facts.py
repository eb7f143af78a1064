"""What a picture shows, and when a fact holds of it: the same for a truth and for what the judge read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from encoder.data.scenes.objects import COLUMN_X, COLUMNS, SIZES
from encoder.data.scenes.scene import Scene
from encoder.runtime.config import choose

Fact = Mapping[str, Any]
# Fraction of the height: above it is the top row. Centres lie at 0.20 to 0.46 there, at 0.68 to 0.85 below
MIDDLE = 0.56
_FREE, _LEAST = 0.1, 0.5  # GenEval's: of the extents no offset counts; the part of it that makes a relation


@dataclass(frozen=True, slots=True)
class Thing:
    """An object with the middle of its box, in fractions of the picture's sides."""

    kind: str
    color: str
    size: str
    x: float
    y: float

    @property
    def slot(self) -> str:
        """The nearest of the six slots."""
        column = min(range(len(COLUMNS)), key=lambda i: abs(self.x - COLUMN_X[i]))
        return f"{'top' if self.y < MIDDLE else 'bottom'} {COLUMNS[column]}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What is in a picture; `word` is the sign's."""

    things: tuple[Thing, ...]
    place: str
    word: str | None

    @staticmethod
    def of(scene: Scene) -> "Seen":
        """What a perfect judge would read."""
        things = [Thing(i.kind, i.color, i.size, i.pose.x, i.pose.y) for i in scene.items]
        return Seen(tuple(things), scene.place, scene.sign and scene.sign.word)


def there(kind: str, **looks: str) -> Fact:
    """There is such an object; looks: color, size, slot."""
    return {"fact": "there", "kind": kind, **looks}


def _there(fact: Fact, seen: Seen) -> bool:
    looks = {name: fact[name] for name in ("kind", "color", "size", "slot") if name in fact}
    return any(all(getattr(thing, name) == look for name, look in looks.items()) for thing in seen.things)


def _count(fact: Fact, seen: Seen) -> bool:
    return sum(thing.kind == fact["kind"] for thing in seen.things) == fact["count"]


def _relation(fact: Fact, seen: Seen) -> bool:
    firsts, seconds = (
        [thing for thing in seen.things if thing.kind == fact[name]] for name in ("first", "second")
    )
    return any(fact["relation"] in relations(a, b) for a in firsts for b in seconds if a is not b)


def relations(first: Thing, second: Thing) -> set[str]:
    """Where the first thing is from the second: none, one or two of left, right, above, below.

    Source: GenEval (djghosh13/geneval at af4902f, evaluate_images.py, relative_position). Boxes are squares
    of the two sizes.
    """
    x, y = first.x - second.x, first.y - second.y
    free = _FREE * (SIZES[first.size] + SIZES[second.size])
    length = math.hypot(x, y)
    if length == 0:
        return set()
    x, y = (math.copysign(max(0.0, abs(each) - free), each) / length for each in (x, y))
    named = {"left": x < -_LEAST, "right": x > _LEAST, "above": y < -_LEAST, "below": y > _LEAST}
    return {name for name, holds in named.items() if holds}


_KINDS = {
    "there": _there,
    "count": _count,
    "relation": _relation,
    "place": lambda fact, seen: seen.place == fact["place"],
    "word": lambda fact, seen: seen.word == fact["word"],
}


def holds(fact: Fact, seen: Seen) -> bool:
    """Whether a fact holds of a picture.

    Raises: ConfigError: there is no such kind of fact.
    """
    return choose(_KINDS, fact["fact"], "fact")(fact, seen)


def all_hold(facts: Sequence[Fact], seen: Seen) -> bool:
    """Whether a picture is right: all its facts hold."""
    return all(holds(fact, seen) for fact in facts)
