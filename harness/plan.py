"""What `--list` and `--plan` print."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from encoder.config import ROOT, read_yaml
from harness.config import CONFIGS, presets, suites
from harness.display import clock
from harness.stages import Graph


def print_choices(console: Console) -> None:
    """Suites, presets, encoders and lmms-eval tasks, each with what its file says about it."""
    encoders = {path.stem: path for path in sorted(CONFIGS.glob("encoders/*.yaml"))}
    tasks = {path.stem: path for path in sorted((ROOT / "harness" / "tasks").glob("*.yaml"))}
    for title, files in (
        ("suites", suites()),
        ("presets", presets()),
        ("encoders", encoders),
        ("tasks", tasks),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name, path in files.items():
            table.add_row(name, escape(_about(path)), style="")
        console.print(table)


def print_plan(graph: Graph, jobs: int, console: Console) -> None:
    """The stages in order: whether each is there, begun or new, and its estimated time."""
    table = Table(
        title=f"{len(graph)} stages, {jobs} at a time", title_justify="left", box=None, padding=(0, 2)
    )
    for heading in ("stage", "state", "about", "folder"):
        table.add_column(heading, justify="right" if heading == "about" else "left")
    left = {}
    for stage in graph:
        state = "cached" if stage.done() is not None else "begun" if stage.folder.is_dir() else "to run"
        if state != "cached":
            left[stage.folder] = stage.seconds
        shown = f"{graph.runs_dir.name}/{stage.name}/{stage.fingerprint}"
        table.add_row(escape(stage.label), state, clock(stage.seconds), escape(shown))
    console.print(table)
    seconds = max([sum(left.values()) / jobs, *graph.seconds_to_end(left).values()])
    console.print(f"{len(left)} to run, about {clock(seconds)}", highlight=False)


def _about(path: Path) -> str:
    """The description in a YAML file, else the words of the comment that it opens with."""
    lines = path.read_text().splitlines()
    if lines and lines[0].startswith("#"):
        return lines[0].lstrip("# ")
    return str(read_yaml(path).get("description", ""))
