"""`run.py compare A B`: two results folders side by side: what differs in config, provenance and numbers."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from encoder.runtime.config import read_yaml
from harness.tables.results_folder import RUN_CONFIG, SavedSuite, saved_suites

ABSENT = "absent"
_FACTS = (
    "seed",
    "num_samples",
    "config_hash",
    "checkpoint_hash",
    "data_hash",
    "commit",
    "packages",
    "hardware",
)


@dataclass(frozen=True, kw_only=True)
class NumberPair:
    """One number of both folders; a side without it says why as text."""

    encoder: str
    key: str
    a: float | str | None
    b: float | str | None
    stderr: float | None  # of the difference, the two taken as independent
    higher_is_better: bool | None

    @property
    def difference(self) -> float | None:
        """b - a; None where either is no number."""
        known = isinstance(self.a, int | float) and isinstance(self.b, int | float)
        return self.b - self.a if known else None

    @property
    def is_same(self) -> bool:
        return self.a == self.b


@dataclass(frozen=True, kw_only=True)
class SuitePair:
    """What two folders say about one suite; `settings` and `facts` hold what differs: (where, a, b)."""

    suite: str
    settings: list[tuple[str, Any, Any]]  # the run's config; empty where either folder has none
    facts: list[tuple[str, Any, Any]]  # the result files: seed, hashes, packages, ...
    numbers: list[NumberPair]

    @property
    def num_changed(self) -> int:
        return sum(not pair.is_same for pair in self.numbers)


def compare(a: Path, b: Path) -> list[SuitePair]:
    """Every suite that either folder holds.

    Raises:
        FileNotFoundError: a folder without a leaderboard.
        ValueError: a leaderboard or result file that cannot be read; two presets of one suite in one folder.
    """
    sides = [_by_suite(results) for results in (a, b)]
    rehearsed = [
        any(row.get("rehearsal") for suite in side.values() for row in suite.own_rows) for side in sides
    ]
    if rehearsed[0] != rehearsed[1]:
        raise ValueError(
            f"{(a, b)[rehearsed[1]]} is a rehearsal on a replica, the other is not: they do not compare"
        )
    pairs = []
    for name in dict.fromkeys(name for side in sides for name in side):
        suites = [side.get(name) for side in sides]
        pairs.append(
            SuitePair(
                suite=name,
                settings=_differences(*(_flat(_run_config(suite)) for suite in suites)),
                facts=_facts(*suites) if all(suites) else [],
                numbers=_numbers(*suites),
            )
        )
    return pairs


def show(pairs: list[SuitePair], a: Path, b: Path, console: Console) -> None:
    """Print what differs, then every number side by side."""
    for pair in pairs:
        for title, lines in (
            (f"{pair.suite}: config that differs", pair.settings),
            (f"{pair.suite}: provenance that differs", pair.facts),
        ):
            if lines:
                table = _table(title, "", f"A {a}", f"B {b}")
                for where, left, right in lines:
                    table.add_row(*(escape(_short(text)) for text in (where, left, right)))
                console.print(table)
        title = f"{pair.suite}: {pair.num_changed} of {len(pair.numbers)} numbers differ"
        table = _table(title, "encoder", "key", "A", "B", "B - A", "")
        for number in pair.numbers:
            cells = (number.encoder, number.key, _number(number.a), _number(number.b))
            style = "dim" if number.is_same else ""
            table.add_row(*map(escape, (*cells, *_change(number))), style=style)
        console.print(table)


def _by_suite(results: Path) -> dict[str, SavedSuite]:
    found: dict[str, SavedSuite] = {}
    for suite in saved_suites(results):
        name = suite.board["suite"]
        if name in found:
            raise ValueError(f"{results} holds {name} twice; name one preset's folder, such as results/demo")
        found[name] = suite
    return found


def _run_config(suite: SavedSuite | None) -> Mapping:
    path = suite.folder / RUN_CONFIG if suite else None
    return read_yaml(path) if path and path.is_file() else {}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {dotted name: value}; lists stay whole."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        name: leaf
        for key, item in value.items()
        for name, leaf in _flat(item, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What differs between two flat mappings; nothing where one is empty."""
    if not a or not b:
        return []
    lines = [(key, a.get(key, ABSENT), b.get(key, ABSENT)) for key in dict.fromkeys([*a, *b])]
    return [line for line in lines if line[1] != line[2]]


def _facts(a: SavedSuite, b: SavedSuite) -> list[tuple[str, Any, Any]]:
    """What differs between the result files of numbers that both have: one line per fact and stage of an
    encoder.
    """
    files = [{(row["encoder"], key): name for row, key, name in suite.numbers()} for suite in (a, b)]
    groups: dict[tuple[str, Any, Any], set[str]] = {}
    for place in [place for place in files[0] if place in files[1]]:
        left, right = (
            _flat({fact: suite.result(names[place])[fact] for fact in _FACTS})
            for suite, names in zip((a, b), files, strict=True)
        )
        for fact, old, new in _differences(left, right):
            groups.setdefault((fact, old, new), set()).add(place[0])
    return [
        (f"{fact} ({', '.join(sorted(encoders))})", old, new) for (fact, old, new), encoders in groups.items()
    ]


def _numbers(a: SavedSuite | None, b: SavedSuite | None) -> list[NumberPair]:
    sides = [{row["encoder"]: row for row in suite.own_rows} if suite else {} for suite in (a, b)]
    pairs = []
    for encoder in dict.fromkeys(name for side in sides for name in side):
        rows = [side.get(encoder) for side in sides]
        keys = [key for row in rows if row for key in (*row["metrics"], *row["not_run"])]
        pairs += [_pair(encoder, key, rows) for key in dict.fromkeys(keys)]
    return pairs


def _pair(encoder: str, key: str, rows: list[dict | None]) -> NumberPair:
    metrics = [row["metrics"].get(key) if row else None for row in rows]
    values = []
    for row, metric in zip(rows, metrics, strict=True):
        reason = row["not_run"].get(key) if row else None
        values.append(metric["value"] if metric else f"not run: {reason}" if reason else ABSENT)
    errors = [metric["stderr"] if metric else None for metric in metrics]
    known = next(filter(None, metrics), {"higher_is_better": None})
    return NumberPair(
        encoder=encoder,
        key=key,
        a=values[0],
        b=values[1],
        stderr=None if None in errors else math.hypot(*errors),
        higher_is_better=known["higher_is_better"],
    )


def _change(number: NumberPair) -> Iterator[str]:
    """The difference with its standard error, and whether it is for the better."""
    difference = number.difference
    if difference is None or number.is_same:
        yield from ("" if number.is_same else "differs", "")
        return
    yield f"{difference:+.4g}" + (f" ± {number.stderr:.2g}" if number.stderr else "")
    yield (
        ""
        if number.higher_is_better is None
        else ("better" if (difference > 0) == number.higher_is_better else "worse")
    )


def _table(title: str, *headings: str) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for heading in headings:
        table.add_column(escape(heading), overflow="fold")
    return table


def _number(value: float | str | None) -> str:
    if isinstance(value, int | float):
        return f"{value:.6g}"
    return "undefined" if value is None else value


def _short(value: Any) -> str:
    text = str(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:12] if is_hash else text
