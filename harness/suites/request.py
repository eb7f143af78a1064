"""What a suite is asked for, and what it answers: stages in the graph, rows for the leaderboard, figures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.config import Preset, SuiteConfig
from harness.encoders import Encoder
from harness.results import Row
from harness.stages import Graph
from harness.suites.foundation import Foundation


@dataclass(frozen=True, kw_only=True)
class Request:
    """Plan this suite into `graph`."""

    graph: Graph
    preset: Preset
    suite: SuiteConfig
    encoders: list[Encoder]
    seed: int
    device: str
    foundation: Foundation | None = None  # what the preset trains itself

    def seconds(self, stage: str) -> float:
        """The preset's estimate for a stage; 0 where it gives none."""
        return self.preset.seconds.get(stage, 0.0)


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """A suite planned: rows whose stages are in the graph, and what to draw once they have run."""

    suite: SuiteConfig
    rows: list[Row]
    seed: int = 0
    draw: Callable[[Path, Mapping], list[Path]]  # results folder, leaderboard -> files written
