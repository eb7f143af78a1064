"""What the tests of the paper's sources share: a look at one source, and damage done to its files."""

from pathlib import Path

from harness.paper.look import Seen, look
from harness.paper.sources import SourcesConfig


def see(root: Path | None, name: str, **places: str) -> Seen:
    (seen,) = look(SourcesConfig(**places), root, [name])
    return seen


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def cut(path: Path) -> None:
    """As after a download that broke off."""
    replace(path, path.read_bytes()[: path.stat().st_size * 2 // 3])
