"""The lock on a runs folder. The kernel holds it for the harness and the stages it started, so it ends when
the last of them does: a process that was killed cannot leave it behind.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

_GRACE_SECONDS = 3.0  # stages of a harness that was just killed need a moment to end


class FolderBusyError(RuntimeError):
    """Another live run works in this folder."""


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[int]:
    """Hold the folder's lock; yields the file descriptor, which stages inherit.

    Raises:
        FolderBusyError: another process holds it (named with its process id, machine and start).
        OSError: the disk has no locks.
    """
    with (folder / ".lock").open("a+") as file:
        _take(file.fileno(), folder)
        file.seek(0)
        file.truncate()
        holder = {"pid": os.getpid(), "machine": socket.gethostname(), "since": time.strftime("%F %T")}
        json.dump(holder, file)
        file.flush()
        yield file.fileno()


def _take(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                message = f"{folder} is in use by {_holder(folder)}; wait, or choose another with runs_dir="
                raise FolderBusyError(message) from None
            time.sleep(0.1)
        except OSError as error:  # some network disks have no such locks
            raise OSError(
                f"{folder} lies on a disk that cannot be locked ({error.strerror}), so two runs there could "
                "not see each other; choose a folder on another disk with runs_dir=, or mount it with locks"
            ) from None


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / ".lock").read_text())
        return f"process {holder['pid']} on {holder['machine']} since {holder['since']}"
    except (json.JSONDecodeError, KeyError):
        return "another run"
