"""Repositories of the hub by their ids, `owner/name` or `owner/name@revision`, in the hub's cache of this
machine. No torch here, and not the hub's client either: it reads its settings when it is first imported.

A revision is a branch, a tag or a commit; without one it is `main`. What is found is a commit's folder, so a
path into it says which weights these are, and a pinned id (`owner/name@<commit>`) says it in a config.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from encoder.runtime.config import ROOT

MAIN = "main"
_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w./-]*))?")
_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/([^/]+)")
_FILES = (".bin", ".json", ".npz", ".pt", ".pth", ".safetensors", ".txt", ".yaml")
_SHOWN = 12  # letters of a commit in a name for people


def split(text: str) -> tuple[str, str | None]:
    """Repository and revision of an id; a text that is none comes back whole."""
    found = _ID.fullmatch(text)
    return (found[1], found[2]) if found else (text, None)


def is_hub_id(text: str) -> bool:
    """Whether a text can be a repository's id: it is no path here, nor called like a file."""
    can_be = _ID.fullmatch(text) is not None and Path(text).suffix not in _FILES
    return can_be and not (ROOT / text).exists() and not Path(text).exists()


def cache_folder() -> Path:
    """Where the hub's client keeps what it downloads."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def snapshot(text: str) -> Path:
    """The folder of an id's commit in the cache, whether it is there or not."""
    repository, revision = split(text)
    folder = cache_folder() / f"models--{repository.replace('/', '--')}"
    named = folder / "refs" / (revision or MAIN)
    return folder / "snapshots" / (named.read_text().strip() if named.is_file() else revision or MAIN)


def find(text: str) -> Path:
    """The folder of an id's commit in the cache.

    Raises:
        FileNotFoundError: it is not there; names the command that downloads it.
    """
    folder = snapshot(text)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{text} is no folder here and not in the hub's cache ({cache_folder()}); where there is a "
            f"network: {download_command(text)}"
        )
    return folder


def whole(text: str, *needed: str) -> Path | None:
    """The folder of an id's commit where the cache holds all that is `needed` of it (patterns of names, with
    `|` between those of which one will do), so that the hub need not be asked; else None."""
    if not is_hub_id(text):
        return None
    folder = snapshot(text)
    has_all = all(any(any(folder.glob(name)) for name in names.split("|")) for names in needed)
    return folder if has_all else None


def download_command(text: str) -> str:
    """The shell command that downloads an id's repository into the cache."""
    repository, revision = split(text)
    return f"hf download {repository}" + (f" --revision {revision}" if revision else "")


def place(text: str | Path) -> Path:
    """A path, relative to the repository, or the folder of an id's commit.

    Raises:
        FileNotFoundError: it is an id whose repository is not in the cache.
    """
    return find(str(text)) if is_hub_id(str(text)) else ROOT / text


def pinned(text: str) -> str:
    """The id with the commit in place of its revision; any other text as it is.

    Raises:
        FileNotFoundError: the repository is not in the cache.
    """
    return f"{split(text)[0]}@{find(text).name}" if is_hub_id(text) else text


def commit_of(path: str | Path) -> str | None:
    """The commit that a path into the cache, or a pinned id, belongs to."""
    found = _SNAPSHOT.search(str(path))
    return found[2] if found else split(str(path))[1]


def name_of(path: Path) -> str:
    """What people call the weights at a path: of one in the cache its repository and commit, of any other its
    last part."""
    found = _SNAPSHOT.search(str(path))
    return f"{found[1].replace('--', '/', 1)}@{found[2][:_SHOWN]}" if found else path.name
