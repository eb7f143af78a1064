"""What a suite is asked for, and what it answers: stages in the graph, rows for the leaderboard, figures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.config import Preset, SuiteConfig
from harness.encoders import Encoder
from harness.running.stages import Graph
from harness.suites.foundation import Foundation
from harness.tables.result_files import Row


@dataclass(frozen=True, kw_only=True)
class Request:
    """Plan this suite into `graph`."""

    graph: Graph
    preset: Preset
    written: Preset  # the preset without the command line's words
    suite: SuiteConfig
    encoders: list[Encoder]
    seed: int
    device: str
    foundation: Foundation | None = None  # what the preset trains itself
    places: Mapping[str, Path] | None = None  # of the real sources by their names: `harness.paper.sources`
    tasks: list[str] | None = None  # benchmarks, over the preset's

    def seconds(self, stage: str) -> float:
        """The preset's estimate for a stage; 0 where it gives none."""
        return self.preset.seconds.get(stage, 0.0)

    def estimates(self, stage: str, name: str, *, of_language_model: bool = False) -> dict[str, float]:
        """`seconds` and `disk_mb` of a stage, by their names in the preset, which means its own pictures and
        (of_language_model) language model: 0 with others, unless the command line gives another number."""
        is_other = self.preset.own_data != self.written.own_data
        if of_language_model:
            is_other |= self.preset.llava.language_model != self.written.llava.language_model
        found = {}
        for kind, key in (("seconds", stage), ("disk_mb", name)):
            given, usual = (getattr(each, kind).get(key, 0.0) for each in (self.preset, self.written))
            found[kind] = 0.0 if is_other and given == usual else given
        return found


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """A suite planned: rows whose stages are in the graph, and what to draw once they have run."""

    suite: SuiteConfig
    rows: list[Row]
    seed: int = 0
    draw: Callable[[Path, Mapping], list[Path]]  # results folder, leaderboard -> files written
    check: Callable[[], None] = lambda: None  # before it runs: raises ConfigError for what cannot fit
