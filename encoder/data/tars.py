"""The one reader of tar shards: raw samples one after another, and what is wrong with the file; and how a
member is written.

Members are streamed and never extracted. Members whose names agree up to the first dot of the file's name are
a sample, as in WebDataset: `a/0001.jpg`, `a/0001.json`. No torch here.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import fsspec

MAX_MEMBER_BYTES = 256 * 2**20  # of one member; a larger one is read past and its sample is bad
_CHUNK = 2**20
# A sample's key and a suffix
MEMBER_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_NO_SAMPLE = re.compile(r"__[^/]*__($|/)")  # WebDataset's own notes
# Of a raw sample, beside {suffix: bytes}
KEY, URL, PROBLEM = "__key__", "__url__", "__problem__"


class Unreachable(OSError):
    """Where a shard lies failed, not its content."""


class _Source:
    """A file whose failures are told from those of the tar format."""

    def __init__(self, file: Any):
        self.file = file

    def read(self, size: int) -> bytes:
        try:
            return self.file.read(size)
        except Exception as error:  # every file system has its own kinds
            raise Unreachable(f"{type(error).__name__} {error}") from error


class _Member(tarfile.TarInfo):
    """A member; notes in its archive what kind of header was read last, for `tarfile` keeps it to itself."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        tarfile_.last_header = None
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            tarfile_.last_header = error
            raise


class OpenShard:
    """The raw samples of one shard: {suffix: bytes} with `__key__`, `__url__` and, where a member cannot be
    used, `__problem__`. `damage` says after the last one what was lost with the file's rest; `position`
    counts the samples taken.

    Raises: FileNotFoundError and what else the file system raises; while reading, `Unreachable`.
    """

    def __init__(self, url: str, max_member_bytes: int = MAX_MEMBER_BYTES):
        self.url, self.max_member_bytes = url, max_member_bytes
        self.damage: list[str] = []
        self.position = 0
        self._cut_key: str | None = None  # of the sample in which the file is damaged
        self._file = fsspec.open(url, "rb").open()
        self._samples = self._read()

    def take(self, number: int) -> list[dict[str, Any]]:
        """The next raw samples; fewer at the end."""
        return list(islice(self, number))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for sample in self._samples:
            self.position += 1
            yield sample

    def close(self) -> None:
        """Close the file, read to its end or not."""
        self._samples.close()
        self._file.close()

    def _read(self) -> Iterator[dict[str, Any]]:
        sample: dict[str, Any] = {}
        with closing(self._file):
            for name, key, data in self._members():
                stem, suffix = key
                if sample and stem != sample[KEY]:
                    yield sample
                    sample = {}
                sample = sample or {KEY: stem, URL: self.url}
                if isinstance(data, str):
                    sample[PROBLEM] = data
                elif suffix in sample:
                    sample[PROBLEM] = f"{name} is there twice"
                else:
                    sample[suffix] = data
        if sample and sample[KEY] != self._cut_key:
            yield sample

    def _members(self) -> Iterator[tuple[str, tuple[str, str], bytes | str]]:
        """Names, their (key, suffix) and contents; in place of a content, why there is none."""
        last = "its start"
        try:
            with tarfile.open(fileobj=_Source(self._file), mode="r|*", tarinfo=_Member) as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # it would keep the headers of all
                    found = MEMBER_NAME.fullmatch(member.name)
                    if not member.isreg() or found is None or _NO_SAMPLE.match(member.name):
                        continue
                    last, key = member.name, (found[1], found[2].lower())
                    self._cut_key = key[0]
                    data = self._content(tar, member)
                    self._cut_key = None
                    yield last, key, data
                if not isinstance(tar.last_header, tarfile.EOFHeaderError):
                    self.damage.append(f"shard cut off or damaged after {last}: what follows is lost")
        except Unreachable:
            raise
        except Exception as error:  # of any kind: tarfile's readers raise whatever the bytes make them
            where = f"in {last}" if self._cut_key is not None else f"after {last}"
            reason = " ".join(str(error).split()) or type(error).__name__
            self.damage.append(f"shard damaged {where} ({reason}): what follows is lost")

    def _content(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | str:
        if member.sparse is not None:
            return f"{member.name} is a sparse file"
        file = tar.extractfile(member)
        if member.size <= self.max_member_bytes:
            return file.read()
        while file.read(_CHUNK):  # here, for `tarfile` would go on past the file's end
            pass
        return f"{member.name} has {member.size} bytes; allowed are {self.max_member_bytes}"


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar that is being written; it has no time, so that equal contents give equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def short_name(url: str) -> str:
    """A shard's file name."""
    return url.rsplit("/", 1)[-1]
