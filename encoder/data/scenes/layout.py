"""A scene laid out in cells: the words that are true in each square of a grid, in raster order, with the part
of the square that they are true of.

A picture's tokens stand in that order. A language model that has only read captions has never met anything in
which a place in the sequence is a place in the world; one that reads such cells before it sees a picture has.
What it reads is Scenes' truth of train pictures that are never drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from encoder.data.scenes.objects import INTERACTIONS
from encoder.data.scenes.scene import Box, Scene, item_box, overlap, sign_box

LEAST_SHARE = 0.02  # of a square; less of a thing is not told
Cells = list[dict[str, float]]  # of each square, word -> share


def lay_out(scene: Scene, grid: int) -> Cells:
    """The grid * grid squares of a scene. The place is true of every square whole; an object's size, colour,
    kind, row and column, a sign's word, row and column, and what an actor does are true where their boxes
    are, as much as they cover."""
    cells: list[Counter[str]] = [Counter({scene.place: 1.0}) for _ in range(grid * grid)]
    for item in scene.items:
        _lay(cells, grid, item_box(item), (item.size, item.color, item.kind, item.row, item.column))
    if scene.interaction is not None:
        actor, verb, _ = scene.interaction
        _lay(cells, grid, item_box(scene.items[actor]), INTERACTIONS[verb].split())
    if scene.sign is not None:
        sign = scene.sign
        _lay(cells, grid, sign_box(sign), ("sign", sign.word, sign.row, sign.column))
    return [{word: round(min(1.0, share), 3) for word, share in cell.items()} for cell in cells]


def _lay(cells: list[Counter[str]], grid: int, box: Box, words: Sequence[str]) -> None:
    for index, cell in enumerate(cells):
        row, column = divmod(index, grid)
        square = (column / grid, row / grid, (column + 1) / grid, (row + 1) / grid)
        share = overlap(box, square) * len(cells)
        if share >= LEAST_SHARE:
            cell.update(dict.fromkeys(words, share))
