"""How a probe that knows the facts of a picture answers the questions of Scenes-SEED and Scenes-POPE.

A question is known by its words, as whoever answers it sees them; each topic has its rule for how much the
facts speak for each of its answers. Letters as in `scene_facts`: N pictures, C cells, K kinds, V colours.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from encoder.data.scenes import wording
from encoder.data.scenes.objects import COLUMNS, KINDS, PLURALS, SLOTS, article
from encoder.data.scenes.questions import ANSWERS
from harness.probe.scene_facts import COLOR_NAMES, NUM_CELLS, PARTNER, Read

PRESENCE = "presence"  # the topic of Scenes-POPE's questions
_PLACES = [divmod(slot, len(COLUMNS)) for slot in range(len(SLOTS))]  # row and column of each slot


def answer_scores(read: Read, question: str) -> Tensor:
    """How much speaks for each of a question's answers (N x len(answers)); only their ratios mean something.

    The answers are `ANSWERS[topic]`, or no and yes.

    Raises:
        ValueError: no question of Scenes has these words.
    """
    topic, words = _known(question)
    return _RULES[topic](read, *words)


def topic_of(question: str) -> str:
    """The topic of a question; raises as `answer_scores`."""
    return _known(question)[0]


def answers_to(question: str) -> tuple[str, ...]:
    """The answers that `answer_scores` speaks of, in its order; raises as it does."""
    topic = topic_of(question)
    return ("no", "yes") if topic == PRESENCE else ANSWERS[topic]


def _known(question: str) -> tuple[str, tuple[int, ...]]:
    if question not in _questions():
        raise ValueError(f"no question of Scenes: {question!r}")
    return _questions()[question]


@functools.cache
def _questions() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every question's words -> its topic and what it asks about, as indices."""
    kinds, colors, slots = (list(enumerate(names)) for names in (KINDS, COLOR_NAMES, SLOTS))
    pairs = [((i, j), {"kind": a, "other": b}) for (i, a), (j, b) in itertools.permutations(kinds, 2)]
    of_kind = [((i,), {"kind": kind}) for i, kind in kinds]
    relations = [*enumerate(wording.RELATIONS.values())]
    asked: Mapping[str, Sequence[tuple[tuple[int, ...], Mapping[str, str]]]] = {
        **{topic: [((), {})] for topic in ("place", "most", "word")},
        **dict.fromkeys(("color", "look", "slot", "same_color"), of_kind),
        **dict.fromkeys(("relation", "interaction"), pairs),
        "kind_of_color": [((i,), {"color": color}) for i, color in colors],
        "kind_at_slot": [((i,), {"slot": slot}) for i, slot in slots],
        "count": [((i,), {"kinds": PLURALS[kind]}) for i, kind in kinds],
        "color_beside": [
            ((i, j), {"relation": relation, "kind": kind})
            for (i, relation), (j, kind) in itertools.product(relations, kinds)
        ],
    }
    known = {
        text.format(**words): (topic, indices)
        for topic, (_, text) in wording.QUESTIONS.items()
        for indices, words in asked[topic]
    }
    yes_no = {wording.POPE_QUESTION.format(a_kind=article(kind)): (PRESENCE, (i,)) for i, kind in kinds}
    return known | yes_no


def _colored(read: Read) -> Tensor:
    """Of each cell, that it holds a thing of each colour: N C V."""
    return (1 - read.kinds[..., -1:]) * read.colors


def _kind_of_color(read: Read, color: int) -> Tensor:
    return torch.einsum("nck,nc->nk", read.kinds[..., :-1], read.colors[..., color])


def _kind_at_slot(read: Read, slot: int) -> Tensor:
    return read.kinds[:, slot, :-1]


def _color(read: Read, kind: int) -> Tensor:
    return torch.einsum("nc,ncv->nv", read.kinds[..., kind], read.colors)


def _look(read: Read, kind: int) -> Tensor:
    """Size and colour, in the order of the answers: all colours of the first size, then of the second."""
    return torch.einsum("nc,ncs,ncv->nsv", read.kinds[..., kind], read.sizes, read.colors).flatten(1)


def _slot(read: Read, kind: int) -> Tensor:
    return read.kinds[:, :PARTNER, kind]


def _number(read: Read, kind: int) -> Tensor:
    """Probability of 0, 1, ... cells with this kind, the cells independent: N C+1."""
    chances = read.kinds[..., kind]
    number = torch.zeros(len(chances), NUM_CELLS + 1, dtype=chances.dtype)
    number[:, 0] = 1
    for chance in chances.T[..., None]:
        one_more = torch.nn.functional.pad(number[:, :-1], (1, 0))
        number = (1 - chance) * number + chance * one_more
    return number


def _count(read: Read, kind: int) -> Tensor:
    return _number(read, kind)[:, 1:5]


def _presence(read: Read, kind: int) -> Tensor:
    none = _number(read, kind)[:, :1]
    return torch.cat([none, 1 - none], dim=1)


def _most(read: Read) -> Tensor:
    return read.kinds[..., :-1].sum(dim=1)


@functools.cache
def _lies(*, in_line: bool) -> Tensor:
    """For each of `wording.RELATIONS`, whether slot i lies so to slot j (`in_line`: in its row or column):
    R 6 6."""
    table = torch.zeros(len(wording.RELATIONS), len(SLOTS), len(SLOTS), dtype=torch.float64)
    for i, (row, column) in enumerate(_PLACES):
        for j, (other_row, other_column) in enumerate(_PLACES):
            is_level, is_plumb = (row == other_row, column == other_column) if in_line else (True, True)
            sides = {"left": is_level and column < other_column, "right": is_level and column > other_column}
            sides |= {"above": is_plumb and row < other_row, "below": is_plumb and row > other_row}
            table[:, i, j] = torch.tensor([float(sides[name]) for name in wording.RELATIONS])
    return table


def _relation(read: Read, kind: int, other: int) -> Tensor:
    first, second = read.kinds[:, :PARTNER, kind], read.kinds[:, :PARTNER, other]
    return torch.einsum("ni,rij,nj->nr", first, _lies(in_line=True), second)


def _color_beside(read: Read, relation: int, kind: int) -> Tensor:
    """Colours of what lies on that side; the question is asked where that is one thing."""
    lies = _lies(in_line=False)[relation]
    beside = torch.einsum("nj,ij->ni", read.kinds[:, :PARTNER, kind], lies)
    return torch.einsum("ni,niv->nv", beside, _colored(read)[:, :PARTNER])


def _same_color(read: Read, kind: int) -> Tensor:
    """Other kinds, by how likely a cell of theirs has the colour of a cell of this kind."""
    alike = torch.einsum("nav,nbv->nab", read.colors, read.colors)
    alike = alike - torch.diag_embed(alike.diagonal(dim1=1, dim2=2))  # a cell is not beside itself
    scores = torch.einsum("na,nab,nbk->nk", read.kinds[..., kind], alike, read.kinds[..., :-1])
    scores[:, kind] = 0
    return scores


_RULES: dict[str, Callable[..., Tensor]] = {
    "place": lambda read: read.place,
    "kind_of_color": _kind_of_color,
    "kind_at_slot": _kind_at_slot,
    "color": _color,
    "look": _look,
    "slot": _slot,
    "count": _count,
    "relation": _relation,
    "interaction": lambda read, kind, other: read.verb,
    "same_color": _same_color,
    "color_beside": _color_beside,
    "most": _most,
    "word": lambda read: read.word[:, :-1],
    PRESENCE: _presence,
}
