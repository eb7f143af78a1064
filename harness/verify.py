"""`run.py verify RESULTS`: are the tables what the result files say, and the result files what the stages
gave?

Four checks, each naming what differs: every file of a leaderboard is rebuilt from the result files and
compared; so are the report's tables and the model cards; each result file is compared with its stage's
`DONE.json` and `config.yaml`; checkpoints and data are hashed again. What is no longer there is counted, not
a fault.
"""

import difflib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from encoder.runtime.config import ROOT, read_yaml
from encoder.runtime.stage import DONE, sha256_json
from harness.report import REPORT, published_tables, suite_tables
from harness.tables import leaderboard, model_card
from harness.tables.result_files import content_hash, finite
from harness.tables.results_folder import LEADERBOARD, SavedSuite, result_files, saved_suites

_FROM_STAGE = ("value", "stderr", "unit", "higher_is_better", "num_samples")


@dataclass
class Verdict:
    """What was checked, what differs."""

    num_numbers: int = 0
    num_files: int = 0  # rendered files compared
    num_stages: int = 0
    num_inputs: int = 0  # checkpoints and data hashed again
    gone: set[str] = field(default_factory=set)  # stages and inputs that are no longer there
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        checked = (
            f"{self.num_numbers} numbers, {self.num_files} rendered files, {self.num_stages} stages and "
            f"{self.num_inputs} inputs checked"
        )
        gone = f"; no longer there: {len(self.gone)}" if self.gone else ""
        return f"{checked}{gone}; {len(self.faults) or 'no'} difference{'' if len(self.faults) == 1 else 's'}"


def verify(results: Path) -> Verdict:
    """Check everything under a results folder.

    Raises:
        FileNotFoundError: no leaderboard there.
        ValueError: a leaderboard that cannot be read.
    """
    verdict = Verdict()
    seen: dict[str, str | None] = {}
    rebuilt: dict[Path, list[SavedSuite]] = {}  # by the preset's folder
    for suite in saved_suites(results):
        readable = True
        for row, key, name in suite.numbers():
            verdict.num_numbers += 1
            try:
                content = suite.result(name)
            except ValueError as error:
                verdict.faults.append(str(error))
                readable = False
                continue
            path = suite.folder / name
            said = (row["encoder"], row["kind"], key)
            if (content["encoder"], content["kind"], content["key"]) != said:
                verdict.faults.append(f"{path}: is not {row['encoder']}'s {key}, as {LEADERBOARD} says")
            verdict.faults += _stage_faults(path, content, verdict, seen)
            verdict.faults += _input_faults(path, content, verdict, seen)
        if readable:  # else there is nothing to rebuild from
            again = SavedSuite(folder=suite.folder, board=rebuild(suite), config=suite.config)
            rebuilt.setdefault(suite.folder.parent, []).append(again)
            verdict.faults += _table_faults(again, verdict)
    for folder, suites in rebuilt.items():
        verdict.faults += _card_faults(folder, suites, verdict)
    return verdict


def rebuild(suite: SavedSuite) -> dict:
    """The leaderboard again, its numbers from the result files, its commit as recorded."""
    rows = [
        {
            **{
                name: row[name]
                for name in ("encoder", "kind", "source", "not_run", "groups", "incomplete")
                if name in row
            },
            "files": {key: result_files(metric) for key, metric in row["metrics"].items()},
        }
        for row in suite.own_rows
    ]
    board = leaderboard.build(suite.config, suite.board["preset"], rows, suite.folder)
    return board | {"commit": suite.board["commit"]}


def _table_faults(suite: SavedSuite, verdict: Verdict) -> Iterator[str]:
    """Rendered files that are not what the result files give; `suite` is rebuilt from them."""
    with tempfile.TemporaryDirectory() as folder:
        for again in leaderboard.write(suite.board, suite.config, Path(folder)):
            path = suite.folder / again.name
            verdict.num_files += 1
            if not path.is_file():
                yield f"{path}: not there"
            elif path.read_bytes() != again.read_bytes():
                yield f"{path}: {_first_difference(path, again)}"
    report = suite.folder.parent / REPORT
    if report.is_file():
        verdict.num_files += 1
        text = report.read_text(encoding="utf-8")
        if suite_tables(suite) not in text or (published_tables(suite) or "") not in text:
            yield f"{report}: its tables of {suite.board['suite']} are not what the result files give"


def _card_faults(folder: Path, suites: list[SavedSuite], verdict: Verdict) -> Iterator[str]:
    """Model cards of a preset that are not what the result files of all its suites give."""
    known = [suite.folder for suite in suites]
    if any(path.parent not in known for path in folder.glob(f"*/{LEADERBOARD}")):
        return  # one of its suites alone was asked for, or cannot be read
    for encoder in model_card.encoders_of(suites):
        path = model_card.card_path(folder, encoder)
        if path.is_file():
            verdict.num_files += 1
            if path.read_text(encoding="utf-8") != model_card.render(suites, encoder):
                yield f"{path}: not what the result files give; write it again with `run.py card`"


def _first_difference(path: Path, again: Path) -> str:
    """The first line that is not as it should be, in both versions."""
    lines = difflib.ndiff(path.read_text(errors="replace").splitlines(), again.read_text().splitlines())
    changed = [line for line in lines if line[0] in "+-"]
    found = next((line[2:].strip() for line in changed if line[0] == "-"), "(nothing)")
    due = next((line[2:].strip() for line in changed if line[0] == "+"), "(nothing)")
    return f"says '{found}', the result files give '{due}'"


def _stage_faults(path: Path, content: dict, verdict: Verdict, seen: dict) -> Iterator[str]:
    """A result file against what its stage left, where that is still there."""
    folder = ROOT / content["folder"]
    if not (folder / DONE).is_file():
        verdict.gone.add(str(folder))
        return
    done = json.loads((folder / DONE).read_text())
    metric = done["result"]["metrics"].get(content["key"])
    if metric is None:
        yield f"{path}: {folder / DONE} gives no {content['key']}"
    else:
        for name in _FROM_STAGE:
            given = finite(metric.get(name))
            if given != content[name]:
                yield f"{path}: {name} is {content[name]}, {folder / DONE} gives {given}"
    if str(folder) not in seen:
        verdict.num_stages += 1
        seen[str(folder)] = sha256_json(read_yaml(folder / "config.yaml"))
    if seen[str(folder)] != content["config_hash"]:
        yield f"{path}: config_hash is not that of {folder / 'config.yaml'}"


def _input_faults(path: Path, content: dict, verdict: Verdict, seen: dict) -> Iterator[str]:
    """Checkpoint and data against their recorded hashes, where they are still there; each is read once."""
    for kind in ("checkpoint", "data"):
        names = content[f"{kind}_files"]
        if not names:
            continue
        label = ", ".join(names)
        if label not in seen:
            try:
                seen[label] = content_hash([ROOT / name for name in names])
                verdict.num_inputs += 1
            except FileNotFoundError:
                seen[label] = None
                verdict.gone.add(label)
        if seen[label] not in (None, content[f"{kind}_hash"]):
            yield f"{path}: {kind}_hash is not that of {label}"
