"""Tables of a leaderboard, for the terminal and as Markdown: arrows point to better, the best measured value
is bold, what was not run says so, published rows stand apart.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.config import SuiteConfig

NOT_RUN = "not run"
LEGEND = (
    "Best measured value in bold; ± is one standard error over the pictures or questions, or, with (n=...), "
    "the standard deviation over n seeds."
)
OTHER = "By other judges and tasks"  # numbers that the suite's file does not name
_ARROWS = {True: " ↑", False: " ↓", None: ""}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table before it has a look: text cells, what each shows, and the places (line, column) of the best
    ones.
    """

    title: str
    header: list[str]
    lines: list[list[str]]
    shown: list[list[tuple[Mapping, str] | None]]  # per cell: leaderboard row and key; None for a heading
    best: set[tuple[int, int]]
    is_published: bool = False
    is_appendix: bool = False


def grids(board: Mapping, suite: SuiteConfig, *, with_appendix: bool) -> Iterator[Grid]:
    """The suite's tables: the headline has a line per encoder, the longer ones a column."""
    own = [row for row in board["rows"] if row["kind"] != "published"]
    asked = keys_of(own)  # a suite's file names more keys: those of every judge and task
    better = different_from_baseline(board)
    for name, study in suite.studies.items():
        rows = [row | {"encoder": row["groups"][name]} for row in own if name in row.get("groups", {})]
        keys = keys_of(rows)
        if rows:
            yield _by_encoder(study.title, rows, [key for key in suite.headline if key in keys])
    if suite.studies:
        return
    yield _by_encoder(suite.title, own, [key for key in suite.headline if key in asked], better)
    longer = {**suite.details, **(suite.appendix if with_appendix else {})}
    longer[OTHER] = [key for key in asked if key not in suite.keys]
    for title, keys in longer.items():
        if any(key in asked for key in keys):
            folded = title == OTHER or title in suite.appendix
            yield _by_key(title, own, [key for key in keys if key in asked], better, is_appendix=folded)
    settings: dict[str, list[Mapping]] = {}  # a published row's source is "paper, table: setting"
    for row in board["rows"]:
        if row["kind"] == "published":
            settings.setdefault(row["source"].rpartition(": ")[2], []).append(row)
    for setting, rows in settings.items():
        yield _published(setting, rows)


def show(board: Mapping, suite: SuiteConfig, console: Console) -> None:
    """Print the tables, the appendix left to the files."""
    for grid in grids(board, suite, with_appendix=False):
        title = f"published, not measured here: {grid.title}" if grid.is_published else grid.title
        style = "dim" if grid.is_published else ""
        console.print(f"\n[{style or 'bold'}]{escape(title)}[/]", highlight=False, soft_wrap=True)
        table = Table(style=style)
        for i, heading in enumerate(grid.header):
            table.add_column(escape(heading), justify="right" if i else "left")
        for i, line in enumerate(grid.lines):
            cells = [
                f"[bold]{escape(text)}[/]" if (i, j) in grid.best else escape(text)
                for j, text in enumerate(line)
            ]
            table.add_row(*cells, style=style)
        console.print(table)


def markdown(board: Mapping, suite: SuiteConfig) -> str:
    """The whole leaderboard as Markdown."""
    lines = [
        f"# {suite.title}",
        "",
        suite.description,
        "",
        f"Preset `{board['preset']}`, {measured_at(board, '`')}, {board['date']}. {LEGEND}",
        *([f"`*`: {comparison_words(board)}."] if board.get("comparisons") else []),
        "",
    ]
    published_heading = [
        "## Published",
        "",
        "Printed in papers, not measured here: other data, other sizes.",
        "",
    ]
    for grid in grids(board, suite, with_appendix=True):
        if grid.is_published:
            lines += published_heading
            published_heading = []
        lines += [f"{'###' if grid.is_published else '##'} {grid.title}", "", *markdown_lines(grid), ""]
    missing = list(reasons(board))
    return "\n".join([*lines, *(["## Not run", "", *missing, ""] if missing else [])])


def measured_at(board: Mapping, quote: str = "") -> str:
    """Which commits gave the numbers, and which one made the tables of them."""
    commits = board.get("measured_commits") or ["unknown"]
    listed = ", ".join(f"{quote}{commit}{quote}" for commit in commits)
    return f"measured at commit {listed}, rendered at {quote}{board['commit']}{quote}"


def comparison_words(board: Mapping) -> str:
    """What a star says."""
    about = board["comparisons"]
    if "correction" in about:
        share = (100 - about["confidence_percent"]) / 100
        return (
            f"differs from {about['baseline']} on the same questions: p <= {share:g} after "
            f"{about['correction']}'s correction for {about['num_tests']} tests (paired bootstrap, "
            f"{about['num_resamples']} resamples of whole groups of questions; the spread over several seeds "
            "counts too)"
        )
    return (
        f"differs from {about['baseline']} on the same questions: the {about['confidence_percent']} % "
        f"interval of the difference leaves out 0 (paired bootstrap, {about['num_resamples']} resamples of "
        "whole groups of questions)"
    )


def keys_of(rows: Sequence[Mapping]) -> list[str]:
    """All keys of the rows, in the order in which they first appear."""
    return list(dict.fromkeys(key for row in rows for key in (*row["metrics"], *row["not_run"])))


def different_from_baseline(board: Mapping) -> set[tuple[str, str]]:
    """(encoder, key) of the numbers that differ from the baseline's, better or worse; of a comparison before
    the correction for many tests, those whose interval of the difference leaves out 0."""
    return {
        (each["encoder"], each["key"])
        for each in board.get("comparisons", {}).get("pairs", [])
        if each.get("is_different", each["low"] > 0 or each["high"] < 0)
    }


def _by_encoder(
    title: str, rows: Sequence[Mapping], keys: Sequence[str], starred: Set[tuple[str, str]] = frozenset()
) -> Grid:
    columns = [_Column(rows, key, starred) for key in keys]
    lines = [[row["encoder"], *(column.cell(row) for column in columns)] for row in rows]
    best = {(i, j + 1) for j, column in enumerate(columns) for i in column.best()}
    shown = [[None, *((row, key) for key in keys)] for row in rows]
    header = ["encoder", *(column.heading for column in columns)]
    return Grid(title=title, header=header, lines=lines, shown=shown, best=best)


def _published(setting: str, rows: Sequence[Mapping]) -> Grid:
    """What papers print for one setting; the last column says where."""
    grid = _by_encoder(setting, rows, keys_of(rows))
    places = [row["source"].rpartition(": ")[0] for row in rows]
    lines = [[*line, place] for line, place in zip(grid.lines, places, strict=True)]
    shown = [[*cells, None] for cells in grid.shown]
    header = [*grid.header, "printed in"]
    return Grid(title=setting, header=header, lines=lines, shown=shown, best=set(), is_published=True)


def _by_key(
    title: str,
    rows: Sequence[Mapping],
    keys: Sequence[str],
    starred: Set[tuple[str, str]],
    *,
    is_appendix: bool,
) -> Grid:
    columns = [_Column(rows, key, starred) for key in keys]
    lines = [[column.heading, *(column.cell(row) for row in rows)] for column in columns]
    best = {(j, i + 1) for j, column in enumerate(columns) for i in column.best()}
    shown = [[None, *((row, key) for row in rows)] for key in keys]
    header = ["", *(row["encoder"] for row in rows)]
    return Grid(title=title, header=header, lines=lines, shown=shown, best=best, is_appendix=is_appendix)


class _Column:
    """One key over all rows: its heading, its digits, its winner."""

    def __init__(self, rows: Sequence[Mapping], key: str, starred: Set[tuple[str, str]]) -> None:
        self.rows, self.key, self.starred = rows, key, starred
        self.metrics = [row["metrics"].get(key) for row in rows]
        self.known = [metric for metric in self.metrics if metric and metric["value"] is not None]

    @property
    def heading(self) -> str:
        """The key with its unit and an arrow that points to better."""
        metric = next(filter(None, self.metrics), {"unit": "", "higher_is_better": None})
        return " ".join(filter(None, [self.key, metric["unit"]])) + _ARROWS[metric["higher_is_better"]]

    def cell(self, row: Mapping) -> str:
        """Value, `*` where it differs from the baseline's, then ± standard error; of several seeds ± their
        standard deviation and their number. Or why there is none.
        """
        if self.key in row["not_run"]:
            return NOT_RUN
        metric = row["metrics"].get(self.key)
        if metric is None or metric["value"] is None:
            return "undefined" if metric else ""
        digits = self._digits()
        star = "*" if (row["encoder"], self.key) in self.starred else ""
        spread = metric["stderr"] if metric["std"] is None else metric["std"]
        plus_minus = "" if spread is None else f" ± {spread:.{digits}f}"
        seeds = f" (n={metric['num_seeds']})" if (metric["num_seeds"] or 1) > 1 else ""
        return f"{metric['value']:.{digits}f}{star}{plus_minus}{seeds}"

    def best(self) -> list[int]:
        """The lines of the best measured value; none where all are equal or nothing is better."""
        values = [
            (metric["value"] if metric["higher_is_better"] else -metric["value"], i)
            for i, metric in enumerate(self.metrics)
            if self.rows[i]["kind"] == "measured"
            and metric in self.known
            and metric["higher_is_better"] is not None
        ]
        different = {value for value, _ in values}
        return [i for value, i in values if value == max(different)] if len(different) > 1 else []

    def _digits(self) -> int:
        """As printed for published numbers; else one decimal for percentages, two for dB and large numbers,
        four for shares and small ones.
        """
        if all(metric["result_file"] is None for metric in self.known):
            return max((len(f"{metric['value']:g}".partition(".")[2]) for metric in self.known), default=0)
        if self.known[0]["unit"] == "%":
            return 1
        return 2 if any(metric["unit"] or abs(metric["value"]) >= 10 for metric in self.known) else 4


def markdown_lines(grid: Grid) -> Iterator[str]:
    """A table's lines as Markdown."""
    yield f"| {' | '.join(grid.header)} |"
    yield f"|---|{'---:|' * (len(grid.header) - 1)}"
    for i, line in enumerate(grid.lines):
        cells = [
            f"**{marked(text)}**" if (i, j) in grid.best else marked(text) for j, text in enumerate(line)
        ]
        yield f"| {' | '.join(cells)} |"


def marked(text: str) -> str:
    """Text as a cell of Markdown shows it."""
    return text.replace("|", r"\|").replace("*", r"\*")


def reasons(board: Mapping) -> Iterator[str]:
    """One line per encoder and reason, with the keys that it took."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in board["rows"]:
        for key, reason in {**row["not_run"], **row.get("incomplete", {})}.items():
            groups.setdefault((row["encoder"], reason), []).append(key)
    for (encoder, reason), keys in groups.items():
        yield f"- {encoder}: {', '.join(keys)}: {reason}"
