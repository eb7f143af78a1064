"""Start a stage that cannot outlive the harness: `python attach.py <parent pid> -m <module> <arguments>`.

On Linux the kernel kills the stage when its parent ends, however it ends, so that two runs never write into
one folder. Elsewhere the inherited lock (`lock.py`) keeps a second run out for as long as an orphan lives.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Tie this process to its parent, restore Ctrl-C (a shell's background jobs ignore it), be the stage."""
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel knew
            sys.exit(f"error: the harness (process {parent}) is gone")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])


if __name__ == "__main__":
    main()
