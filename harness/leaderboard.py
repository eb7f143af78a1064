"""Leaderboards: read from result files (and `published.yaml`), written as JSON, Markdown, CSV and
LaTeX.

The JSON's shape is a contract: rows of {encoder, kind, source, metrics: {key: {value, stderr, std, num_seeds,
num_samples, unit, higher_is_better, result_file}}, not_run: {key: reason}}; `result_file` is relative to the
JSON's own folder. Percentages run from 0 to 100; what is not defined is null.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from encoder.config import ROOT, choose, read_yaml
from encoder.stage import write_json
from harness import latex, provenance, tables
from harness.config import SuiteConfig

PUBLISHED = ROOT / "harness" / "published.yaml"
# Unit and direction of the numbers that papers print; a measured number brings its own.
PUBLISHED_KEYS = {
    **dict.fromkeys(("SEED-Bench", "POPE", "GQA", "ScienceQA"), ("%", True)),
    **dict.fromkeys(("MME-P", "MME-C"), ("points", True)),
    **dict.fromkeys(("rFID", "gFID", "LPIPS"), ("", False)),
    **dict.fromkeys(("SSIM", "IS", "precision", "recall"), ("", True)),
    "PSNR": ("dB", True),
}
_FROM_FILE = ("value", "stderr", "unit", "higher_is_better", "num_samples")


def build(suite: SuiteConfig, preset: str, rows: Iterable[Mapping], folder: Path) -> dict:
    """The leaderboard of rows given by their result files (see `results.collect`), published rows last."""
    built, dates = [], []
    for row in rows:
        metrics = {}
        for key, name in row["files"].items():
            content = json.loads((folder / name).read_text())
            dates.append(content["date"])
            metrics[key] = {field: content[field] for field in _FROM_FILE}
            metrics[key] |= {"std": None, "num_seeds": 1, "result_file": name}
        built.append({name: row[name] for name in ("encoder", "kind", "source")})
        built[-1] |= {"metrics": metrics, "not_run": row["not_run"]}
    rows = built + published_rows(suite.name)
    date = max(dates, default=None)
    return {
        "suite": suite.name,
        "preset": preset,
        "commit": provenance.git_commit(),
        "date": date,
        "rows": rows,
    }


def published_rows(suite: str) -> list[dict]:
    """What papers print for this suite's benchmarks, each row with paper, version, table and setting."""
    rows = []
    for block in read_yaml(PUBLISHED)["tables"]:
        if block["suite"] != suite:
            continue
        source = f"{block['paper']}, {block['table']}: {block['setting']}"
        for encoder, numbers in block["rows"].items():
            metrics = {key: _published(key, value) for key, value in numbers.items()}
            rows.append(
                {"encoder": encoder, "kind": "published", "source": source, "metrics": metrics, "not_run": {}}
            )
    return rows


def write(board: Mapping, suite: SuiteConfig, folder: Path) -> list[Path]:
    """Write leaderboard.json, .md, .csv and .tex into the suite's results folder; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"leaderboard.{ending}" for ending in ("json", "md", "csv", "tex")]
    write_json(files[0], board)
    files[1].write_text(tables.markdown(board, suite))
    files[2].write_text(comma_separated(board))
    files[3].write_text(latex.latex(board, suite))
    return files


def comma_separated(board: Mapping) -> str:
    """A line per row, a value and a standard error column per key; `not run` where it was not."""
    keys = tables.keys_of(board["rows"])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["encoder", "kind", "source", *(name for key in keys for name in (key, f"{key} stderr"))])
    for row in board["rows"]:
        cells = []
        for key in keys:
            metric = row["metrics"].get(key, {"value": None, "stderr": None})
            value = "not run" if key in row["not_run"] else metric["value"]
            cells += ["" if cell is None else cell for cell in (value, metric["stderr"])]
        writer.writerow([row["encoder"], row["kind"], row["source"], *cells])
    return out.getvalue()


def _published(key: str, value: float) -> dict:
    unit, higher_is_better = choose(PUBLISHED_KEYS, key, "published key")
    return {
        "value": float(value),
        "stderr": None,
        "std": None,
        "num_seeds": None,
        "num_samples": None,
        "unit": unit,
        "higher_is_better": higher_is_better,
        "result_file": None,
    }
