"""The mark of a replica: a file at its root, and a README in each source."""

from pathlib import Path
from typing import Any

from encoder.runtime.stage import write_json

MARK, README = "REPLICA.json", "README.md"
VERSION = 2  # raise it when the same seed and sizes give other files


def write_mark(root: Path, seed: int, sizes: dict[str, Any], *, complete: bool) -> None:
    """Say in `root` that it is a replica, and of which seed and sizes."""
    write_json(
        root / MARK,
        {"replica": True, "version": VERSION, "seed": seed, "complete": complete, "sizes": sizes},
    )


def is_marked(root: Path) -> bool:
    """Whether a folder is a replica, complete or not."""
    return (root / MARK).is_file()


def is_in_replica(path: Path) -> bool:
    """Whether a file or folder lies in a replica: what is made of it is a rehearsal."""
    path = path.resolve()
    return any(is_marked(folder) for folder in (path, *path.parents))


def readme(what: str, published: str) -> str:
    """The text of a source's README."""
    return (
        f"# Replica: {what}\n\nA miniature in the published layout, made by `python -m harness.replica`: "
        f"drawn pictures, random weights, nothing of the original.\nThe original: {published}\n"
    )
