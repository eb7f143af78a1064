"""The two texts of a sample, chosen by one rule for memory, streams and caches. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from encoder.data.options import CaptionKeys

DEFAULT_KEYS = CaptionKeys()


@dataclass(frozen=True, slots=True)
class Texts:
    """alt: the alt text; dense: the dense caption. Each is the other where a sample has only one."""

    alt: str
    dense: str


def choose_texts(record: Mapping[str, Any], keys: CaptionKeys = DEFAULT_KEYS) -> Texts:
    """Each text is the first of its keys that has one.

    Missing, null, NaN (a table's missing text) and blank values have none; a list of one text has that text.

    Raises: ValueError if a key holds something else, such as a number or several texts, or if no key has a
        text.
    """
    alt, dense = _first(record, keys.alt), _first(record, keys.dense)
    if not alt and not dense:
        raise ValueError(f"no text in {', '.join([*keys.alt, *keys.dense])}")
    return Texts(alt or dense, dense or alt)


def _first(record: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((text for name in names if (text := _text(name, record.get(name)))), "")


def _text(name: str, value: Any) -> str:
    if isinstance(value, list) and len(value) <= 1:
        value = value[0] if value else None
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if not isinstance(value, str):
        what = f"{len(value)} texts" if isinstance(value, list) else f"{type(value).__name__} {value!s:.40}"
        raise ValueError(f"{name} is {what}, not one text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} has half of a surrogate pair") from None
    return value.strip()
