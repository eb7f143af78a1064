"""Start a process that cannot outlive its parent: `python attach.py <parent pid> -m <module> <arguments>`.

On Linux the kernel kills the stage when its parent ends, however it ends, so that two runs never write into
one folder. Elsewhere the inherited lock (`lock.py`) keeps a second run out for as long as an orphan lives.
The parent is the harness, which gives its number, or torchrun, which cannot: `parent` means whoever it is.
"""

import ctypes
import os
import signal
import sys

PARENT = "parent"  # whoever started this process
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Tie this process to its parent, restore Ctrl-C (a shell's background jobs ignore it), be the stage."""
    parent = os.getppid() if sys.argv[1] == PARENT else int(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel knew
            sys.exit(f"error: the process that started this one ({parent}) is gone")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])


if __name__ == "__main__":
    main()
