"""What a run shows: which stages run, how far, how long. Bars on a terminal, plain lines elsewhere."""

import json
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from encoder.runtime.stage import PROGRESS
from harness.running.stages import Graph, Stage

_PLAIN_SECONDS = 30.0  # between two lines about the same stage where there is no terminal
_MARKS = {"reused": "[dim]=[/]", "done": "[green]✓[/]", "failed": "[red]✗[/]", "not run": "[yellow]-[/]"}


class Display:
    """Lines for what ended, and (on a terminal) one bar per running stage plus one for the whole."""

    def __init__(self, graph: Graph, jobs: int, console: Console) -> None:
        self.graph, self.jobs, self.console = graph, jobs, console
        self.left = {stage.folder: stage.seconds for stage in graph}
        self.bars: dict[str, TaskID] = {}
        self.last_line: dict[str, float] = {}
        self.began = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}", markup=True),
            BarColumn(24),
            TextColumn("{task.fields[words]}"),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self.whole = self.progress.add_task("[bold]all stages[/]", total=max(1, len(graph)), words="")

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def reused(self, stages: Sequence[Stage]) -> None:
        """These stages were complete before the run."""
        for stage in stages:
            self.left.pop(stage.folder)
        if stages:
            self._line(
                f"{_MARKS['reused']} {len(stages)}/{len(self.graph)}  stages were complete before, reused"
            )

    def started(self, stage: Stage) -> None:
        """A stage's process was started."""
        self.last_line[stage.label] = time.monotonic()
        if self.console.is_terminal:
            self.bars[stage.label] = self.progress.add_task(stage.label, total=None, words="starting")
        else:
            about = f", about {clock(stage.seconds)}" if stage.seconds else ""
            self._line(f"  {stage.label}: started{about}")

    def ended(self, stage: Stage, state: str, reason: str, seconds: float) -> None:
        """A stage is complete, failed, or will not run."""
        self.left.pop(stage.folder, None)
        if stage.label in self.bars:
            self.progress.remove_task(self.bars.pop(stage.label))
        number = f"{len(self.graph) - len(self.left)}/{len(self.graph)}"
        after = f" in {clock(seconds)}" if seconds else ""
        why = f": {_escape(reason)}" if reason else ""
        self._line(f"{_MARKS[state]} {number:>7}  {stage.label}: {state}{after}{why}")

    def tick(self, running: Sequence[tuple[Stage, float]]) -> None:
        """Show how far the running stages are; `running` holds each with its seconds so far."""
        for stage, seconds in running:
            self.left[stage.folder] = max(0.0, stage.seconds - seconds)
            done, total, unit = how_far(stage)
            words = f"{f'{done}/{total} {unit}' if total else 'starting'}  {clock(seconds)}"
            if stage.seconds > seconds:
                words += f" of about {clock(stage.seconds)}"
            if stage.label in self.bars:
                self.progress.update(self.bars[stage.label], completed=done, total=total or None, words=words)
            elif time.monotonic() - self.last_line[stage.label] > _PLAIN_SECONDS:
                self.last_line[stage.label] = time.monotonic()
                self._line(f"  {stage.label}: {words}")
        ended = len(self.graph) - len(self.left)
        words = f"{ended}/{len(self.graph)} stages  {clock(time.monotonic() - self.began)}"
        self.progress.update(
            self.whole, completed=ended, words=f"{words}, about {clock(self._seconds_left())} left"
        )
        self.progress.refresh()

    def _seconds_left(self) -> float:
        chains = self.graph.seconds_to_end(self.left)
        return max([sum(self.left.values()) / self.jobs, *chains.values()])

    def _line(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, soft_wrap=True)


def how_far(stage: Stage) -> tuple[int, int, str]:
    """Done, total and unit from the stage's `progress.json`; zeros before its first report."""
    try:
        report = json.loads((stage.folder / PROGRESS).read_text())
        return int(report["done"]), int(report["total"]), str(report["unit"])
    except (OSError, ValueError, KeyError):
        return 0, 0, "steps"


def clock(seconds: float) -> str:
    """Seconds as people say them: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
