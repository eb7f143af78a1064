"""The account of samples that cannot be used: counted, named with the reason, skipped up to a fraction.

Every sample that is read is either good or bad: `num_good + num_bad = num_read`. No torch here.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 1000  # the bad fraction is judged on at least so many samples, until the end
KEPT = 10_000  # so many are kept in memory; the file, where there is one, names all
BAD_SAMPLES = "bad_samples.jsonl"  # the file's name in an out_dir
_NAMED = 5  # so many are named in the error
_REASON_CHARACTERS = 300
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BadSample:
    """name: where it lies, such as `00003.tar:000012`; reason: one line."""

    name: str
    reason: str

    @classmethod
    def of(cls, name: str, reason: object) -> BadSample:
        """With the reason, such as an exception, in one line."""
        return cls(name, " ".join(str(reason).split())[:_REASON_CHARACTERS])

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class TooManyBadSamples(ValueError):
    """More samples were unusable than allowed."""


class Account:
    """Counts good and bad samples of one reading and stops it when too many are bad.

    max_bad_fraction: of the samples read. what: how messages call them. file: takes every bad one, a JSON
    line each ({"name", "reason"}). state: of an account to go on from, adding to its file; without one, an
    older file is replaced.
    """

    def __init__(
        self,
        max_bad_fraction: float,
        *,
        what: str = "samples",
        file: Path | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.max_bad_fraction, self.what, self.file = max_bad_fraction, what, file
        self.num_good = self.num_bad = 0
        self.bad: list[BadSample] = []  # the first KEPT
        if state is not None:
            self.num_good, self.num_bad = state["num_good"], state["num_bad"]
            self.bad = [BadSample(name, reason) for name, reason in state["first"]]
        elif file is not None:
            file.unlink(missing_ok=True)

    @property
    def num_read(self) -> int:
        """Good and bad together."""
        return self.num_good + self.num_bad

    def add_good(self, count: int = 1) -> None:
        """Count samples that can be used."""
        self.num_good += count

    def add_bad(self, name: str, reason: object) -> BadSample:
        """Count and name one that cannot.

        Raises: TooManyBadSamples, naming the first ones, once PATIENCE samples would allow fewer.
        """
        bad = BadSample.of(name, reason)
        self.num_bad += 1
        if len(self.bad) < KEPT:
            self.bad.append(bad)
        if self.file is not None:
            append_bad(self.file, [bad])
        _log.warning("skipped %s", bad)
        self._judge(at_least=PATIENCE)
        return bad

    def finish(self) -> None:
        """Judge what was read, all of it.

        Raises: TooManyBadSamples, naming the first ones.
        """
        self._judge(at_least=1)

    def state(self) -> dict[str, Any]:
        """The counts and the first names, as plain values, to go on from."""
        first = [[bad.name, bad.reason] for bad in self.bad[:_NAMED]]
        return {"num_good": self.num_good, "num_bad": self.num_bad, "first": first}

    def _judge(self, at_least: int) -> None:
        if self.num_bad <= self.max_bad_fraction * max(self.num_read, at_least):
            return
        named = "; ".join(str(bad) for bad in self.bad[:_NAMED])
        more = f"; all are named in {self.file}" if self.file is not None else ""
        raise TooManyBadSamples(
            f"{self.num_bad} of {self.num_read} {self.what} are unusable, more than the allowed "
            f"{self.max_bad_fraction:.2%}: {named}{more}"
        )


def append_bad(file: Path, samples: list[BadSample]) -> None:
    """Add samples to a file of bad ones; see `Account`."""
    lines = [json.dumps({"name": bad.name, "reason": bad.reason}) + "\n" for bad in samples]
    with file.open("a", encoding="utf-8") as out:
        out.write("".join(lines))
