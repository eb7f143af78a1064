"""Files that are whole or not there: a temporary name, everything on the disk, then the rename.

No torch here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, the file's limit
# .<name>.<place>.<process id>.<random>.tmp: unique, whatever hosts, processes and threads share a disk
_TEMPORARY = re.compile(r"\..+\.(?P<place>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]{16}\.tmp")


def _find_place() -> str:
    """Where a process number means one process: the machine and, on Linux, the container."""
    namespace = Path("/proc/self/ns/pid")
    numbering = os.readlink(namespace) if namespace.is_symlink() else ""
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{socket.gethostname()[:48]} {numbering}").strip("-")


_PLACE = _find_place()


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary name beside `path`: what the caller writes there takes `path`'s place when the block ends.

    A reader sees the old file or the new one, never half of one, and of several writers at once the last
    wins. If the block raises, `path` stays as it was and the temporary file is removed. `sync`: the bytes are
    on the disk before the rename; leave it out only for what may be lost with the machine.
    """
    temporary = path.with_name(f".{path.name}.{_PLACE}.{os.getpid()}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        if sync:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:
            reason = f"{error.strerror}: {path} cannot be written; make room, then the same command goes on"
            raise OSError(error.errno, reason) from None
        raise


@contextmanager
def locked(path: Path, setting: str) -> Iterator[None]:
    """Hold a lock file: one process at a time is in the block, the others wait, as long as it takes. One that
    is killed lets go. setting: what chooses the folder, for the message.

    Raises:
        OSError: the disk has no file locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise OSError(
                f"the disk of {path.parent} has no file locks ({error.strerror}); set {setting} to a folder "
                "on one that has"
            ) from None
        yield


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in `folder` of processes of this machine that live no more: what a kill in
    the middle of a checkpoint leaves behind."""
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found and found["place"] == _PLACE and not _is_alive(int(found["pid"])):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    with suppress(PermissionError):  # another user's process
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True
