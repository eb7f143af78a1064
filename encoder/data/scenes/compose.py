"""From (seed, index, split) to the truth of a scene and the pose of everything in it. Nothing is drawn here.

The *truth* is what words can tell (kinds, colours, sizes, slots, place, sign word, interaction); the *pose*
is the rest (exact position, turn, tint, backdrop). A picture's split is a hash of its truth, so that two
pictures of the same truth are never in two splits. Only `Random.random` is used: Python promises its stream
for every version.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from encoder.data.scenes.objects import (
    ACTORS,
    AFFINITY,
    BASES,
    COLORS,
    COLUMN_X,
    COLUMNS,
    EXTENT,
    FLYERS,
    KINDS,
    PLACES,
    ROWS,
    SIGN_WORDS,
    SIZES,
)

Split = Literal["train", "val", "test"]
SCENES_VERSION = 1  # raise it when the same seed and index give another scene, picture or text
SPLIT_SHARES: dict[str, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
T = TypeVar("T")


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


def make_scene(seed: int, index: int, split: Split) -> Scene:
    """The scene number `index` of `split`; the same arguments give the same scene for ever.

    Raises: ValueError for an unknown split.
    """
    if split not in SPLIT_SHARES:
        raise ValueError(f"split must be one of {', '.join(SPLIT_SHARES)}, got {split!r}")
    digest = hashlib.blake2b(f"scenes/{seed}/{split}/{index}".encode(), digest_size=8).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    while True:
        scene = _compose(rng, split)
        if split_of(scene.truth()) == split and _all_visible(scene):
            return scene


_NUM_OBJECTS = {1: 0.13, 2: 0.23, 3: 0.28, 4: 0.22, 5: 0.14}


def _compose(rng: random.Random, split: str) -> Scene:
    kinds, place = _choose_kinds(rng)
    verb = None
    if len(kinds) > 1 and kinds[0] in BASES and rng.random() < 0.62:
        actors = {kind: AFFINITY[place][kind] for kind in ACTORS if kind != kinds[0]}
        kinds[1] = pick_weighted(rng, actors)
        verb = pick(rng, ("sits", "hides", "tied", "front"))
    horizon = 0.46 + 0.05 * rng.random()
    free = {(row, column) for row in ROWS for column in COLUMNS}
    items: list[Item] = []
    for number, kind in enumerate(kinds):
        is_actor = verb is not None and number == 1
        size = "small" if is_actor else "large" if number == 0 or rng.random() < 0.36 else "small"
        color = pick(rng, tuple(COLORS))
        if is_actor:
            items.append(_actor(rng, kind, color, verb, items[0], free, horizon))
            continue
        needs_bottom = number == 0 and verb in ("sits", "front")
        row, column = _choose_slot(rng, free, kind, is_main=number == 0, needs_bottom=needs_bottom)
        free.discard((row, column))
        pose = _pose(rng, kind, size, row, column, horizon)
        items.append(
            Item(kind=kind, color=color, size=size, row=row, column=column, is_attached=False, pose=pose)
        )
    sign = _sign(rng, free, horizon) if free and rng.random() < 0.34 else None
    return Scene(
        split=split,
        place=place,
        items=tuple(items),
        sign=sign,
        interaction=None if verb is None else (1, verb, 0),
        horizon=horizon,
        backdrop=int(rng.random() * 2**31),
    )


def _choose_kinds(rng: random.Random) -> tuple[list[str], str]:
    """Kinds of all objects, the main one first, and the place. Half of the fuller scenes repeat one kind."""
    main = pick(rng, KINDS)
    place = pick_weighted(rng, {place: AFFINITY[place][main] for place in PLACES})
    num_objects = pick_weighted(rng, _NUM_OBJECTS)
    kinds = [main]
    if num_objects > 1 and rng.random() < 0.5:
        repeated = main if rng.random() < 0.5 else pick_weighted(rng, AFFINITY[place])
        num_repeated = 2 + int(math.sqrt(rng.random()) * (num_objects - 1))
        kinds += [repeated] * (num_repeated - (repeated == main))
    while len(kinds) < num_objects:
        kinds.append(pick_weighted(rng, AFFINITY[place]))
    return kinds[:num_objects], place


def _choose_slot(
    rng: random.Random, free: set[tuple[str, str]], kind: str, *, is_main: bool, needs_bottom: bool
) -> tuple[str, str]:
    weights = {}
    for row in ROWS:
        for column in COLUMNS:
            if (row, column) in free and not (needs_bottom and row == "top"):
                likes_row = (row == "top") == (kind in FLYERS)
                weights[row, column] = (1.0 if likes_row else 0.5) * (
                    1.5 if is_main and column == "middle" else 1.0
                )
    return pick_weighted(rng, weights)


def _pose(rng: random.Random, kind: str, size: str, row: str, column: str, horizon: float) -> Pose:
    half = SIZES[size] / 2 * (0.95 + 0.12 * rng.random())
    x = COLUMN_X[COLUMNS.index(column)] + 0.025 * (2 * rng.random() - 1)
    shift = 0.022 * (2 * rng.random() - 1)
    if row == "bottom":
        foot = 0.92 + shift if kind not in FLYERS else 0.88 + 2 * shift
    elif kind in FLYERS:
        foot = 0.225 + shift + half
    else:
        foot = horizon + 0.025 + shift
    return Pose(
        x=x,
        y=min(foot, 0.985) - half,
        half=half,
        turn=2 * rng.random() - 1,
        flip=rng.random() < 0.5,
        hue=2 * rng.random() - 1,
        depth=foot,
    )


def _actor(
    rng: random.Random,
    kind: str,
    color: str,
    verb: str,
    base: Item,
    free: set[tuple[str, str]],
    horizon: float,
) -> Item:
    """The small partner of an interaction, placed by what it does with `base`. Takes its slots from
    `free`."""
    if verb == "tied":
        sides = sorted(slot for slot in free if _are_neighbours(slot, (base.row, base.column)))
        row, column = pick(rng, sides)
        free.discard((row, column))
        pose = _pose(rng, kind, "small", row, column, horizon)
        return Item(
            kind=kind, color=color, size="small", row=row, column=column, is_attached=False, pose=pose
        )
    half = SIZES["small"] / 2 * (0.94 + 0.1 * rng.random())
    b, (width, top) = base.pose, EXTENT[base.kind]
    own_width = EXTENT[kind][0] * half
    side = -1.0 if rng.random() < 0.5 else 1.0
    if verb == "sits":
        free.discard(("top", base.column))
        x, y, depth = b.x, b.y + top * b.half - 0.9 * half, b.depth + 0.001
    elif verb == "hides":  # from the side where there is more room; that slot stays empty
        if base.column != "middle":
            side = 1.0 if base.column == "left" else -1.0
        beside = COLUMNS[COLUMNS.index(base.column) + int(side)]
        free.discard((base.row, beside))
        x = b.x + side * (width * b.half * 0.94 + own_width * 0.5)
        y, depth = b.y + b.half - half - 0.03, b.depth - 0.001
    else:
        x = b.x + side * 0.5 * b.half
        y, depth = min(b.y + b.half + 0.035, 0.985) - half, b.depth + 0.001
    pose = Pose(
        x=x,
        y=y,
        half=half,
        turn=0.4 * (2 * rng.random() - 1),
        flip=rng.random() < 0.5,
        hue=2 * rng.random() - 1,
        depth=depth,
    )
    return Item(
        kind=kind, color=color, size="small", row=base.row, column=base.column, is_attached=True, pose=pose
    )


def _are_neighbours(first: tuple[str, str], second: tuple[str, str]) -> bool:
    rows = abs(ROWS.index(first[0]) - ROWS.index(second[0]))
    return rows + abs(COLUMNS.index(first[1]) - COLUMNS.index(second[1])) == 1


def _sign(rng: random.Random, free: set[tuple[str, str]], horizon: float) -> Sign:
    row, column = pick(rng, sorted(free))
    half = 0.182 * (0.97 + 0.06 * rng.random())
    x = min(max(COLUMN_X[COLUMNS.index(column)], half + 0.015), 1 - half - 0.015)
    foot = (0.93 if row == "bottom" else horizon + 0.02) + 0.012 * (2 * rng.random() - 1)
    pose = Pose(x=x, y=foot - half, half=half, turn=0.0, flip=False, hue=0.0, depth=foot)
    return Sign(word=pick(rng, SIGN_WORDS), row=row, column=column, pose=pose)


def _all_visible(scene: Scene, limit: float = 0.34) -> bool:
    """Whether what is in front covers at most `limit` of every object's box (the interaction's own cover
    aside)."""
    boxes = [_box(item.kind, item.pose) for item in scene.items]
    depths = [item.pose.depth for item in scene.items]
    if scene.sign is not None:
        p = scene.sign.pose
        boxes.append((p.x - p.half, p.y - 0.62 * p.half, p.x + p.half, p.y + 0.34 * p.half))
        depths.append(p.depth)
    pair = () if scene.interaction is None else (scene.interaction[0], scene.interaction[2])
    for i, box in enumerate(boxes):
        covered = sum(
            _overlap(box, other)
            for j, other in enumerate(boxes)
            if depths[j] > depths[i] and not (i in pair and j in pair)
        )
        room = (0.1 if i in pair else limit) if i < len(scene.items) else 0.02
        if covered > room * (box[2] - box[0]) * (box[3] - box[1]):
            return False
    return True


def _box(kind: str, pose: Pose) -> tuple[float, float, float, float]:
    width, top = EXTENT[kind]
    return (
        pose.x - width * pose.half,
        pose.y + top * pose.half,
        pose.x + width * pose.half,
        pose.y + pose.half,
    )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
