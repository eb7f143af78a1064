"""What a scene is, whatever composed it: its truth, its pose, its split.

The *truth* is what words can tell (kinds, colours, sizes, slots, place, sign word, interaction); the *pose*
is the rest (exact position, turn, tint, backdrop). A picture's split is a hash of its truth, so that two
pictures of the same truth are never in two splits.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from encoder.data.scenes.objects import EXTENT, KINDS

Split = Literal["train", "val", "test"]
SPLIT_SHARES: dict[str, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
T = TypeVar("T")
Box = tuple[float, float, float, float]  # left, top, right, bottom, fractions of the picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Where and how an object is drawn: centre and half side of its box (fractions of the picture), turn,
    tint."""

    x: float
    y: float
    half: float
    turn: float  # -1..1 of the kind's own limit
    flip: bool
    hue: float  # -1..1, a small shift of the colour
    depth: float  # drawn in increasing order


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One object. `row` and `column` name its slot; `is_attached` says that it shares another object's
    slot."""

    kind: str
    color: str
    size: str
    row: str
    column: str
    is_attached: bool
    pose: Pose

    @property
    def slot(self) -> str:
        return f"{self.row} {self.column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    word: str
    row: str
    column: str
    pose: Pose


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One scene. `items[0]` is the main object; `interaction` is (actor, verb, base), as indices into
    `items`."""

    split: str
    place: str
    items: tuple[Item, ...]
    sign: Sign | None
    interaction: tuple[int, str, int] | None
    horizon: float  # where the far ground begins, fraction of the height
    backdrop: int  # seed of the backdrop's details

    @property
    def label(self) -> int:
        return KINDS.index(self.items[0].kind)

    def truth(self) -> dict[str, Any]:
        """All that words can tell of the scene, ready for JSON."""
        return {
            "place": self.place,
            "objects": [
                {"kind": i.kind, "color": i.color, "size": i.size, "row": i.row, "column": i.column}
                for i in self.items
            ],
            "sign": None
            if self.sign is None
            else {"word": self.sign.word, "row": self.sign.row, "column": self.sign.column},
            "interaction": None if self.interaction is None else list(self.interaction),
        }


def split_of(truth: dict[str, Any]) -> Split:
    """The split a truth belongs to, whatever the seed. The order of the other objects does not count."""
    objects = [json.dumps(item, sort_keys=True) for item in truth["objects"]]
    pair = truth["interaction"]
    named = None if pair is None else [objects[pair[0]], pair[1], objects[pair[2]]]
    canonical = json.dumps(
        [truth["place"], objects[0], sorted(objects[1:]), truth["sign"], named], sort_keys=True
    )
    draw = int.from_bytes(hashlib.blake2b(canonical.encode(), digest_size=8).digest(), "big") / 2**64
    for split, share in SPLIT_SHARES.items():
        draw -= share
        if draw < 0:
            return split  # type: ignore[return-value]
    return "test"


def pick(rng: random.Random, choices: Sequence[T]) -> T:
    return choices[int(rng.random() * len(choices))]


def pick_weighted(rng: random.Random, weights: dict[T, float]) -> T:
    draw = rng.random() * sum(weights.values())
    for choice, weight in weights.items():
        draw -= weight
        if draw < 0:
            return choice
    return choice


def all_visible(scene: Scene, limit: float = 0.34) -> bool:
    """Whether what is in front covers at most `limit` of every object's box (the interaction's own cover
    aside)."""
    boxes = [item_box(item) for item in scene.items]
    depths = [item.pose.depth for item in scene.items]
    if scene.sign is not None:
        boxes.append(sign_box(scene.sign))
        depths.append(scene.sign.pose.depth)
    pair = () if scene.interaction is None else (scene.interaction[0], scene.interaction[2])
    for i, box in enumerate(boxes):
        covered = sum(
            overlap(box, other)
            for j, other in enumerate(boxes)
            if depths[j] > depths[i] and not (i in pair and j in pair)
        )
        room = (0.1 if i in pair else limit) if i < len(scene.items) else 0.02
        if covered > room * (box[2] - box[0]) * (box[3] - box[1]):
            return False
    return True


def item_box(item: Item) -> Box:
    """The box of an object's silhouette."""
    width, top = EXTENT[item.kind]
    x, y, half = item.pose.x, item.pose.y, item.pose.half
    return (x - width * half, y + top * half, x + width * half, y + half)


def sign_box(sign: Sign) -> Box:
    """The box of a sign's board."""
    x, y, half = sign.pose.x, sign.pose.y, sign.pose.half
    return (x - half, y - 0.62 * half, x + half, y + 0.34 * half)


def overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
