"""`python harness/run.py suite=understanding|generation|all preset=demo ...`: from frozen encoders to
leaderboards.

This file only finds the repository and its environment; `harness/command_line.py` is the command line.
"""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Put the root on the path (a script's own folder is not wanted there), then hand over."""
    sys.path[:] = [str(ROOT), *(place for place in sys.path if place != str(ROOT / "harness"))]
    if importlib.util.find_spec("omegaconf") is None:
        own = ROOT / ".venv" / "bin" / "python"
        if not own.exists() or Path(sys.prefix) == ROOT / ".venv":
            print("error: the packages are not installed; run `make setup` first", file=sys.stderr)
            return 2
        os.execv(own, [str(own), *sys.argv])
    from harness.command_line import main as command_line

    return command_line(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
