"""What lies in a folder of pictures, as one hash: name and size of every file below it, and the content of
what comes with pictures: records, parquet, tars, weights. ImageNet and LLaVA hold 2.5 million files.

A folder's part is remembered beside the runs, with the time at which a name in it last came or went. A plan
trusts that time and looks at folders alone; a run looks at every file, so that it also sees a picture
that was written over in its place with another size. No time is part of a hash.
"""

import json
import os
import time
from dataclasses import astuple, dataclass, field
from pathlib import Path

from encoder.runtime.stage import sha256_json, write_json
from harness.running.hashes import SETTLED_NS, Hashes, short

STORE = ".listings.json"  # in the runs folder: path of a folder -> fields of _Seen
READ = (".json", ".jsonl", ".parquet", ".tar", ".safetensors", ".bin", ".pt", ".pth", ".npz")


@dataclass(frozen=True, slots=True)
class _Seen:
    """One folder, without those below it."""

    changed_ns: int
    digest: str  # of its files' names and sizes
    read: list[str]  # names of the files whose content counts
    folders: list[str]  # names of those below it


@dataclass
class Listings:
    """The listings that are remembered in one runs folder.

    is_quick: trust a folder whose time is as it was.
    """

    runs_dir: Path
    hashes: Hashes
    is_quick: bool = False
    known: dict[str, list] | None = None
    is_changed: bool = False
    found: dict[Path, str] = field(default_factory=dict)  # each place is listed once

    def of(self, place: Path) -> str:
        """The hash of a folder.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        if place not in self.found:
            if not place.is_dir():
                raise FileNotFoundError(f"not found: {short(place)}")
            self.known = self._remembered() if self.known is None else self.known
            self.found[place] = sha256_json(self._parts(place))
            self._save()
        return self.found[place]

    def _parts(self, place: Path) -> dict[str, str]:
        """Each folder's digest and each read file's, by its name relative to `place`; links are followed."""
        parts, visited, pending = {}, set(), [place]
        while pending:
            folder = pending.pop()
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue  # a link back into what was seen
            visited.add((status.st_dev, status.st_ino))
            seen = self._look(folder, status.st_mtime_ns)
            parts[f"{folder.relative_to(place)}/"] = seen.digest
            parts |= {str((folder / n).relative_to(place)): self.hashes.of(folder / n) for n in seen.read}
            pending += [folder / name for name in reversed(seen.folders)]
        return parts

    def _look(self, folder: Path, changed_ns: int) -> _Seen:
        key = str(folder.resolve())
        known = self.known.get(key)
        if known is not None and self.is_quick and known[0] == changed_ns:
            return _Seen(*known)
        seen = _listed(folder, changed_ns)
        if known != list(astuple(seen)) and time.time_ns() - changed_ns > SETTLED_NS:
            self.known[key] = list(astuple(seen))
            self.is_changed = True
        return seen

    def _remembered(self) -> dict[str, list]:
        try:
            known = json.loads((self.runs_dir / STORE).read_text())
            return {key: list(astuple(_Seen(*fields))) for key, fields in known.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged: look again
            return {}

    def _save(self) -> None:
        """Write what is new; a runs folder that is not there yet is not made."""
        self.hashes.save()
        if self.is_changed and self.runs_dir.is_dir():
            write_json(self.runs_dir / STORE, self.known)
            self.is_changed = False


def _listed(folder: Path, changed_ns: int) -> _Seen:
    """Look at every file; hidden ones and caches are left out."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__pycache__")):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file():  # a link to nothing is neither
                files.append((entry.name, entry.stat().st_size))
    read = sorted(name for name, _ in files if name.lower().endswith(READ))
    return _Seen(changed_ns, sha256_json(sorted(files)), read, sorted(folders))
