"""Result files: one JSON per number, with all that it came from. The tables are rendered from these files
and nothing else.

They lie in `results/<preset>/<suite>/values/<encoder>/seed<seed>/<key>.json`, and are rewritten only when
their content is another: a number measured again replaces the old one.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from encoder.runtime.config import ROOT
from encoder.runtime.stage import sha256_json, write_json
from harness.metrics.config import Metric
from harness.running.hashes import hash_files
from harness.running.launch import LAUNCH, Outcome
from harness.running.stages import Stage

Kind = Literal["measured", "blind", "floor", "probe", "ceiling", "published"]

SCENE_CENTRIC = "scene-centric/"  # before the keys of a generation table's second set of pictures


@dataclass(frozen=True, kw_only=True)
class Part:
    """The numbers of a row that one stage gives, as {"metrics": {key: fields of Metric}} in its result."""

    stage: Stage
    keys: tuple[str, ...]  # what it gives when it completes
    checkpoint: tuple[Path, ...] = ()  # what was scored: files or folders
    data: tuple[Path, ...] = ()  # what it was scored on
    answers: Path | None = None  # samples.jsonl, for comparisons question by question
    only_keys: bool = False  # nothing beside `keys` is wanted of what the stage gives


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a leaderboard, before its numbers are there."""

    encoder: str
    kind: Kind
    source: str  # what the encoder id stands for
    parts: tuple[Part, ...]
    undefined: Mapping[str, str]  # keys that this row cannot have, and why
    groups: Mapping[str, str] = field(default_factory=dict)  # study -> this row's label in its table


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What every result file of a run has in common."""

    suite: str
    preset: str
    seed: int
    rehearsal: bool = False  # made on a replica of the sources: no evidence about anything


def collect(row: Row, outcomes: Mapping[Path, Outcome], folder: Path, identity: Identity) -> dict:
    """Write the result files of a row; returns the row as the leaderboard wants it, its numbers given as
    file names.

    `folder` is the suite's own results folder; file names are relative to it.
    """
    files: dict[str, str] = {}
    not_run = dict(row.undefined)
    for part in row.parts:
        outcome = outcomes[part.stage.folder]
        done = part.stage.done() if outcome.is_complete else _partly_done(part.stage.folder, outcome)
        if done is None:
            not_run |= dict.fromkeys(part.keys, outcome.reason)
            continue
        metrics = {key: Metric(**metric) for key, metric in done["result"]["metrics"].items()}
        reasons = dict.fromkeys(part.keys, f"{part.stage.label} did not give it")
        reasons |= done["result"].get("not_run", {})
        not_run |= {key: why for key, why in reasons.items() if key not in metrics and _is_wanted(part, key)}
        facts = None
        for key, metric in metrics.items():
            if not _is_wanted(part, key):
                continue
            path = (
                folder / "values" / slug(row.encoder) / f"seed{identity.seed}" / f"{slug(key, keep='/')}.json"
            )
            facts = facts or _facts(part, done)
            content = {"key": key, "encoder": row.encoder, "kind": row.kind, "source": row.source}
            content |= {name: finite(value) for name, value in asdict(metric).items()}
            content |= {**_said(identity), **facts}
            if _read(path) != json.loads(json.dumps(content)):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, content)
            files[key] = str(path.relative_to(folder))
    return {
        "encoder": row.encoder,
        "kind": row.kind,
        "source": row.source,
        "files": {key: [name] for key, name in files.items()},
        "not_run": not_run,
        **({"groups": dict(row.groups)} if row.groups else {}),
    }


def _is_wanted(part: Part, key: str) -> bool:
    return not part.only_keys or key in part.keys


def _said(identity: Identity) -> dict:
    """An identity's fields; that it is a rehearsal stands only where it is one."""
    return {name: value for name, value in asdict(identity).items() if name != "rehearsal" or value}


def _partly_done(folder: Path, outcome: Outcome) -> dict | None:
    """What a stage that failed for some of its benchmarks gave, in the form of DONE.json; None for others."""
    result = _read(folder / "results.json")
    return {"result": result, "seconds": outcome.seconds} if result and result.get("not_run") else None


def merge_seeds(rows: Sequence[Mapping]) -> dict:
    """One row of its runs with several seeds (`collect`'s answers): each key has the files of all seeds that
    gave it, and is not run where none did. What only some gave is in `incomplete`: {key: reason}.
    """
    files: dict[str, list[str]] = {}
    not_run: dict[str, str] = {}
    for row in rows:
        for key, names in row["files"].items():
            files.setdefault(key, []).extend(names)
        not_run |= row["not_run"]
    merged = {**rows[0], "files": files, "not_run": {k: why for k, why in not_run.items() if k not in files}}
    incomplete = {
        key: f"{len(files[key])} of {len(rows)} seeds; another: {why}"
        for key, why in not_run.items()
        if key in files
    }
    return merged | ({"incomplete": incomplete} if incomplete else {})


def slug(name: str, keep: str = "") -> str:
    """A name as part of a path: everything but letters, digits, dots, dashes (and `keep`) becomes an
    underscore.
    """
    return re.sub(rf"[^\w.\-{keep}]+", "_", name).strip(".") or "_"


def _facts(part: Part, done: Mapping) -> dict:
    launched = json.loads((part.stage.folder / LAUNCH).read_text())
    return {
        "fingerprint": part.stage.fingerprint,
        "stage": launched["stage"],
        "folder": _place(part.stage.folder),
        "config_hash": launched["config_hash"],
        "checkpoint_hash": content_hash(part.checkpoint),
        "checkpoint_files": [_place(path) for path in part.checkpoint],
        "data_hash": content_hash(part.data),
        "data_files": [_place(path) for path in part.data],
        "packages": launched["packages"],
        "commit": launched["commit"],
        "hardware": launched["hardware"],
        "wall_seconds": done["seconds"],
        "date": launched["date"],
    }


def content_hash(paths: Sequence[Path]) -> str | None:
    """One hash over the contents of files and folders, whatever they are called; None for none.

    Raises:
        FileNotFoundError: a path does not exist.
    """
    return sha256_json(list(hash_files(paths).values())) if paths else None


def _place(path: Path) -> str:
    """A path as result files name it: relative to the repository where it lies in it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def finite(value: object) -> object:
    """A value as JSON can hold it: infinities and not-a-numbers are null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
