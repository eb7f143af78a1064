"""Looks at pictures before the first step, and what is remembered of them: a picture that was found whole is
not looked at again by a later start or run; what was missing or broken is, so that it may be mended.

What is found is kept every few thousand pictures, so that a look that was cut short goes on. A picture that
breaks or goes after it was looked at shows when it is read (see `pictures`).
"""

import hashlib
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from encoder.runtime.files import locked, replacing
from llava_bridge.pictures import CachedPictures, LivePictures

_LOOKS_AT_ONCE = 16  # a look waits for the disk most of the time
_LOOKS_BETWEEN_SAVES = 20_000


def absent_pictures(
    names: Sequence[str], pictures: CachedPictures | LivePictures | None, kept: Path | None = None
) -> dict[int, str]:
    """{place among `names`: reason} of the pictures that cannot be used. kept: folder of what was found by
    earlier looks at these names in the same places; one process looks, others wait and learn of it."""
    if pictures is None:
        return dict.fromkeys(range(len(names)), "no pictures are given")
    if kept is None or pictures.identity is None:
        return {place: fault for place, fault in enumerate(map(pictures.fault, names)) if fault is not None}
    file = kept / f"{_key(names, pictures.identity)}.looks"
    with locked(file.with_suffix(".lock"), "records_cache"):
        is_whole = np.zeros(len(names), np.bool_)
        if file.is_file() and file.stat().st_size == len(names):
            is_whole = np.fromfile(file, np.bool_)
        return _look(names, pictures, is_whole, file)


def _look(names: Sequence[str], pictures: LivePictures, is_whole: np.ndarray, file: Path) -> dict[int, str]:
    absent: dict[int, str] = {}
    places = np.flatnonzero(~is_whole).tolist()
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        for start in range(0, len(places), _LOOKS_BETWEEN_SAVES):
            part = places[start : start + _LOOKS_BETWEEN_SAVES]
            faults = list(pool.map(lambda place: pictures.fault(names[place]), part))
            absent |= {place: fault for place, fault in zip(part, faults, strict=True) if fault is not None}
            is_whole[part] = [fault is None for fault in faults]
            if None in faults:
                with replacing(file) as temporary:
                    is_whole.tofile(temporary)
    return absent


def _key(names: Sequence[str], identity: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in itertools.chain(identity, ("",), names):
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()[:24]
