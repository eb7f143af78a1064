"""What a results folder holds: leaderboards, and the result files that they were rendered from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from encoder.runtime.config import load, nearest
from harness.config import SuiteConfig, suites

LEADERBOARD = "leaderboard.json"
RUN_CONFIG = "config.yaml"  # beside it: seed, encoders and the resolved preset
_RESULT_FIELDS = (
    "key",
    "encoder",
    "kind",
    "value",
    "stderr",
    "unit",
    "higher_is_better",
    "num_samples",
    "seed",
    "fingerprint",
    "stage",
    "folder",
    "config_hash",
    "checkpoint_hash",
    "checkpoint_files",
    "data_hash",
    "data_files",
    "packages",
    "commit",
    "hardware",
    "wall_seconds",
    "date",
)

_ROW_FIELDS = {"encoder", "kind", "source", "metrics", "not_run"}


@dataclass(frozen=True, kw_only=True)
class SavedSuite:
    """A suite's results folder as it was read."""

    folder: Path
    board: dict
    config: SuiteConfig

    @property
    def own_rows(self) -> list[dict]:
        """The rows that were measured here, controls included."""
        return [row for row in self.board["rows"] if row["kind"] != "published"]

    def numbers(self) -> Iterator[tuple[dict, str, str]]:
        """(row, key, name of its result file) of every number that was measured here, seed by seed."""
        for row in self.own_rows:
            for key, metric in row["metrics"].items():
                for name in result_files(metric):
                    yield row, key, name

    def result(self, name: str) -> dict:
        """A result file by its name in the leaderboard.

        Raises:
            ValueError: it lies outside the suite's folder, cannot be read, or lacks a field.
        """
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ValueError(f"{self.folder / LEADERBOARD}: result file outside its folder: {name}")
        content = _read_json(path)
        if missing := [field for field in _RESULT_FIELDS if field not in content]:
            raise ValueError(f"{path}: a result file without '{missing[0]}'; run its suite again")
        return content


def result_files(metric: dict) -> list[str]:
    """The result files of a leaderboard's number: one, or one for each seed."""
    return metric.get("result_files") or [metric["result_file"]]


def saved_suites(results: Path) -> list[SavedSuite]:
    """The suites in a results folder: of one suite, of a preset, or of all presets; in order of their paths.

    Raises:
        FileNotFoundError: no leaderboard there.
        ValueError: a leaderboard that cannot be read.
    """
    files = sorted(results.rglob(LEADERBOARD)) if results.is_dir() else []
    if not files:
        raise FileNotFoundError(f"no {LEADERBOARD} under {results}; name a folder such as results/demo")
    return [_read_suite(path) for path in files]


def _read_suite(path: Path) -> SavedSuite:
    board = _read_json(path)
    if missing := [field for field in ("suite", "preset", "commit", "date", "rows") if field not in board]:
        raise ValueError(f"{path}: not a leaderboard: no '{missing[0]}'")
    for i, row in enumerate(board["rows"] if isinstance(board["rows"], list) else [board["rows"]]):
        if not isinstance(row, dict) or not row.keys() >= _ROW_FIELDS:
            raise ValueError(f"{path}: row {i} is none of a leaderboard; run its suite again")
    known = suites()
    if board["suite"] not in known:
        raise ValueError(f"{path}: unknown suite '{board['suite']}'{nearest(board['suite'], known)}")
    return SavedSuite(folder=path.parent, board=board, config=load(SuiteConfig, known[board["suite"]]))


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: not there") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping, got {type(content).__name__}")
    return content
