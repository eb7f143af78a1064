"""How soon the command line answers: `python bench/command_line.py` prints a table and writes
results/bench/command_line.json.

The baseline starts Python and imports torch alone, which is what every answer would take at least if the
command line needed it.
"""

import subprocess
import sys
import tempfile
from functools import partial

from _table import ROOT, make_row, publish, seconds

ANSWERS = {"help": ["--help"], "list": ["--list"], "plan": ["--plan", "suite=all"]}
BASELINE = "import torch"


def call(*words: str) -> None:
    """Python with these words, from start to end."""
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)


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
    publish("command_line", rows)


if __name__ == "__main__":
    main()
