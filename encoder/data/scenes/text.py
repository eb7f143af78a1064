"""The two texts of a scene, as Recap-DataComp-1B pairs them: a short noisy alt text and a dense caption.

All texts are lower-case (but for option letters, Yes/No and the prompts of lmms-eval) and made of
`VOCABULARY`.
"""

from __future__ import annotations

import random
import re
from collections import Counter

from encoder.data.scenes import wording
from encoder.data.scenes.objects import (
    COLORS,
    COLUMNS,
    INTERACTIONS,
    KINDS,
    PLACES,
    PLURALS,
    ROWS,
    SIGN_WORDS,
    SIZES,
    article,
)
from encoder.data.scenes.scene import Item, Scene, pick

_WORD = re.compile(r"<image>|[a-z]+|[0-9]|[^\sa-z0-9]")


def split_words(text: str) -> list[str]:
    """Lower-cased words, single digits and punctuation marks: the word-level tokens that `VOCABULARY`
    closes."""
    return _WORD.findall(text.lower())


def org_caption(scene: Scene, variant: int = 0) -> str:
    """A short alt text: names at most two objects, sometimes none, and may carry words that mean nothing."""
    rng = random.Random(scene.backdrop * 64 + variant)
    main, other = scene.items[0], scene.items[-1]
    subject = pick(rng, wording.ALT_SUBJECTS).format(
        color=main.color,
        a_color=article(main.color),
        kind=main.kind,
        a_kind=article(main.kind),
        size=main.size,
        other=other.kind,
    )
    digit = int(rng.random() * 10)
    return pick(rng, wording.ALT_TEXTS).format(
        subject=subject, where=PLACES[scene.place], place=scene.place, digit=digit
    )


def re_caption(scene: Scene, variant: int = 0) -> str:
    """A dense caption: place and number, every object with size, colour, kind and slot, then interaction,
    repeated kinds, one relation, sign. `variant` chooses wording and order; the facts stay."""
    rng = random.Random(scene.backdrop * 64 + 32 + variant)
    num = len(scene.items)
    opening = pick(rng, wording.OPENINGS).format(
        num=wording.NUMBERS[num],
        objects="object" if num == 1 else "objects",
        are="is" if num == 1 else "are",
        where=PLACES[scene.place],
    )
    sentences = [_placed(scene, item, rng) for item in scene.items]
    if rng.random() < 0.5:
        sentences.reverse()
    if scene.interaction is not None and scene.interaction[1] == "tied":
        actor, _, base = scene.interaction
        the_actor, the_base = the(scene, scene.items[actor]), the(scene, scene.items[base])
        sentences.append(wording.TIED.format(the_actor=the_actor, the_base=the_base))
    counts = Counter(item.kind for item in scene.items)
    for kind, count in counts.items():
        if count > 1:
            sentences.append(wording.COUNTED.format(num=wording.NUMBERS[count], kinds=PLURALS[kind]))
    related = relations(scene)
    if related:
        first, relation, second = pick(rng, related)
        sentences.append(
            wording.RELATED.format(
                the_first=the(scene, first),
                relation=wording.RELATIONS[relation],
                the_second=the(scene, second),
            )
        )
    if scene.sign is not None:
        sign = scene.sign
        sentences.append(pick(rng, wording.SIGNED).format(slot=f"{sign.row} {sign.column}", word=sign.word))
    return " ".join([opening, *sentences])


def _placed(scene: Scene, item: Item, rng: random.Random) -> str:
    a_thing = f"a {item.size} {item.color} {item.kind}"
    if item.is_attached:
        _, verb, base = scene.interaction
        return wording.ATTACHED.format(
            a_thing=a_thing, does=INTERACTIONS[verb], the_base=the(scene, scene.items[base])
        )
    return pick(rng, wording.PLACED).format(a_thing=a_thing, slot=item.slot)


def the(scene: Scene, item: Item) -> str:
    """The shortest words that single `item` out by kind, else by kind, colour and size, else by its slot
    too."""
    same = [other for other in scene.items if other.kind == item.kind]
    if len(same) == 1:
        return f"the {item.kind}"
    name = f"the {item.size} {item.color} {item.kind}"
    if sum((other.size, other.color) == (item.size, item.color) for other in same) == 1:
        return name
    return f"{name} at the {item.slot}"


def relations(scene: Scene) -> list[tuple[Item, str, Item]]:
    """(first, relation, second) for every ordered pair of objects that stand exactly beside or above each
    other."""
    found = []
    standing = [item for item in scene.items if not item.is_attached]
    for first in standing:
        for second in standing:
            if first is second:
                continue
            if first.row == second.row:
                is_left = COLUMNS.index(first.column) < COLUMNS.index(second.column)
                found.append((first, "left" if is_left else "right", second))
            elif first.column == second.column:
                found.append((first, "above" if first.row == "top" else "below", second))
    return found


def _vocabulary() -> tuple[str, ...]:
    phrases = [
        *KINDS,
        *PLURALS.values(),
        *COLORS,
        *SIZES,
        *ROWS,
        *COLUMNS,
        *PLACES,
        *PLACES.values(),
        *SIGN_WORDS,
        *INTERACTIONS.values(),
        *wording.NUMBERS,
        *wording.ALT_SUBJECTS,
        *wording.ALT_TEXTS,
        *wording.OPENINGS,
        *wording.PLACED,
        wording.ATTACHED,
        wording.TIED,
        *wording.RELATIONS,
        *wording.RELATIONS.values(),
        wording.RELATED,
        wording.COUNTED,
        *wording.SIGNED,
        *(question for _, question in wording.QUESTIONS.values()),
        *wording.INTERACTION_ANSWERS.values(),
        wording.POPE_QUESTION,
        *wording.LETTERS,
        wording.LETTER_PROMPT,
        wording.WORD_PROMPT,
        *wording.DESCRIBE,
        *wording.CHAT_WORDS,
        "a an object objects is are : . , ?",
        "0 1 2 3 4 5 6 7 8 9",
    ]
    return tuple(sorted({word for phrase in phrases for word in split_words(re.sub(r"{\w+}", " ", phrase))}))


VOCABULARY: tuple[str, ...] = _vocabulary()
