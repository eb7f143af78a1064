"""From (seed, index, split) to the truth of a scene and the pose of everything in it. Nothing is drawn here.

Only `Random.random` is used: Python promises its stream for every version.
"""

from __future__ import annotations

import hashlib
import math
import random

from encoder.data.options import Composition, HeldOut
from encoder.data.scenes.object_centric import compose_object_centric
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
from encoder.data.scenes.scene import (
    SPLIT_SHARES,
    Item,
    Pose,
    Scene,
    Sign,
    Split,
    all_visible,
    pick,
    pick_weighted,
    split_of,
)

SCENES_VERSION = 1  # raise it when the same seed and index give another scene, picture or text
NOTHING_HELD_OUT = HeldOut()


def make_scene(
    seed: int,
    index: int,
    split: Split,
    composition: Composition = "scene_centric",
    held_out: HeldOut = NOTHING_HELD_OUT,
) -> Scene:
    """The scene number `index` of `split`; the same arguments give the same scene for ever. What is
    `held_out` no scene of the train split shows; the others are those that there are without.

    Raises: ValueError for an unknown split or composition.
    """
    if split not in SPLIT_SHARES:
        raise ValueError(f"split must be one of {', '.join(SPLIT_SHARES)}, got {split!r}")
    if composition not in _COMPOSE:
        raise ValueError(f"composition must be one of {', '.join(_COMPOSE)}, got {composition!r}")
    words = f"scenes/{seed}/{split}/{index}" + _ADDED[composition]
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    while True:
        scene = _COMPOSE[composition](rng, split)
        if split == "train" and any(held_out.has(i.kind, i.color, i.slot) for i in scene.items):
            continue
        if split_of(scene.truth()) == split and all_visible(scene):
            return scene


_NUM_OBJECTS = {1: 0.13, 2: 0.23, 3: 0.28, 4: 0.22, 5: 0.14}


def _compose_scene_centric(rng: random.Random, split: str) -> Scene:
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


_COMPOSE = {"scene_centric": _compose_scene_centric, "object_centric": compose_object_centric}
_ADDED = {"scene_centric": "", "object_centric": "/object_centric"}  # to what a scene's draw is a hash of
