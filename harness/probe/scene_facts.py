"""The facts of a scene that a probe is fitted to, and what follows from them for each question.

A scene is seven *cells*: six slots in reading order, and one for the small partner that shares its base's
slot. Each cell has a kind (or nothing), a colour and a size; a scene has a place, a word on its sign and what
its partners do. A probe gives each of these facts a distribution of its own; a question is answered by
putting them together as if they were independent, which needs no probe for each question.

Letters: N pictures, C cells (7), K kinds (16), V colours (8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoder.data.scenes.objects import COLORS, INTERACTIONS, KINDS, PLACES, SIGN_WORDS, SIZES, SLOTS
from encoder.data.scenes.scene import Item, Scene
from encoder.metrics.readout import UNDEFINED

NUM_CELLS = len(SLOTS) + 1
PARTNER = len(SLOTS)  # the cell of an object that shares another's slot
NOTHING = len(KINDS)  # as a cell's kind
COLOR_NAMES, SIZE_NAMES, PLACE_NAMES = tuple(COLORS), tuple(SIZES), tuple(PLACES)
VERBS = tuple(INTERACTIONS)
# In order: kinds, colours and sizes of the cells, then place, word (the last: no sign), what partners do
NUM_VALUES = (
    *[len(KINDS) + 1] * NUM_CELLS,
    *[len(COLORS)] * NUM_CELLS,
    *[len(SIZES)] * NUM_CELLS,
    len(PLACES),
    len(SIGN_WORDS) + 1,
    len(VERBS),
)


def facts_of(scenes: Sequence[Scene]) -> Tensor:
    """Every fact of scenes, N x len(NUM_VALUES); the colour and size of an empty cell are undefined."""
    rows = []
    for scene in scenes:
        cells: list[Item | None] = [None] * NUM_CELLS
        for item in scene.items:
            cells[PARTNER if item.is_attached else SLOTS.index(item.slot)] = item
        kinds = [NOTHING if item is None else KINDS.index(item.kind) for item in cells]
        colors = [UNDEFINED if item is None else COLOR_NAMES.index(item.color) for item in cells]
        sizes = [UNDEFINED if item is None else SIZE_NAMES.index(item.size) for item in cells]
        word = len(SIGN_WORDS) if scene.sign is None else SIGN_WORDS.index(scene.sign.word)
        verb = UNDEFINED if scene.interaction is None else VERBS.index(scene.interaction[1])
        rows.append([*kinds, *colors, *sizes, PLACE_NAMES.index(scene.place), word, verb])
    return torch.tensor(rows)


@dataclass(frozen=True, slots=True)
class Read:
    """What a probe believes of pictures: probabilities, the cells' in reading order, the partner's last."""

    kinds: Tensor  # N C K+1; the last: nothing is there
    colors: Tensor  # N C V, of what is there
    sizes: Tensor  # N C 2, of what is there
    place: Tensor  # N 8
    word: Tensor  # N 9; the last: there is no sign
    verb: Tensor  # N 4, of a partner that is there

    @staticmethod
    def of(probabilities: Sequence[Tensor]) -> Read:
        """From a readout's probabilities, in the order of `NUM_VALUES`."""
        cells = [torch.stack(list(probabilities[i * NUM_CELLS : (i + 1) * NUM_CELLS]), 1) for i in range(3)]
        return Read(*cells, *probabilities[3 * NUM_CELLS :])

    def __getitem__(self, rows: Sequence[int]) -> Read:
        """Of the pictures at `rows` alone."""
        return Read(*(getattr(self, name)[rows] for name in self.__slots__))
