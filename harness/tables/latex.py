"""Leaderboards as LaTeX: one `table` with booktabs rules for each table, every text escaped. The document
needs `\\usepackage{booktabs}`.
"""

from collections.abc import Iterator, Mapping

from harness.config import SuiteConfig
from harness.tables.grids import Grid, grids, measured_at

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
    }
)


def latex(board: Mapping, suite: SuiteConfig) -> str:
    """The whole leaderboard, measured tables first."""
    about = f"{suite.title}: preset {board['preset']}, {measured_at(board)}, {board['date']}"
    lines = [f"% {_one_line(about)}", r"% needs \usepackage{booktabs}"]
    for grid in grids(board, suite, with_appendix=True):
        lines += ["", *_table(grid)]
    return "\n".join([*lines, ""])


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return _one_line(text).translate(_ESCAPES)


def _table(grid: Grid) -> Iterator[str]:
    title = f"Published, not measured here. {grid.title}" if grid.is_published else grid.title
    yield r"\begin{table}"
    yield r"\centering"
    yield rf"\caption{{{escape(title)}}}"
    yield rf"\begin{{tabular}}{{l{'r' * (len(grid.header) - 1)}}}"
    yield r"\toprule"
    yield _line([escape(text) for text in grid.header])
    yield r"\midrule"
    for i, line in enumerate(grid.lines):
        cells = [escape(text) for text in line]
        yield _line([rf"\textbf{{{cell}}}" if (i, j) in grid.best else cell for j, cell in enumerate(cells)])
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield r"\end{table}"


def _line(cells: list[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _one_line(text: str) -> str:
    return " ".join(text.split())
