"""The page: head, contents, one section per suite; nothing in it comes from elsewhere.

A strict content policy names the one style sheet and the one script by their hashes, so nothing that a result
file holds could run even if it were not escaped.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from harness.report.answers import answers
from harness.report.board import published_tables, suite_tables
from harness.report.inline_pictures import figures
from harness.report.markup import Markup, element, join
from harness.report.origin import hardware
from harness.report.scatter import LEGEND as SCATTER_LEGEND
from harness.report.scatter import Line, Point, scatter
from harness.tables.grids import LEGEND
from harness.tables.results_folder import SavedSuite

_HERE = Path(__file__).parent
# Which number stands for a suite in the scatter: the first that its leaderboard has.
_UNDERSTANDING = ("SEED-Bench", "Scenes-SEED", "Own-Captions")
_GENERATION = ("gFID", "gFD-lite0")
_ORDER = ("understanding", "generation")  # other suites follow


def page(suites: Sequence[SavedSuite]) -> str:
    """The whole HTML file of one preset's suites."""
    suites = sorted(suites, key=lambda suite: [*_ORDER, suite.board["suite"]].index(suite.board["suite"]))
    preset = suites[0].board["preset"]
    title = f"Frozen image encoders, preset {preset}"
    style, script = (Markup((_HERE / name).read_text()) for name in ("report.css", "report.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", style),
    )
    sections = [join([_pareto(suites)]), *map(_section, suites)]
    body = element(
        "body",
        element("a", "Skip to the tables", href=f"#{suites[0].board['suite']}", class_="skip"),
        _header(suites, preset),
        element("main", *sections),
        _footer(suites),
        Markup(
            '<dialog id="viewer" aria-label="enlarged picture"><header>'
            '<button type="button" data-scale="0.5" aria-label="smaller">−</button>'
            '<button type="button" data-scale="2" aria-label="larger">+</button>'
            '<button type="button" data-close autofocus>Close</button></header>'
            '<div class="canvas" tabindex="0"><img alt=""></div></dialog>'
        ),
        element("p", id="said", class_="unseen", aria_live="polite"),
        element("script", script),
    )
    return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


def _header(suites: Sequence[SavedSuite], preset: str) -> Markup:
    links = [
        element("li", element("a", suite.config.title, href=f"#{suite.board['suite']}")) for suite in suites
    ]
    measured = dict.fromkeys(
        row["encoder"]
        for suite in suites
        for row in suite.own_rows
        if row["kind"] == "measured" and not suite.config.studies
    )
    return element(
        "header",
        element("p", "OpenVision 3 harness", class_="kicker"),
        element("h1", "How well does a frozen image encoder understand, and how well does it generate?"),
        element(
            "p", "Preset ", element("b", preset), f": {', '.join(measured) or 'nothing measured'}. ",
            "Every number is a button: it opens what the number came from. Headings sort.", class_="lead",
        ),
        element("nav", element("ul", *links), aria_label="suites"),
    )  # fmt: skip


def _section(suite: SavedSuite) -> Markup:
    return element(
        "section",
        element("h2", suite.config.title),
        element("p", suite.config.description, class_="lead"),
        suite_tables(suite),
        *figures(suite.folder),
        answers(suite),
        published_tables(suite),
        id=suite.board["suite"],
    )


def _pareto(suites: Sequence[SavedSuite]) -> Markup | None:
    """The scatter of encoders that have both numbers; None where no encoder does."""
    rows = [row for suite in suites if not suite.config.studies for row in suite.own_rows]
    x_key = _first_key(rows, _UNDERSTANDING)
    y_key = _first_key(rows, _GENERATION)
    if x_key is None or y_key is None:
        return None
    found = {key: _rows_with(rows, key) for key in (x_key, y_key)}
    names = [row["encoder"] for row in found[x_key].values() if row["kind"] == "measured"]
    points = [
        Point(name=name, x=found[x_key][name]["metrics"][x_key], y=found[y_key][name]["metrics"][y_key])
        for name in names
        if name in found[y_key]
    ]
    if not points:
        return None
    x_lines, y_lines = (
        [
            Line(name=row["encoder"], metric=row["metrics"][key])
            for row in found[key].values()
            if row["kind"] in ("blind", "floor")
        ]
        for key in (x_key, y_key)
    )
    picture = scatter(points, x_key, y_key, x_lines=x_lines, y_lines=y_lines)
    return element(
        "section",
        element("h2", "Understanding against generation"),
        element("figure", picture, element("figcaption", SCATTER_LEGEND), class_="plot"),
    )


def _first_key(rows: Sequence[dict], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if _rows_with(rows, key)), None)


def _rows_with(rows: Sequence[dict], key: str) -> dict[str, dict]:
    """encoder -> its row, of those that have a number under this key."""
    return {
        row["encoder"]: row
        for row in rows
        if key in row["metrics"] and row["metrics"][key]["value"] is not None
    }


def _footer(suites: Sequence[SavedSuite]) -> Markup:
    lines = []
    for suite in suites:
        name = next((name for _, _, name in suite.numbers()), None)
        where = f", {hardware(suite.result(name)['hardware'])}" if name else ""
        board = suite.board
        commits = join(
            [element("code", _short(each)) for each in board.get("measured_commits") or ["unknown"]]
        )
        rendered = element("code", _short(board["commit"] or "unknown"))
        when = f", {board['date'] or 'no date'}{where}; tables rendered at "
        lines.append(element("li", f"{suite.config.title}: measured at commit ", commits, when, rendered))
    return element(
        "footer",
        element(
            "p",
            f"{LEGEND} Rendered from the result files alone; ",
            element("code", f"python harness/run.py verify results/{suites[0].board['preset']}"),
            " renders them again and names any difference.",
        ),
        element("ul", *lines),
    )


def _short(commit: str) -> str:
    """The first letters of a commit; one of a changed tree still says so."""
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
