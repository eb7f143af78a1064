"""A suite's tables as HTML, each number a button that opens what it came from."""

import re
from collections.abc import Iterator, Mapping

from harness.report.markup import Markup, element, join
from harness.report.origin import identity_of, popover
from harness.tables.grids import NOT_RUN, Grid, comparison_words, grids
from harness.tables.results_folder import SavedSuite

_ARROWS = {"↑": "higher is better", "↓": "lower is better"}
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5}(?:v\d+)?)")
_MARKS = {
    "blind": ("no pictures", "a control: what words alone give"),
    "floor": ("floor", "a control: real pictures, the best to be hoped for"),
    "probe": ("probe", "what can be read from the same tokens without a language model"),
    "ceiling": ("ceiling", "what a perfect generator of the same tokens would get"),
}


def suite_tables(suite: SavedSuite) -> Markup:
    """All measured tables of a suite with the origin of each number.

    A pure function of the leaderboard, its result files and the suite's config: `run.py verify` makes it
    again.
    """
    own = [grid for grid in _grids(suite) if not grid.is_published]
    has_lead = own and own[0].title == suite.config.title  # its heading is the section's
    shown = [
        join([None if has_lead and grid is own[0] else element("h3", grid.title), _table(grid, suite)])
        for grid in own
        if not grid.is_appendix
    ]
    folded = [join([element("h4", grid.title), _table(grid, suite)]) for grid in own if grid.is_appendix]
    words = f"*: {comparison_words(suite.board)}." if suite.board.get("comparisons") else None
    popovers = {name: popover(suite, name, row["metrics"][key]) for row, key, name in suite.numbers()}
    return join(
        [
            *shown,
            element("p", words, class_="note") if words else None,
            _folded("More tables", folded),
            _folded("Not run, and why", _reasons(suite)),
            *popovers.values(),
        ]
    )


def published_tables(suite: SavedSuite) -> Markup | None:
    """What papers print, apart from what was measured; None where nothing is published for the suite."""
    tables = [
        element("figure", element("figcaption", cite(grid.title)), _table(grid, suite))
        for grid in _grids(suite)
        if grid.is_published
    ]
    if not tables:
        return None
    return element(
        "section",
        element("h3", "Published"),
        element("p", "Printed in papers, not measured here: other data, other sizes.", class_="note"),
        *tables,
        class_="published",
    )


def cite(text: str) -> Markup:
    """Text whose arXiv numbers are links."""
    parts, end = [], 0
    for match in _ARXIV.finditer(text):
        link = element("a", match[0], href=f"https://arxiv.org/abs/{match[1]}", rel="noreferrer")
        parts += [text[end : match.start()], link]
        end = match.end()
    return join([*parts, text[end:]])


def heading(text: str) -> Markup:
    """A key whose arrow is also said in words."""
    for arrow, words in _ARROWS.items():
        if text.endswith(f" {arrow}"):
            sign = element("span", arrow, class_="arrow", role="img", aria_label=words, title=words)
            return join([text[: -len(arrow)], sign])
    return join([text])


def _grids(suite: SavedSuite) -> list[Grid]:
    return list(grids(suite.board, suite.config, with_appendix=True))


def _folded(title: str, children: list[Markup]) -> Markup | None:
    return element("details", element("summary", title), *children) if children else None


def _table(grid: Grid, suite: SavedSuite) -> Markup:
    head = [_heading_cell(grid, j) for j in range(len(grid.header))]
    body = [element("tr", *_cells(grid, i, suite)) for i in range(len(grid.lines))]
    table = element(
        "table",
        element("caption", grid.title, class_="unseen"),
        element("thead", element("tr", *head)),
        element("tbody", *body),
        class_="sortable",
    )
    return element("div", table, class_="scroll", role="region", tabindex="0", aria_label=grid.title)


def _heading_cell(grid: Grid, j: int) -> Markup:
    """A column's heading; its first sort puts the best on top."""
    text = grid.header[j] or "measure"
    first = "ascending" if text.endswith("↓") or j == 0 else "descending"
    button = element("button", heading(text), type="button", data_first=first)
    is_encoder = j > 0 and not grid.header[0]  # a table turned round
    mark = _mark(grid.shown[0][j][0]["kind"]) if is_encoder and grid.shown else None
    return element("th", button, mark, scope="col", aria_sort="none", class_=None if j else "name")


def _cells(grid: Grid, i: int, suite: SavedSuite) -> Iterator[Markup]:
    line, shown = grid.lines[i], grid.shown[i]
    mark = _mark(shown[1][0]["kind"]) if grid.header[0] and len(shown) > 1 else None
    yield element("th", heading(line[0]), mark, scope="row", class_="name")
    j = 1
    while j < len(line):
        if shown[j] is None:  # words, such as where a number is printed
            yield element("td", cite(line[j]), class_="words")
            j += 1
            continue
        row, key = shown[j]
        reason = row["not_run"].get(key)
        if line[j] == NOT_RUN and reason is not None:
            width = 1  # a reason is said once for neighbours of one row
            while (
                j + width < len(line)
                and shown[j + width] is not None
                and shown[j + width][0] is row
                and row["not_run"].get(shown[j + width][1]) == reason
            ):
                width += 1
            words = element("span", f"{NOT_RUN}: {reason}", title=reason)
            yield element("td", words, colspan=width if width > 1 else None, class_="missing")
            j += width
            continue
        yield _number(line[j], row["metrics"].get(key), (i, j) in grid.best, suite)
        j += 1


def _number(text: str, metric: Mapping | None, is_best: bool, suite: SavedSuite) -> Markup:
    if metric is None:
        return element("td", element("span", "no such number", class_="unseen"))
    value, plus_minus, stderr = text.partition(" ± ")
    words = join([element("b", value, title="best measured") if is_best else value])
    if plus_minus:
        words = join([words, element("span", f" ± {stderr}", class_="stderr")])
    if metric["result_file"] is not None:
        words = element(
            "button", words, type="button", popovertarget=identity_of(suite, metric["result_file"])
        )
    return element("td", words, data_value=metric["value"])


def _mark(kind: str) -> Markup | None:
    if kind not in _MARKS:
        return None
    words, title = _MARKS[kind]
    return join([" ", element("span", words, class_=f"mark {kind}", title=title)])


def _reasons(suite: SavedSuite) -> list[Markup]:
    """A list: one line per encoder and reason, with the keys that it took."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in suite.board["rows"]:
        for key, reason in {**row["not_run"], **row.get("incomplete", {})}.items():
            groups.setdefault((row["encoder"], reason), []).append(key)
    lines = [
        element("li", element("b", encoder), f": {', '.join(keys)}: {reason}")
        for (encoder, reason), keys in groups.items()
    ]
    return [element("ul", *lines)] if lines else []
