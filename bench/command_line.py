"""How soon the command line answers: `python bench/command_line.py` prints a table and writes
results/bench/command_line.json.

The baseline starts Python and imports torch alone, which is what every answer would take at least if the
command line needed it. The last row is what a plan takes to see that a folder of 100,000 pictures is as it
was; its baseline looks at every file, as a run does.
"""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from _table import ROOT, make_row, publish, seconds

from harness.running.hashes import Hashes
from harness.running.listings import Listings

ANSWERS = {"help": ["--help"], "list": ["--list"], "plan": ["--plan", "suite=all"]}
BASELINE = "import torch"
NUM_FOLDERS, NUM_FILES = 100, 1000  # in each
_LONG_AGO = 10**9  # seconds since 1970: a folder that changed just now is not remembered


def call(*words: str) -> None:
    """Python with these words, from start to end."""
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)


def make_pictures(root: Path) -> None:
    """Folders as ImageNet's, of empty files."""
    for number in range(NUM_FOLDERS):
        folder = root / f"n{number:08d}"
        folder.mkdir(parents=True)
        for picture in range(NUM_FILES):
            (folder / f"n{number:08d}_{picture}.JPEG").touch()
        os.utime(folder, (_LONG_AGO, _LONG_AGO))
    os.utime(root, (_LONG_AGO, _LONG_AGO))


def list_pictures(root: Path, runs: Path, *, is_quick: bool) -> str:
    """The hash of a folder, as a new start of the command line finds it."""
    return Listings(runs, Hashes(runs), is_quick=is_quick).of(root)


def listing_row() -> dict:
    """A folder that is remembered against one that is looked at whole."""
    with tempfile.TemporaryDirectory() as folder:
        root, runs = Path(folder, "train"), Path(folder, "runs")
        runs.mkdir()
        make_pictures(root)
        works = {
            name: partial(list_pictures, root, runs, is_quick=name == "plan") for name in ("run", "plan")
        }
        times = seconds(works, repeats=3)
    note = "baseline: every file is looked at, as a run does"
    return make_row("listing/100k_files", "s", times["plan"], times["run"], note, higher_is_better=False)


def main() -> None:
    with tempfile.TemporaryDirectory() as runs:
        works = {
            name: partial(call, "harness/run.py", *words, f"runs_dir={runs}/runs")
            for name, words in ANSWERS.items()
        }
        times = seconds({**works, BASELINE: partial(call, "-c", BASELINE)}, repeats=3)
    note = f"baseline: python -c '{BASELINE}'"
    rows = [
        make_row(f"answer/{name}", "s", times[name], times[BASELINE], note, higher_is_better=False)
        for name in ANSWERS
    ]
    publish("command_line", [*rows, listing_row()])


if __name__ == "__main__":
    main()
