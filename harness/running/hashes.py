"""Hashes of files' contents. They are remembered beside the runs and a file is read again only when its size
or time of change is another, so that a plan over 100 GB of inputs stays quick; no time is part of a hash.
"""

import functools
import json
import time
from collections.abc import Iterable
from pathlib import Path

from encoder.runtime.config import ROOT
from encoder.runtime.stage import sha256_file, write_json

STORE = ".hashes.json"  # in the runs folder: path -> [size, time of change in ns, sha256]
SETTLED_NS = 2 * 10**9  # changed later than this ago, a file might change again at the same time and size


class Hashes:
    """The hashes that are remembered in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.is_changed = folder, False
        try:
            self.known = json.loads((folder / STORE).read_text())
        except (OSError, ValueError):  # none yet, or damaged: read the files again
            self.known = {}

    def of(self, path: Path) -> str:
        """A file's sha256."""
        stat = path.stat()
        mark, known = [stat.st_size, stat.st_mtime_ns], self.known.get(str(path.resolve()))
        if known is not None and known[:2] == mark:
            return known[2]
        digest = sha256_file(path)
        if time.time_ns() - stat.st_mtime_ns > SETTLED_NS:
            self.known[str(path.resolve())] = [*mark, digest]
            self.is_changed = True
        return digest

    def save(self) -> None:
        """Write what is new; a runs folder that is not there yet is not made."""
        if self.is_changed and self.folder.is_dir():
            write_json(self.folder / STORE, self.known)
            self.is_changed = False


@functools.cache
def remembered(folder: Path) -> Hashes:
    """The hashes beside the runs of a folder."""
    return Hashes(folder)


def hash_files(paths: Iterable[Path], hashes: Hashes | None = None) -> dict[Path, str]:
    """sha256 of every file named or below a folder named; hidden files and caches are left out.

    hashes: those that are remembered; None: every file is read.
    Raises:
        FileNotFoundError: a path does not exist.
    """
    digests = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"not found: {short(path)}")
        members = sorted(path.rglob("*")) if path.is_dir() else [path]
        for member in members:
            parts = member.relative_to(path).parts
            if member.is_file() and not any(part.startswith((".", "__pycache__")) for part in parts):
                digests[member] = hashes.of(member) if hashes else _sha256(member, member.stat().st_mtime_ns)
    if hashes:
        hashes.save()
    return digests


@functools.cache
def _sha256(path: Path, modified_ns: int) -> str:
    return sha256_file(path)


def short(path: Path) -> str:
    """A path as people read it: relative to the repository where it lies in it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
