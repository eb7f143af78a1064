"""The backdrops: how each place looks behind the objects."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from encoder.data.scenes.pen import RGB, Fill, Point, mix

_SUN = (255, 246, 200)


class Backdrop:
    """A square canvas addressed in fractions, `factor` times as large as the picture of `pixels` that it
    becomes."""

    def __init__(self, pixels: int, factor: int, horizon: float, rng: random.Random) -> None:
        self.pixels, self.size = pixels, pixels * factor
        self.horizon, self.rng = horizon, rng
        self.image = Image.new("RGB", (self.size, self.size))
        self.draw = ImageDraw.Draw(self.image, "RGBA")

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def gradient(self, colors: Sequence[RGB], glow: tuple[float, float, float, RGB] | None = None) -> None:
        """Fills the canvas with `colors` from top to bottom; `glow` is a soft light (x, y, radius,
        colour)."""
        n = 16
        rows = []
        for row in range(n):
            place = (row + 0.5) / n * (len(colors) - 1)
            below = min(int(place), len(colors) - 2)
            rows.append(mix(colors[below], colors[below + 1], place - below))
        cells = np.repeat(np.array(rows, float)[:, None], n, axis=1)
        if glow is not None:
            x, y, radius, color = glow
            across = [math.exp(-2 * (((i + 0.5) / n - x) / radius) ** 2) for i in range(n)]
            down = [math.exp(-2 * (((i + 0.5) / n - y) / radius) ** 2) for i in range(n)]
            cells += 0.85 * np.outer(down, across)[..., None] * (np.array(color) - cells)
        # smooth at the picture's own size, then enlarged by repetition: averaging down gives the same again
        smooth = Image.fromarray(cells.astype(np.uint8)).resize(
            (self.pixels, self.pixels), Image.Resampling.BICUBIC
        )
        self.image.paste(smooth.resize((self.size, self.size), Image.Resampling.NEAREST))

    def land(self, points: Sequence[Point], near: RGB, far: RGB) -> None:
        """A stretch of ground below the line `points` (left to right), from `far` at its top to `near` at
        the bottom."""
        top = min(y for _, y in points)
        first = int(top * self.size)
        if first >= self.size:
            return
        strip = Image.new("RGB", (1, 8))
        strip.putdata([mix(far, near, i / 7) for i in range(8)])
        strip = strip.resize((1, self.size - first), Image.Resampling.BILINEAR)
        strip = strip.resize((self.size, self.size - first), Image.Resampling.NEAREST)
        mask = Image.new("L", strip.size)
        outline = [(x * self.size, y * self.size - first) for x, y in points]
        outline += [(self.size, self.size - first), (0, self.size - first)]
        ImageDraw.Draw(mask).polygon(outline, fill=255)
        self.image.paste(strip, (0, first), mask)

    def hill(self, height: float, swing: float, waves: float) -> list[Point]:
        """A wavy line across the picture around `height`."""
        phase = self.between(0, 6.28)
        second = self.between(0, 6.28)
        return [
            (
                i / 24,
                height
                + swing * (math.sin(phase + waves * i / 24) + 0.4 * math.sin(second + 2.3 * waves * i / 24)),
            )
            for i in range(25)
        ]

    def polygon(self, points: Sequence[Point], fill: Fill) -> None:
        self.draw.polygon([(x * self.size, y * self.size) for x, y in points], fill=fill)

    def disc(self, x: float, y: float, rx: float, ry: float, fill: Fill) -> None:
        s = self.size
        self.draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=fill)

    def line(self, points: Sequence[Point], fill: Fill, width: float) -> None:
        xy = [(x * self.size, y * self.size) for x, y in points]
        self.draw.line(xy, fill=fill, width=max(1, round(width * self.size)))

    def clouds(self, count: int, fill: Fill, low: float = 0.06, high: float = 0.3) -> None:
        for _ in range(count):
            x, y, r = self.between(0.05, 0.95), self.between(low, high), self.between(0.035, 0.06)
            for dx, dy, k in ((-1.5, 0.25, 0.75), (0, 0, 1.0), (1.4, 0.2, 0.8), (0.2, 0.35, 0.9)):
                self.disc(x + dx * r, y + dy * r, r * k * 1.3, r * k * 0.75, fill)


def _beach(b: Backdrop) -> None:
    b.gradient(
        [(92, 176, 236), (160, 214, 244), (226, 242, 246), (230, 244, 246)],
        (b.between(0.1, 0.9), 0.1, 0.3, _SUN),
    )
    b.clouds(2, (255, 255, 255, 150))
    top = b.horizon - 0.05
    b.land([(0, top), (1, top)], (88, 200, 206), (24, 110, 176))
    for i in range(5):
        x, y = b.between(0, 0.8), top + 0.03 + i * 0.03
        b.line([(x, y), (x + b.between(0.08, 0.2), y)], (255, 255, 255, 90), 0.006)
    shore = b.hill(b.horizon + 0.15, 0.012, 5)
    b.land([(x, y - 0.02) for x, y in shore], (240, 250, 248), (240, 250, 248))
    b.land(shore, (232, 200, 138), (246, 226, 176))
    for _ in range(14):
        b.disc(b.between(0, 1), b.between(0.7, 1), 0.006, 0.004, (190, 154, 98, 150))


def _meadow(b: Backdrop) -> None:
    b.gradient([(108, 184, 240), (182, 222, 248), (226, 240, 240)], (b.between(0.1, 0.9), 0.08, 0.34, _SUN))
    b.clouds(3, (255, 255, 255, 165))
    b.land(b.hill(b.horizon - 0.06, 0.035, 4), (134, 190, 128), (150, 204, 160))
    b.land(b.hill(b.horizon + 0.0, 0.012, 5), (122, 184, 74), (160, 210, 104))
    b.land(b.hill(b.horizon + 0.2, 0.02, 3), (84, 150, 56), (128, 188, 76))
    for _ in range(16):
        x, y = b.between(0, 1), b.between(b.horizon + 0.1, 1)
        h = 0.014 + 0.02 * (y - b.horizon)
        b.line([(x - h * 0.6, y - h), (x, y), (x + h * 0.6, y - h)], (60, 118, 46, 170), 0.006)


def _desert(b: Backdrop) -> None:
    b.gradient(
        [(244, 176, 112), (252, 210, 150), (255, 234, 190)],
        (b.between(0.15, 0.85), 0.16, 0.3, (255, 244, 190)),
    )
    b.polygon([(0, b.horizon), (0.04, 0.34), (0.2, 0.33), (0.28, b.horizon)], (206, 130, 96))
    x = b.between(0.5, 0.7)
    b.polygon([(x, b.horizon), (x + 0.06, 0.38), (x + 0.22, 0.37), (x + 0.3, b.horizon)], (214, 140, 102))
    b.land(b.hill(b.horizon, 0.016, 3), (226, 168, 96), (240, 190, 122))
    b.land(b.hill(b.horizon + 0.14, 0.03, 4), (214, 150, 80), (246, 200, 128))
    b.land(b.hill(b.horizon + 0.34, 0.03, 3), (196, 128, 64), (232, 174, 100))


def _snow(b: Backdrop) -> None:
    b.gradient([(142, 178, 214), (190, 212, 234), (224, 234, 244)])
    for _ in range(7):
        x, h = b.between(0, 1), b.between(0.09, 0.16)
        b.polygon(
            [(x - h * 0.4, b.horizon + 0.01), (x, b.horizon - h), (x + h * 0.4, b.horizon + 0.01)],
            (120, 152, 176),
        )
    b.land(b.hill(b.horizon - 0.005, 0.012, 4), (214, 226, 242), (240, 246, 252))
    b.land(b.hill(b.horizon + 0.18, 0.02, 3), (196, 212, 236), (244, 248, 254))
    for _ in range(34):
        r = b.between(0.004, 0.009)
        b.disc(b.between(0, 1), b.between(0, 1), r, r, (255, 255, 255, 220))


def _city(b: Backdrop) -> None:
    b.gradient([(150, 176, 206), (204, 212, 222), (238, 226, 208)])
    x = -0.02
    while x < 1:
        width, top = b.between(0.09, 0.16), b.between(0.1, 0.3)
        tone = mix((112, 122, 146), (156, 164, 184), b.rng.random())
        b.polygon([(x, top), (x + width, top), (x + width, 0.6), (x, 0.6)], tone)
        step = width / 4
        for column in range(3):
            for row in range(3):
                if b.rng.random() < 0.6:
                    wx, wy = x + step * (column + 0.75), top + 0.03 + row * 0.055
                    b.polygon(
                        [(wx, wy), (wx + step * 0.5, wy), (wx + step * 0.5, wy + 0.03), (wx, wy + 0.03)],
                        (206, 212, 216),
                    )
        x += width + 0.01
    b.land([(0, b.horizon - 0.02), (1, b.horizon - 0.02)], (176, 174, 172), (196, 194, 190))
    b.land([(0, b.horizon + 0.09), (1, b.horizon + 0.09)], (84, 86, 98), (108, 110, 120))
    b.line([(0, b.horizon + 0.09), (1, b.horizon + 0.09)], (226, 224, 216), 0.012)
    start = b.between(-0.1, 0.0)
    for i in range(6):
        b.line([(start + i * 0.2, 0.76), (start + i * 0.2 + 0.1, 0.76)], (240, 236, 214), 0.018)


def _night(b: Backdrop) -> None:
    moon_x = b.between(0.12, 0.88)
    b.gradient([(16, 18, 56), (34, 36, 92), (72, 62, 124)], (moon_x, 0.12, 0.2, (150, 150, 200)))
    for _ in range(26):
        r = b.between(0.002, 0.005)
        b.disc(b.between(0, 1), b.between(0, b.horizon), r, r, (255, 255, 230, 200))
    b.disc(moon_x, 0.12, 0.055, 0.055, (250, 244, 214))
    b.disc(moon_x + 0.024, 0.11, 0.046, 0.046, (52, 52, 108))
    b.land(b.hill(b.horizon - 0.05, 0.04, 4), (30, 38, 74), (44, 50, 96))
    b.land(b.hill(b.horizon + 0.01, 0.012, 4), (30, 50, 66), (46, 70, 92))
    b.land(b.hill(b.horizon + 0.22, 0.02, 3), (18, 34, 46), (36, 58, 72))


def _room(b: Backdrop) -> None:
    warm = mix((238, 214, 188), (206, 220, 214), b.rng.random())
    b.gradient([mix(warm, (255, 255, 255), 0.25), warm, mix(warm, (90, 70, 60), 0.18)])
    for i in range(7):
        x = (i + 0.25) / 7
        b.polygon([(x, 0), (x + 0.05, 0), (x + 0.05, 0.62), (x, 0.62)], (255, 255, 255, 34))
    shelf = b.horizon + 0.03
    b.polygon([(0, shelf), (1, shelf), (1, shelf + 0.03), (0, shelf + 0.03)], (150, 102, 66))
    b.polygon([(0, shelf + 0.03), (1, shelf + 0.03), (1, shelf + 0.07), (0, shelf + 0.07)], (60, 40, 30, 60))
    b.polygon([(0, 0.7), (1, 0.7), (1, 0.735), (0, 0.735)], (248, 242, 232))
    b.land([(0, 0.735), (1, 0.735)], (150, 98, 60), (196, 140, 92))
    for i in range(3):
        y = 0.785 + i * 0.075
        b.line([(0, y), (1, y)], (104, 64, 40, 120), 0.005)


def _sea(b: Backdrop) -> None:
    b.gradient([(94, 206, 222), (34, 140, 190), (16, 84, 150), (12, 62, 122)])
    for _ in range(4):
        x, w, lean = b.between(-0.1, 0.9), b.between(0.05, 0.12), b.between(0.1, 0.3)
        b.polygon(
            [(x, 0), (x + w, 0), (x + w + lean + 0.1, 0.85), (x + lean - 0.04, 0.85)], (200, 250, 255, 26)
        )
    b.polygon([(0, 0.6), (0.1, 0.5), (0.24, 0.52), (0.36, 0.7), (0, 0.8)], (14, 74, 128))
    b.polygon([(0.62, 0.8), (0.76, 0.54), (0.88, 0.5), (1, 0.56), (1, 0.8)], (14, 74, 128))
    b.land(b.hill(b.horizon + 0.29, 0.02, 4), (150, 150, 120), (188, 190, 150))
    for _ in range(5):
        x, h = b.between(0.02, 0.98), b.between(0.1, 0.2)
        b.line([(x + 0.012 * math.sin(j), 0.94 - h * j / 6) for j in range(7)], (22, 120, 96, 230), 0.014)
    for _ in range(9):
        x, y, r = b.between(0, 1), b.between(0.05, 0.7), b.between(0.006, 0.014)
        b.disc(x, y, r, r, (220, 250, 255, 90))
        b.disc(x - r * 0.3, y - r * 0.3, r * 0.4, r * 0.4, (255, 255, 255, 150))


DRAW_PLACE: dict[str, Callable[[Backdrop], None]] = {
    "beach": _beach,
    "meadow": _meadow,
    "desert": _desert,
    "snow": _snow,
    "city": _city,
    "night": _night,
    "room": _room,
    "sea": _sea,
}
