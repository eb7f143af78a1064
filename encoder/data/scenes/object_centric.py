"""Scenes of which the main object fills most: pictures *of* a class, as ImageNet's are.

Its kind is the picture's class. At most one small other thing stands beside it; there is no sign and nobody
does anything with another.
"""

from __future__ import annotations

import random

from encoder.data.scenes.objects import (
    AFFINITY,
    COLORS,
    COLUMN_X,
    COLUMNS,
    FLYERS,
    KINDS,
    PLACES,
    ROWS,
    SIZES,
)
from encoder.data.scenes.scene import Item, Pose, Scene, pick, pick_weighted

_MAIN_SIDE = (0.52, 0.66)  # of the main object's box, fraction of the picture's side
_MAIN_X = (0.40, 0.5, 0.60)  # its middle in the columns: none is far from the middle
_MAIN_COLUMNS = {"left": 0.25, "middle": 0.5, "right": 0.25}
_OTHER_SHARE = 0.5  # of what is drawn has another thing; where one hides the other it is drawn anew


def compose_object_centric(rng: random.Random, split: str) -> Scene:
    """One large object at a place, at times a small one beside it; drawn from `rng`."""
    kind = pick(rng, KINDS)
    place = pick_weighted(rng, {place: AFFINITY[place][kind] for place in PLACES})
    horizon = 0.46 + 0.05 * rng.random()
    items = [_main(rng, kind)]
    if rng.random() < _OTHER_SHARE:
        items.append(_other(rng, pick_weighted(rng, AFFINITY[place]), items[0], horizon))
    return Scene(
        split=split,
        place=place,
        items=tuple(items),
        sign=None,
        interaction=None,
        horizon=horizon,
        backdrop=int(rng.random() * 2**31),
    )


def _main(rng: random.Random, kind: str) -> Item:
    low, high = _MAIN_SIDE
    half = (low + (high - low) * rng.random()) / 2
    column = pick_weighted(rng, _MAIN_COLUMNS)
    row = "top" if kind in FLYERS and rng.random() < 0.5 else "bottom"
    x = _MAIN_X[COLUMNS.index(column)] + 0.03 * (2 * rng.random() - 1)
    y = (half + 0.04 if row == "top" else 0.95 - half) + 0.03 * (2 * rng.random() - 1)
    return _item(rng, kind, "large", row, column, (x, y, half))


def _other(rng: random.Random, kind: str, main: Item, horizon: float) -> Item:
    """A small thing in one of the other columns; the standing ones of the top row stand on the horizon."""
    column = pick(rng, [column for column in COLUMNS if column != main.column])
    row = pick(rng, ROWS)
    half = SIZES["small"] / 2 * (0.95 + 0.12 * rng.random())
    x = COLUMN_X[COLUMNS.index(column)] + 0.025 * (2 * rng.random() - 1)
    foot = 0.92 if row == "bottom" else 0.225 + half if kind in FLYERS else horizon + 0.025
    return _item(rng, kind, "small", row, column, (x, foot + 0.022 * (2 * rng.random() - 1) - half, half))


def _item(
    rng: random.Random, kind: str, size: str, row: str, column: str, box: tuple[float, float, float]
) -> Item:
    """An object of a colour and turn of its own; box: its middle and half its side."""
    x, y, half = box
    pose = Pose(
        x=x,
        y=y,
        half=half,
        turn=2 * rng.random() - 1,
        flip=rng.random() < 0.5,
        hue=2 * rng.random() - 1,
        depth=y + half,
    )
    color = pick(rng, tuple(COLORS))
    return Item(kind=kind, color=color, size=size, row=row, column=column, is_attached=False, pose=pose)
