"""What a folder that was begun may go on with, and what a finished one holds. No torch here.

A config class names the keys that may change when a run goes on in its folder: `MAY_CHANGE`, and `MAY_GROW`
for numbers that may only rise. Configs inside it bring their own lists. All other keys make another run.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encoder.runtime.config import read_yaml, resolve

DONE = "DONE.json"
PROGRESS = "progress.json"
STAGE_CONFIG = "config.yaml"
CHANGES = "changes.jsonl"  # the keys that changed on the way: a line for each time that the run went on so
_MOST_NAMED = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """A key that the folder's config has otherwise."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}={self.before}, not {self.now}"


def changeable_keys(config: Any, prefix: str = "") -> tuple[set[str], set[str]]:
    """The keys, dotted, that may change when a run of `config` goes on, and those that may only grow."""
    cls = type(config)
    change = {f"{prefix}{key}" for key in getattr(cls, "MAY_CHANGE", ())}
    grow = {f"{prefix}{key}" for key in getattr(cls, "MAY_GROW", ())}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            inner = changeable_keys(value, f"{prefix}{field.name}.")
            change, grow = change | inner[0], grow | inner[1]
    return change, grow


def differences(config: Any, folder: Path) -> list[Difference]:
    """The keys that folder/config.yaml has otherwise; keys that only one of the two has are passed over."""
    path = folder / STAGE_CONFIG
    return list(_differences(read_yaml(path), resolve(config))) if path.is_file() else []


def barred(config: Any, folder: Path) -> list[Difference]:
    """The keys that folder/config.yaml has otherwise and that a run on its way may not change."""
    return [each for each in differences(config, folder) if not _is_allowed(each, config, is_finished=False)]


def is_begun(folder: Path) -> bool:
    """Whether a run left progress, a checkpoint or its end here."""
    return (folder / PROGRESS).is_file() or (folder / DONE).is_file() or any(folder.glob("checkpoint*.pt"))


def refuse_other_run(config: Any, folder: Path, *, is_whole: bool = False) -> None:
    """Check that the folder's run, begun or finished, has this config but for the keys that may change.

    is_whole: no key may change.
    Raises: ValueError, naming the keys that differ.
    """
    is_finished = (folder / DONE).is_file()
    found = _found(config, folder)
    if not is_whole:
        found = [each for each in found if not _is_allowed(each, config, is_finished)]
    if found and is_finished:
        raise ValueError(
            f"{folder} holds a finished run of other settings: {_named(found)}; choose another folder or "
            "delete it"
        )
    if found:
        raise ValueError(
            f"{folder} was begun with {_named(found)}; choose another folder or delete it, or go on with the "
            "old values (docs/training.md lists the keys that may change)"
        )


def note_changes(config: Any, folder: Path) -> None:
    """Print which keys change as the run in this folder goes on, and add them to its `CHANGES`."""
    found = _found(config, folder)
    if found and (folder / DONE).is_file():
        print(f"{folder} is finished and keeps what it has: {_named(found)}", file=sys.stderr)
    elif found:
        words = ", ".join(f"{each.key}={each.now} (was {each.before})" for each in found)
        print(f"{folder} goes on with {words}", file=sys.stderr)
        path = folder / PROGRESS
        done = json.loads(path.read_text()).get("done") if path.is_file() else None
        line = {"done": done, **{each.key: [each.before, each.now] for each in found}}
        with (folder / CHANGES).open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")


def _found(config: Any, folder: Path) -> list[Difference]:
    return differences(config, folder) if is_begun(folder) else []


def _is_allowed(difference: Difference, config: Any, is_finished: bool) -> bool:
    change, grow = changeable_keys(config)
    if difference.key in grow:
        return not is_finished and difference.now > difference.before
    return any(difference.key == key or difference.key.startswith(f"{key}.") for key in change)


def _named(found: list[Difference]) -> str:
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return "; ".join(map(str, found[:_MOST_NAMED])) + more


def _differences(before: Any, now: Any, key: str = "") -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() & now.keys()):
            yield from _differences(before[name], now[name], f"{key}.{name}" if key else name)
    elif before != now:
        yield Difference(key, before, now)
