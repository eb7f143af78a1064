"""The report: one HTML file per preset, self-contained, rendered from result files and leaderboards.
Imports `encoder` and `harness.tables`.
"""

from pathlib import Path

from harness.report.board import published_tables, suite_tables
from harness.report.page import page
from harness.tables.results_folder import saved_suites

__all__ = ["REPORT", "page", "published_tables", "suite_tables", "write"]

REPORT = "report.html"


def write(results: Path) -> Path:
    """Render `results/<preset>/report.html` from all suites of the folder; returns the file.

    Raises:
        FileNotFoundError: no leaderboard there.
        ValueError: a leaderboard or result file that cannot be read.
    """
    path = results / REPORT
    path.write_text(page(saved_suites(results)), encoding="utf-8")
    return path
