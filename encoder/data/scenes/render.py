"""Pictures of scenes: deterministic, antialiased by drawing larger and averaging down, any size from 64 to
512 px."""

from __future__ import annotations

import colorsys
import math
import random

import numpy as np

from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.kinds import DRAW, TURN, draw_sign
from encoder.data.scenes.objects import COLORS, FLYERS
from encoder.data.scenes.pen import RGB, Fill, Palette, Pen, mix
from encoder.data.scenes.places import DRAW_PLACE, Backdrop
from encoder.data.scenes.scene import Item, Scene, Sign, split_of

__all__ = ["MAX_SIZE", "MIN_SIZE", "make_scene", "render", "split_of", "visible_fraction"]

MIN_SIZE, MAX_SIZE = 64, 512


def render(scene: Scene, size: int) -> np.ndarray:
    """The picture of `scene`, uint8 (size, size, 3).

    Raises: ValueError for a size outside 64..512.
    """
    factor = _oversampling(size)
    canvas = Backdrop(size, factor, scene.horizon, random.Random(scene.backdrop))
    DRAW_PLACE[scene.place](canvas)
    for thing in _back_to_front(scene):
        if isinstance(thing, Item) and _stands(scene, thing):
            p = thing.pose
            canvas.disc(p.x, p.y + 0.97 * p.half, 0.8 * p.half, 0.16 * p.half, (16, 16, 40, 70))
        _draw(canvas, scene, thing, None)
        if scene.interaction is not None and thing is _last_of_tied(scene):
            _draw_rope(canvas, scene)
    return np.asarray(canvas.image.reduce(factor))


def visible_fraction(scene: Scene, number: int, size: int = 128) -> float:
    """What share of object `number`'s silhouette is not covered by what stands in front of it (0 to 1)."""
    target = scene.items[number]
    counts = []
    for things in ([target], _back_to_front(scene)):
        canvas = Backdrop(size, 1, scene.horizon, random.Random(0))
        for thing in things:
            _draw(canvas, scene, thing, (255, 255, 255) if thing is target else (1, 1, 1))
        counts.append(np.count_nonzero(np.asarray(canvas.image)[..., 0] > 128))
    return counts[1] / counts[0]


def _oversampling(size: int) -> int:
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"image_size must be from {MIN_SIZE} to {MAX_SIZE} pixels, got {size}")
    return 4 if size <= 128 else 2


def _back_to_front(scene: Scene) -> list[Item | Sign]:
    things: list[Item | Sign] = [*scene.items] if scene.sign is None else [*scene.items, scene.sign]
    return sorted(things, key=lambda thing: thing.pose.depth)


def _stands(scene: Scene, item: Item) -> bool:
    """Whether the object throws a shadow on the ground below it."""
    if scene.place == "sea" or (item.is_attached and scene.interaction[1] == "sits"):
        return False
    return item.row == "bottom" or item.kind not in FLYERS


def _last_of_tied(scene: Scene) -> Item | None:
    actor, verb, base = scene.interaction
    if verb != "tied":
        return None
    return max(scene.items[actor], scene.items[base], key=lambda item: item.pose.depth)


def _draw(canvas: Backdrop, scene: Scene, thing: Item | Sign, flat: Fill | None) -> None:
    p, size = thing.pose, canvas.size
    limit = 0.0 if isinstance(thing, Sign) else TURN.get(thing.kind, 4.0)
    pen = Pen(
        canvas.draw,
        p.x * size,
        p.y * size,
        p.half * size,
        angle=math.radians(limit * p.turn),
        flip=p.flip,
        flat=flat,
    )
    if isinstance(thing, Sign):
        draw_sign(pen, thing.word)
    else:
        DRAW[thing.kind](pen, _palette(scene, thing))


def _palette(scene: Scene, item: Item) -> Palette:
    base = _tinted(COLORS[item.color], item.pose.hue)
    if scene.place == "night":
        base = mix(base, (40, 40, 110), 0.16)
    elif scene.place == "sea":
        base = mix(base, (30, 130, 190), 0.1)
    return Palette.of(base, is_white=item.color == "white")


def _tinted(color: RGB, shift: float) -> RGB:
    """A slightly different shade of the same named colour."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in color))
    hue = (hue + 0.014 * shift) % 1
    value = min(1.0, value * (1 + 0.05 * math.sin(9 * shift)))
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))  # type: ignore[return-value]


def _draw_rope(canvas: Backdrop, scene: Scene) -> None:
    actor, _, base = scene.interaction
    a, b = scene.items[actor].pose, scene.items[base].pose
    (x0, y0), (x1, y1) = (a.x, a.y + 0.2 * a.half), (b.x, b.y + 0.3 * b.half)
    points = []
    for i in range(13):
        t = i / 12
        points.append((x0 + (x1 - x0) * t, y0 + (y1 - y0) * t + 0.05 * math.sin(math.pi * t)))
    canvas.line(points, (70, 44, 30), 0.026)
    canvas.line(points, (236, 204, 140), 0.014)
    for x, y in (points[0], points[-1]):
        canvas.disc(x, y, 0.022, 0.022, (70, 44, 30))
        canvas.disc(x, y, 0.014, 0.014, (236, 204, 140))
