"""Picture files by the names that records give them, confined to the folders that the user names.

A record comes from elsewhere, a folder and what lies in it from the user. So a name is read as words:
`a/../b` is `b`, and a name that climbs out of its folder or starts at `/` elsewhere is refused. Symbolic
links in a folder are the user's and are followed, wherever they lead (data sets are often linked together,
and the hub's cache holds links alone); but `link/..` is the folder that holds the link, not the one above its
target.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def find_picture(name: str, roots: Sequence[Path], *, allow_outside_root: bool = False) -> Path:
    """The file of a name: under the first of `roots` that has it.

    Raises:
        ValueError: the name leads out of all roots, and that is not allowed; or it cannot be a file's name.
        FileNotFoundError: no root has such a file.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"a picture's name must be a file's name, got {str(name)[:60]!r}")
    places = [Path(os.path.normpath(root.absolute() / name)) for root in roots]
    if allow_outside_root:
        usable = places
    else:
        usable = [place for place, root in zip(places, roots, strict=True) if _is_within(place, root)]
        if roots and not usable:
            raise ValueError(
                f"{name} leads out of {_listed(roots)}; mend the record, or set allow_outside_root=true"
            )
    found = next((place for place in usable if os.path.isfile(place)), None)
    if found is None:
        raise FileNotFoundError(f"{name} is in none of {_listed(roots)}")
    return found


def _is_within(place: Path, root: Path) -> bool:
    """Whether a path lies in a folder as its user writes the folder, or as the system does."""
    folders = (os.path.normpath(root.absolute()), root.resolve())
    return any(place.is_relative_to(folder) and place != Path(folder) for folder in folders)


def _listed(roots: Sequence[Path]) -> str:
    return ", ".join(map(str, roots)) or "no folders"
