"""A pen that draws in an object's own box: x and y in [-1, 1], y down, (0, 1) the point it stands on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ImageDraw

RGB = tuple[int, int, int]
Fill = tuple[int, ...]  # RGB, or RGBA with alpha 0..255
Point = tuple[float, float]

_CIRCLES = {
    n: [(math.cos(2 * math.pi * i / n), math.sin(2 * math.pi * i / n)) for i in range(n)]
    for n in (16, 32, 72)
}


def mix(first: RGB, second: RGB, amount: float) -> RGB:
    """`first` moved towards `second` by `amount` in [0, 1]."""
    return tuple(int(a + (b - a) * amount) for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Palette:
    """The shades of one object: its colour, lit, in shade, its outline, and a colour that shows on top of
    it."""

    base: RGB
    light: RGB
    dark: RGB
    line: RGB
    accent: RGB

    @classmethod
    def of(cls, base: RGB, *, is_white: bool) -> Palette:
        return cls(
            base=base,
            light=mix(base, (255, 255, 255), 0.38),
            dark=mix(base, (60, 66, 90) if is_white else (20, 16, 50), 0.26),
            line=mix(base, (24, 20, 44), 0.66),
            accent=(168, 176, 200) if is_white else (255, 252, 244),
        )


class Pen:
    """Draws polygons, ellipses and lines of one object on a canvas.

    `flat` replaces every colour by one (for masks: what of an object is visible).
    """

    __slots__ = ("_draw", "_flat", "_ix", "_iy", "_jx", "_jy", "_ox", "_oy", "is_turned", "stroke", "unit")

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        x: float,
        y: float,
        half: float,
        *,
        angle: float = 0.0,
        flip: bool = False,
        flat: Fill | None = None,
    ) -> None:
        cos, sin = math.cos(angle), math.sin(angle)
        sign = -1.0 if flip else 1.0
        self._draw, self._flat = draw, flat
        self._ox, self._oy = x, y
        self._ix, self._iy = sign * cos * half, sign * sin * half
        self._jx, self._jy = -sin * half, cos * half
        self.unit = half
        self.stroke = max(1, round(half * 0.055))
        self.is_turned = abs(sin) > 1e-6

    def at(self, points: Sequence[Point]) -> list[Point]:
        """Points of the box -> points of the canvas, in pixels."""
        ox, oy, ix, iy, jx, jy = self._ox, self._oy, self._ix, self._iy, self._jx, self._jy
        return [(ox + ix * x + jx * y, oy + iy * x + jy * y) for x, y in points]

    def polygon(self, points: Sequence[Point], fill: Fill, line: Fill | None = None) -> None:
        xy = self.at(points)
        self._draw.polygon(xy, fill=self._flat or fill)
        if line is not None:
            self._draw.line([*xy, xy[0]], fill=self._flat or line, width=self.stroke)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        fill: Fill,
        line: Fill | None = None,
        turn: float = 0.0,
    ) -> None:
        """`turn`: radians, clockwise on the picture."""
        radius = max(rx, ry) * self.unit
        if turn == 0.0 and (not self.is_turned or rx == ry):
            [(cx, cy)] = self.at([(x, y)])
            box = (cx - rx * self.unit, cy - ry * self.unit, cx + rx * self.unit, cy + ry * self.unit)
            if line is None:
                self._draw.ellipse(box, fill=self._flat or fill)
            else:
                self._draw.ellipse(
                    box, fill=self._flat or fill, outline=self._flat or line, width=self.stroke
                )
            return
        circle = _CIRCLES[16 if radius < 12 else 32 if radius < 60 else 72]
        cos, sin = math.cos(turn), math.sin(turn)
        self.polygon(
            [(x + rx * u * cos - ry * v * sin, y + rx * u * sin + ry * v * cos) for u, v in circle],
            fill,
            line,
        )

    def blob(self, ellipses: Sequence[tuple[float, float, float, float]], fill: Fill, line: Fill) -> None:
        """The union of ellipses (x, y, rx, ry) with one outline around it."""
        grow = 0.06
        for x, y, rx, ry in ellipses:
            self.ellipse(x, y, rx + grow, ry + grow, line)
        for x, y, rx, ry in ellipses:
            self.ellipse(x, y, rx, ry, fill)

    def line(self, points: Sequence[Point], fill: Fill, width: float) -> None:
        """`width` in box units."""
        self._draw.line(
            self.at(points), fill=self._flat or fill, width=max(1, round(width * self.unit)), joint="curve"
        )

    def arc(self, x: float, y: float, r: float, start: float, end: float, fill: Fill, width: float) -> None:
        """`start`, `end`: radians, clockwise on the picture from the right."""
        steps = 10 if self.unit < 60 else 24
        turns = [start + (end - start) * i / steps for i in range(steps + 1)]
        self.line([(x + r * math.cos(a), y + r * math.sin(a)) for a in turns], fill, width)
