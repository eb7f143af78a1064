"""How each kind of object looks. Every function draws in the box [-1, 1] of its pen, feet at y = 1."""

from __future__ import annotations

import math
from collections.abc import Callable

from encoder.data.scenes.pen import Palette, Pen, mix

_INK = (40, 34, 52)
_WOOD, _WOOD_LINE = (128, 84, 52), (78, 50, 36)
_GLASS = (190, 226, 244)
_SHADE = (20, 16, 50, 46)  # a translucent shadow
_SHINE = (255, 255, 255, 96)  # a translucent light


def _house(pen: Pen, p: Palette) -> None:
    pen.polygon([(0.38, -0.85), (0.64, -0.85), (0.64, -0.2), (0.38, -0.2)], (150, 92, 76), _INK)
    pen.polygon([(-0.8, -0.1), (0.8, -0.1), (0.8, 1), (-0.8, 1)], p.base, p.line)
    pen.polygon([(0.3, -0.1), (0.8, -0.1), (0.8, 1), (0.3, 1)], _SHADE)
    pen.polygon([(-0.8, -0.1), (0.8, -0.1), (0.8, 0.06), (-0.8, 0.06)], _SHADE)
    pen.polygon([(-0.98, 0), (0, -0.95), (0.98, 0)], (112, 70, 66), (62, 40, 46))
    pen.polygon([(-0.98, 0), (0, -0.95), (0.1, -0.85), (-0.66, 0)], (146, 94, 82))
    pen.polygon([(-0.16, 0.38), (0.2, 0.38), (0.2, 1), (-0.16, 1)], _WOOD, p.line)
    pen.polygon([(-0.62, 0.22), (-0.28, 0.22), (-0.28, 0.58), (-0.62, 0.58)], (255, 236, 150), p.line)
    pen.polygon([(0.36, 0.22), (0.66, 0.22), (0.66, 0.58), (0.36, 0.58)], (255, 236, 150), p.line)


def _tree(pen: Pen, p: Palette) -> None:
    pen.polygon([(-0.13, 0.1), (0.13, 0.1), (0.2, 1), (-0.2, 1)], _WOOD, _WOOD_LINE)
    pen.polygon([(0.03, 0.2), (0.13, 0.2), (0.2, 1), (0.05, 1)], _SHADE)
    pen.blob([(-0.36, 0.02, 0.42, 0.38), (0.36, 0.02, 0.42, 0.38), (0, -0.42, 0.5, 0.5)], p.base, p.line)
    pen.ellipse(0.34, 0.1, 0.36, 0.26, p.dark)
    pen.ellipse(0.0, -0.14, 0.46, 0.36, p.base)
    pen.ellipse(-0.16, -0.56, 0.24, 0.22, p.light)
    pen.ellipse(-0.46, -0.06, 0.18, 0.15, p.light)


def _car(pen: Pen, p: Palette) -> None:
    pen.polygon([(-0.62, 0.2), (-0.42, -0.38), (0.3, -0.38), (0.62, 0.2)], p.base, p.line)
    pen.polygon([(-0.48, 0.18), (-0.34, -0.26), (-0.06, -0.26), (-0.06, 0.18)], _GLASS, p.line)
    pen.polygon([(0.04, 0.18), (0.04, -0.26), (0.24, -0.26), (0.46, 0.18)], _GLASS, p.line)
    pen.polygon(
        [(-0.98, 0.3), (-0.9, 0.16), (0.66, 0.16), (0.94, 0.28), (0.98, 0.74), (-0.98, 0.74)], p.base, p.line
    )
    pen.polygon([(-0.96, 0.54), (0.97, 0.54), (0.98, 0.74), (-0.98, 0.74)], p.dark)
    pen.polygon([(-0.88, 0.2), (0.64, 0.2), (0.8, 0.28), (-0.9, 0.28)], p.light)
    pen.ellipse(0.88, 0.42, 0.09, 0.09, (255, 244, 170), p.line)
    for x in (-0.52, 0.52):
        pen.ellipse(x, 0.72, 0.28, 0.28, _INK)
        pen.ellipse(x, 0.72, 0.13, 0.13, (206, 208, 216))


def _boat(pen: Pen, p: Palette) -> None:
    pen.line([(0, -0.96), (0, 0.4)], _WOOD_LINE, 0.1)
    pen.polygon([(0.08, -0.84), (0.08, 0.24), (0.74, 0.24)], (250, 248, 240), p.line)
    pen.polygon([(0.08, -0.3), (0.08, 0.24), (0.74, 0.24), (0.42, -0.28)], p.light)
    pen.polygon([(-0.08, -0.66), (-0.08, 0.24), (-0.58, 0.24)], (250, 248, 240), p.line)
    pen.polygon([(-0.95, 0.36), (0.95, 0.36), (0.62, 0.96), (-0.66, 0.96)], p.base, p.line)
    pen.polygon([(-0.82, 0.66), (0.8, 0.66), (0.62, 0.96), (-0.66, 0.96)], p.dark)
    pen.polygon([(-0.92, 0.38), (0.92, 0.38), (0.88, 0.47), (-0.88, 0.47)], p.accent)


def _fish(pen: Pen, p: Palette) -> None:
    pen.polygon([(-0.42, 0), (-0.98, -0.5), (-0.84, 0), (-0.98, 0.5)], p.dark, p.line)
    pen.polygon([(-0.2, -0.4), (0.08, -0.82), (0.42, -0.36)], p.dark, p.line)
    pen.polygon([(-0.1, 0.4), (0.0, 0.72), (0.3, 0.4)], p.dark, p.line)
    pen.ellipse(0.18, 0, 0.76, 0.52, p.base, p.line)
    pen.ellipse(0.2, -0.2, 0.52, 0.22, p.light)
    pen.polygon([(-0.26, -0.34), (-0.1, -0.43), (-0.1, 0.43), (-0.26, 0.34)], p.accent)
    pen.polygon([(0.1, -0.48), (0.24, -0.49), (0.24, 0.49), (0.1, 0.48)], p.accent)
    pen.ellipse(0.6, -0.1, 0.14, 0.14, (255, 255, 255), _INK)
    pen.ellipse(0.63, -0.1, 0.07, 0.07, _INK)


def _bird(pen: Pen, p: Palette) -> None:
    pen.line([(-0.05, 0.55), (-0.08, 0.97), (0.1, 0.97)], (196, 110, 30), 0.09)
    pen.line([(0.18, 0.55), (0.2, 0.97), (0.38, 0.97)], (196, 110, 30), 0.09)
    pen.polygon([(-0.4, 0.1), (-0.98, -0.18), (-0.9, 0.28), (-0.36, 0.44)], p.dark, p.line)
    pen.polygon([(0.72, -0.42), (1.0, -0.26), (0.7, -0.14)], (246, 170, 40), (150, 84, 20))
    pen.blob([(0.0, 0.22, 0.56, 0.45), (0.44, -0.34, 0.37, 0.36)], p.base, p.line)
    pen.ellipse(0.14, 0.42, 0.34, 0.2, p.light)
    pen.polygon([(0.26, 0.0), (-0.12, -0.12), (-0.68, 0.34), (-0.1, 0.42)], p.dark, p.line)
    pen.ellipse(0.54, -0.42, 0.13, 0.13, (255, 255, 255))
    pen.ellipse(0.57, -0.42, 0.075, 0.075, _INK)


def _flower(pen: Pen, p: Palette) -> None:
    pen.line([(0.0, -0.1), (0.04, 0.5), (0, 1)], (52, 126, 56), 0.13)
    pen.ellipse(0.3, 0.62, 0.3, 0.13, (70, 154, 66), (36, 92, 46), turn=-0.6)
    pen.ellipse(-0.28, 0.76, 0.28, 0.12, (70, 154, 66), (36, 92, 46), turn=0.5)
    petals = [
        (0.38 * math.cos(a), -0.36 + 0.38 * math.sin(a))
        for a in [2 * math.pi * i / 6 + 0.3 for i in range(6)]
    ]
    pen.blob([(x, y, 0.26, 0.26) for x, y in petals], p.base, p.line)
    for x, y in petals:
        pen.ellipse(x * 1.15 - 0.03, (y + 0.36) * 1.15 - 0.4, 0.11, 0.11, p.light)
    center = (122, 74, 36) if p.base[0] > 200 and p.base[1] > 170 and p.base[2] < 140 else (250, 206, 60)
    pen.ellipse(0, -0.36, 0.22, 0.22, center, p.line)


def _star(pen: Pen, p: Palette) -> None:
    tips = []
    for i in range(10):
        r, a = (0.98 if i % 2 == 0 else 0.44), -math.pi / 2 + i * math.pi / 5
        tips.append((r * math.cos(a), 0.06 + r * math.sin(a)))
    pen.polygon(tips, p.base, p.line)
    for i in range(0, 10, 2):
        pen.polygon([(0, 0.06), tips[i], tips[(i + 1) % 10]], p.dark)
    pen.polygon([(0, 0.06), tips[0], tips[9]], p.light)
    pen.polygon([(0, 0.06), tips[8], tips[7]], p.light)
    pen.line([*tips, tips[0]], p.line, 0.055)


def _ball(pen: Pen, p: Palette) -> None:
    pen.ellipse(0, 0.12, 0.86, 0.86, p.base, p.line)
    pen.polygon(
        [
            (-0.83, -0.1),
            (-0.3, 0.1),
            (0.3, 0.1),
            (0.83, -0.1),
            (0.85, 0.24),
            (0.34, 0.42),
            (-0.34, 0.42),
            (-0.85, 0.24),
        ],
        p.accent,
    )
    pen.ellipse(0.1, 0.62, 0.56, 0.3, p.dark)
    pen.ellipse(-0.28, -0.32, 0.3, 0.2, p.light, turn=-0.6)
    pen.arc(0, 0.12, 0.84, 0, 2 * math.pi, p.line, 0.06)


def _cup(pen: Pen, p: Palette) -> None:
    for x in (-0.34, 0.06):
        pen.line(
            [(x, -0.56), (x + 0.1, -0.7), (x - 0.02, -0.84), (x + 0.08, -0.98)], (255, 255, 255, 170), 0.08
        )
    pen.arc(0.52, 0.22, 0.34, -1.5, 1.5, p.line, 0.28)
    pen.arc(0.52, 0.22, 0.34, -1.5, 1.5, p.base, 0.17)
    pen.polygon(
        [(-0.76, -0.34), (0.56, -0.34), (0.44, 0.86), (0.3, 1), (-0.5, 1), (-0.64, 0.86)], p.base, p.line
    )
    pen.polygon([(0.2, -0.34), (0.56, -0.34), (0.44, 0.86), (0.3, 1), (0.12, 1)], p.dark)
    pen.polygon([(-0.62, -0.1), (-0.46, -0.1), (-0.4, 0.78), (-0.52, 0.78)], p.light)
    pen.ellipse(-0.1, -0.34, 0.66, 0.17, p.light, p.line)
    pen.ellipse(-0.1, -0.31, 0.54, 0.1, (92, 56, 38))


def _mushroom(pen: Pen, p: Palette) -> None:
    pen.polygon(
        [(-0.26, 0.1), (0.26, 0.1), (0.36, 0.92), (0.2, 1), (-0.2, 1), (-0.36, 0.92)],
        (244, 230, 204),
        (120, 98, 84),
    )
    pen.polygon([(0.06, 0.1), (0.26, 0.1), (0.36, 0.92), (0.2, 1), (0.1, 1)], _SHADE)
    dome = [
        (0.92 * math.cos(a), 0.2 + 1.06 * math.sin(a))
        for a in [math.pi + math.pi * i / 14 for i in range(15)]
    ]
    pen.polygon([*dome, (0.6, 0.34), (-0.6, 0.34)], p.base, p.line)
    pen.polygon([*dome[9:], (0.6, 0.34), (0.2, 0.34)], _SHADE)
    for x, y, r in ((-0.44, -0.2, 0.17), (0.08, -0.5, 0.19), (0.5, -0.08, 0.15), (-0.04, 0.04, 0.12)):
        pen.ellipse(x, y, r, r * 0.86, p.accent)


def _kite(pen: Pen, p: Palette) -> None:
    pen.line([(0, 0.4), (0.16, 0.6), (-0.1, 0.78), (0.1, 0.98)], _INK, 0.06)
    for x, y in ((0.12, 0.62), (-0.06, 0.82)):
        pen.polygon([(x, y), (x + 0.2, y - 0.12), (x + 0.2, y + 0.12)], p.light, p.line)
        pen.polygon([(x, y), (x - 0.2, y - 0.12), (x - 0.2, y + 0.12)], p.light, p.line)
    top, left, right, low = (0, -0.98), (-0.74, -0.3), (0.74, -0.3), (0, 0.48)
    pen.polygon([top, right, low, left], p.base, p.line)
    pen.polygon([top, (0, -0.3), left], p.light)
    pen.polygon([(0, -0.3), right, low], p.dark)
    pen.line([top, low], p.line, 0.06)
    pen.line([left, right], p.line, 0.06)


def _cat(pen: Pen, p: Palette) -> None:
    pen.arc(0.5, 0.56, 0.36, 1.5, -1.3, p.line, 0.24)
    pen.arc(0.5, 0.56, 0.36, 1.5, -1.3, p.base, 0.15)
    pen.polygon([(-0.6, -0.4), (-0.58, -0.98), (-0.14, -0.68)], p.base, p.line)
    pen.polygon([(0.4, -0.4), (0.38, -0.98), (-0.06, -0.68)], p.base, p.line)
    pen.blob([(-0.06, 0.52, 0.5, 0.46), (-0.1, -0.3, 0.52, 0.43)], p.base, p.line)
    pen.ellipse(-0.1, 0.62, 0.26, 0.3, p.light)
    pen.polygon([(-0.5, -0.62), (-0.5, -0.82), (-0.34, -0.68)], p.dark)
    pen.polygon([(0.3, -0.62), (0.3, -0.82), (0.14, -0.68)], p.dark)
    for x in (-0.3, 0.1):
        pen.ellipse(x, -0.34, 0.1, 0.13, (255, 255, 255))
        pen.ellipse(x, -0.33, 0.06, 0.1, _INK)
    pen.polygon([(-0.17, -0.16), (-0.03, -0.16), (-0.1, -0.07)], _INK)
    for side in (-1, 1):
        pen.line([(-0.1 + side * 0.24, -0.1), (-0.1 + side * 0.66, -0.16)], p.line, 0.035)


def _umbrella(pen: Pen, p: Palette) -> None:
    pen.line([(0, -0.2), (0, 0.82)], _INK, 0.1)
    pen.arc(0.17, 0.82, 0.17, 0.0, math.pi, _INK, 0.1)
    pen.line([(0, -0.98), (0, -0.8)], _INK, 0.09)
    dome = [
        (0.98 * math.cos(a), 0.1 + 0.98 * math.sin(a))
        for a in [math.pi + math.pi * i / 16 for i in range(17)]
    ]
    scallop = [(0.98, 0.1), (0.82, 0.0), (0.65, -0.03), (0.48, 0.0), (0.33, 0.1), (0.17, 0.01), (0.0, -0.02)]
    edge = scallop + [(-x, y) for x, y in reversed(scallop[:-1])]
    pen.polygon([*dome, *edge], p.base, p.line)
    pen.polygon([*dome[4:9], (0, -0.02), (-0.17, 0.01), (-0.33, 0.1), (-0.36, -0.4)], p.light)
    pen.polygon([*dome[12:], (0.82, 0.0), (0.65, -0.03), (0.48, 0.0), (0.33, 0.1), (0.4, -0.4)], p.dark)


def _rocket(pen: Pen, p: Palette) -> None:
    pen.polygon(
        [(-0.24, 0.62), (0.24, 0.62), (0.1, 0.84), (0, 1), (-0.1, 0.84)], (255, 176, 40), (226, 92, 24)
    )
    pen.polygon([(-0.1, 0.62), (0.1, 0.62), (0, 0.84)], (255, 240, 150))
    pen.polygon([(-0.3, 0.12), (-0.66, 0.5), (-0.62, 0.8), (-0.28, 0.6)], (110, 116, 136), _INK)
    pen.polygon([(0.3, 0.12), (0.66, 0.5), (0.62, 0.8), (0.28, 0.6)], (86, 90, 112), _INK)
    body = [(0, -0.98), (0.2, -0.76), (0.34, -0.46), (0.4, -0.1), (0.38, 0.3), (0.28, 0.64)]
    hull = body + [(-x, y) for x, y in reversed(body[1:])]
    pen.polygon(hull, p.base, p.line)
    pen.polygon([*body, (0.1, 0.64), (0.16, 0.0)], p.dark)
    pen.polygon([(-0.2, -0.5), (-0.1, -0.6), (-0.16, 0.4), (-0.26, 0.4)], p.light)
    pen.ellipse(0, -0.24, 0.2, 0.2, _GLASS, _INK)


def _butterfly(pen: Pen, p: Palette) -> None:
    for side in (-1, 1):
        pen.ellipse(side * 0.38, 0.44, 0.34, 0.42, p.dark, p.line, turn=side * -0.6)
        pen.ellipse(side * 0.5, -0.24, 0.5, 0.44, p.base, p.line, turn=side * -0.7)
        pen.ellipse(side * 0.56, -0.3, 0.26, 0.2, p.light, turn=side * -0.7)
        pen.ellipse(side * 0.4, 0.5, 0.13, 0.13, p.accent)
        pen.line([(0, -0.4), (side * 0.14, -0.7), (side * 0.3, -0.86)], _INK, 0.06)
    pen.ellipse(0, 0.06, 0.11, 0.56, _INK)


def draw_sign(pen: Pen, word: str) -> None:
    """A wooden board with `word` in capitals. The box is as wide as it is high; the board fills its upper
    part."""
    pen.polygon([(-0.09, 0.2), (0.09, 0.2), (0.09, 1), (-0.09, 1)], _WOOD, _WOOD_LINE)
    pen.polygon([(-1, -0.62), (1, -0.62), (1, 0.34), (-1, 0.34)], (250, 238, 208), (86, 58, 40))
    pen.polygon([(-1, 0.24), (1, 0.24), (1, 0.34), (-1, 0.34)], (206, 182, 140))
    width = 1.76 / max(len(word), 3)
    for index, letter in enumerate(word):
        left = (index - len(word) / 2) * width + 0.07
        for strokes in _LETTERS[letter]:
            pen.line([(left + x * (width - 0.14), -0.46 + y * 0.58) for x, y in strokes], (44, 30, 40), 0.125)


_ROUND = [
    (0.0, 0.2),
    (0.2, 0.0),
    (0.8, 0.0),
    (1.0, 0.2),
    (1.0, 0.8),
    (0.8, 1.0),
    (0.2, 1.0),
    (0.0, 0.8),
    (0.0, 0.2),
]
_LETTERS: dict[str, list[list[tuple[float, float]]]] = {
    "a": [[(0, 1), (0.5, 0), (1, 1)], [(0.2, 0.65), (0.8, 0.65)]],
    "c": [[(1, 0.12), (0.8, 0), (0.2, 0), (0, 0.2), (0, 0.8), (0.2, 1), (0.8, 1), (1, 0.88)]],
    "e": [[(1, 0), (0, 0), (0, 1), (1, 1)], [(0, 0.5), (0.8, 0.5)]],
    "f": [[(1, 0), (0, 0), (0, 1)], [(0, 0.5), (0.8, 0.5)]],
    "h": [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(0, 0.5), (1, 0.5)]],
    "i": [[(0.5, 0), (0.5, 1)]],
    "k": [[(0, 0), (0, 1)], [(1, 0), (0.1, 0.5), (1, 1)]],
    "l": [[(0, 0), (0, 1), (1, 1)]],
    "m": [[(0, 1), (0, 0), (0.5, 0.6), (1, 0), (1, 1)]],
    "n": [[(0, 1), (0, 0), (1, 1), (1, 0)]],
    "o": [_ROUND],
    "p": [[(0, 1), (0, 0), (0.8, 0), (1, 0.15), (1, 0.4), (0.8, 0.55), (0, 0.55)]],
    "r": [[(0, 1), (0, 0), (0.8, 0), (1, 0.15), (1, 0.4), (0.8, 0.52), (0, 0.52)], [(0.4, 0.52), (1, 1)]],
    "s": [
        [
            (1, 0.1),
            (0.8, 0),
            (0.2, 0),
            (0, 0.2),
            (0.1, 0.42),
            (0.9, 0.58),
            (1, 0.8),
            (0.8, 1),
            (0.2, 1),
            (0, 0.9),
        ]
    ],
    "t": [[(0, 0), (1, 0)], [(0.5, 0), (0.5, 1)]],
    "x": [[(0, 0), (1, 1)], [(1, 0), (0, 1)]],
    "z": [[(0, 0), (1, 0), (0, 1), (1, 1)]],
}

DRAW: dict[str, Callable[[Pen, Palette], None]] = {
    "house": _house,
    "tree": _tree,
    "car": _car,
    "boat": _boat,
    "fish": _fish,
    "bird": _bird,
    "flower": _flower,
    "star": _star,
    "ball": _ball,
    "cup": _cup,
    "mushroom": _mushroom,
    "kite": _kite,
    "cat": _cat,
    "umbrella": _umbrella,
    "rocket": _rocket,
    "butterfly": _butterfly,
}

# How far an object may turn, in degrees to either side.
TURN = {
    "ball": 40.0,
    "kite": 28.0,
    "star": 16.0,
    "fish": 14.0,
    "rocket": 24.0,
    "butterfly": 20.0,
    "umbrella": 10.0,
}
__all__ = ["DRAW", "TURN", "draw_sign", "mix"]
