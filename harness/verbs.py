"""What `run.py verify RESULTS` and `run.py compare A B` do: they read results folders and run nothing."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from encoder.config import ConfigError, choose
from harness import compare, verify

DIFFERENT = 1  # exit code, as diff's


def run(verb: str, words: Sequence[str], console: Console) -> int:
    """Do what a verb says; returns the exit code: 0, or 1 where something differs.

    Raises:
        ConfigError: not the folders that the verb takes.
        FileNotFoundError: a folder without a leaderboard.
        ValueError: a leaderboard that cannot be read.
    """
    names, act = choose(VERBS, verb, "verb")
    if len(words) != len(names):
        raise ConfigError(f"{verb} takes {' and '.join(names)}, got {' '.join(words) or 'nothing'}")
    return act(*map(Path, words), console)


def _verify(results: Path, console: Console) -> int:
    verdict = verify.verify(results)
    for fault in verdict.faults:
        print(f"error: {fault}", file=sys.stderr)
    for place in sorted(verdict.gone):
        console.print(f"no longer there: {place}", highlight=False, soft_wrap=True, markup=False)
    console.print(str(verdict), highlight=False, soft_wrap=True, markup=False)
    return DIFFERENT if verdict.faults else 0


def _compare(a: Path, b: Path, console: Console) -> int:
    pairs = compare.compare(a, b)
    compare.show(pairs, a, b, console)
    return DIFFERENT if any(pair.num_changed for pair in pairs) else 0


VERBS: dict[str, tuple[tuple[str, ...], Callable[..., int]]] = {
    "verify": (("a results folder such as results/demo",), _verify),
    "compare": (("one results folder", "another"), _compare),
}
