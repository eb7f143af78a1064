"""Leaderboards: read from result files (and `published.yaml`), written as JSON, Markdown, CSV and
LaTeX.

The JSON's shape is a contract: rows of {encoder, kind, source, metrics: {key: {value, stderr, std, num_seeds,
num_samples, unit, higher_is_better, result_file}}, not_run: {key: reason}}; `result_file` is relative to the
JSON's own folder. Percentages run from 0 to 100; what is not defined is null. A number of several seeds is
their mean, `std` their standard deviation (n - 1), `result_files` names all of them, and `stderr` is the root
mean square of their own standard errors: averaging over seeds does not make the questions more.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from encoder.runtime.config import ROOT, choose, read_yaml
from encoder.runtime.stage import write_json
from harness.config import SuiteConfig
from harness.running import provenance
from harness.tables import grids, latex

COMPARISONS = "comparisons.json"  # of `against_baseline`, beside the leaderboard
PUBLISHED = ROOT / "harness" / "published.yaml"
# Unit and direction of the numbers that papers print; a measured number brings its own.
PUBLISHED_KEYS = {
    **dict.fromkeys(("SEED-Bench", "POPE/f1/official", "GQA", "ScienceQA"), ("%", True)),
    **dict.fromkeys(("MME-P", "MME-C"), ("points", True)),
    **dict.fromkeys(("rFID", "gFID", "LPIPS"), ("", False)),
    **dict.fromkeys(("SSIM", "IS", "precision", "recall"), ("", True)),
    "PSNR": ("dB", True),
}
_FROM_FILE = ("value", "stderr", "unit", "higher_is_better", "num_samples")


def build(suite: SuiteConfig, preset: str, rows: Iterable[Mapping], folder: Path) -> dict:
    """The leaderboard of rows that name their result files (`result_files.collect`), published rows last."""
    built, dates, commits = [], [], set()
    for row in rows:
        metrics, is_rehearsal = {}, False
        for key, names in row["files"].items():
            contents = [json.loads((folder / name).read_text()) for name in names]
            dates += [content["date"] for content in contents]
            commits |= {content["commit"] or "unknown" for content in contents}
            metrics[key] = aggregate(contents, names)
            is_rehearsal |= any(content.get("rehearsal") for content in contents)
        built.append({name: row[name] for name in ("encoder", "kind", "source")})
        built[-1] |= {"metrics": metrics, "not_run": row["not_run"]}
        built[-1] |= {name: row[name] for name in ("groups", "incomplete") if row.get(name)}
        if is_rehearsal:
            built[-1]["rehearsal"] = True
    board = {
        "suite": suite.name,
        "preset": preset,
        "commit": provenance.git_commit(),  # that rendered this
        "measured_commits": sorted(commits),
        "date": max(dates, default=None),
        "rows": built + published_rows(suite.name),
    }
    comparisons = folder / COMPARISONS
    return board | ({"comparisons": json.loads(comparisons.read_text())} if comparisons.is_file() else {})


def aggregate(contents: Sequence[Mapping], names: Sequence[str]) -> dict:
    """One key of a row from its result files, one for each seed; the files of one and the same stage, which
    the seed does not reach, count once.
    """
    kept = list(
        {
            content["fingerprint"]: (content, name) for content, name in zip(contents, names, strict=True)
        }.values()
    )
    metric = {field: kept[0][0][field] for field in _FROM_FILE}
    metric |= {"std": None, "num_seeds": len(kept), "result_file": kept[0][1]}
    if len(kept) == 1:
        return metric
    values, errors = ([content[field] for content, _ in kept] for field in ("value", "stderr"))
    if None in values:
        values = []
    metric["value"] = statistics.fmean(values) if values else None
    metric["std"] = statistics.stdev(values) if values else None
    metric["stderr"] = None if None in errors else math.sqrt(statistics.fmean(e**2 for e in errors))
    return metric | {"result_files": [name for _, name in kept]}


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
    files[1].write_text(grids.markdown(board, suite))
    files[2].write_text(comma_separated(board))
    files[3].write_text(latex.latex(board, suite))
    return files


def comma_separated(board: Mapping) -> str:
    """A line per row; a value, a standard error, a deviation over seeds and their number per key; `not run`
    where it was not.
    """
    keys = grids.keys_of(board["rows"])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [f"{key}{what}" for key in keys for what in ("", " stderr", " std", " seeds")]
    writer.writerow(["encoder", "kind", "source", *columns])
    for row in board["rows"]:
        cells = []
        for key in keys:
            metric = row["metrics"].get(key, {})
            value = "not run" if key in row["not_run"] else metric.get("value")
            numbers = (value, *(metric.get(field) for field in ("stderr", "std", "num_seeds")))
            cells += ["" if cell is None else cell for cell in numbers]
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
