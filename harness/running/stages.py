"""The graph of stages: what depends on what, where each one's output lies, and when it may be reused.

A stage is `python -m <module> <config.yaml> <folder>`. Its folder is `runs/<name>/<fingerprint>`; the
fingerprint hashes the config, the fingerprints of its inputs, the content of the files outside the runs
folder that it reads, the listing of the folders of pictures, the version of its code, and the versions of the
packages that this code imports.
`DONE.json` in the folder: complete, reuse. A folder without it: half-finished, run the same command again in
the same folder. Data sets that a stage reads one by one, and can do without, are no part of its fingerprint:
one that is new or another is read in the same folder, those that were read before are not read again.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encoder.runtime.config import ConfigError, resolve
from encoder.runtime.stage import DONE, read_data_sets, sha256_json
from harness.running.hashes import hash_files, remembered, short
from harness.running.listings import Listings
from harness.running.provenance import versions_of
from harness.running.sources import imported_packages, source_version

FINGERPRINT_LETTERS = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """One stage of a graph; `label` is for people, `name` is the folder under `runs/`."""

    name: str
    label: str
    module: str
    config: Any  # the stage's own config dataclass
    inputs: tuple["Stage", ...] = ()
    files: tuple[Path, ...] = ()  # read by the stage, written by no other: their content is fingerprinted
    pictures: Mapping[str, str] = field(
        default_factory=dict
    )  # folders that it reads -> hash of their listing
    data_sets: Mapping[str, str | None] = field(default_factory=dict)  # name -> hash; None: not there
    seconds: float = 0.0  # estimate for this preset
    disk_mb: float | None = None  # estimate of what it leaves; None: the preset says it, by `name`
    runs_dir: Path

    @functools.cached_property
    def fingerprint(self) -> str:
        prefix = f"{self.runs_dir}/"
        return sha256_json(
            {
                "module": self.module,
                "config": _relative_to_runs(resolve(self.config), prefix),
                "inputs": [stage.fingerprint for stage in self.inputs],
                "files": {short(path): digest for path, digest in self._hash_files().items()},
                "source": source_version(self.module),
                "packages": versions_of(imported_packages(self.module)),
            }
            | ({"pictures": dict(self.pictures)} if self.pictures else {})
        )[:FINGERPRINT_LETTERS]

    def _hash_files(self) -> dict[Path, str]:
        return hash_files(self.files, remembered(self.runs_dir))

    @property
    def folder(self) -> Path:
        return self.runs_dir / self.name / self.fingerprint

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def done(self) -> dict | None:
        """The content of `DONE.json`, or None while the stage is not complete."""
        try:
            done = json.loads((self.folder / DONE).read_text())
        except (FileNotFoundError, ValueError):  # damaged: no JSON, or no text
            return None
        return done if isinstance(done, dict) else None

    def whole(self) -> dict | None:
        """As `done`, but None also where the result says what could not be run, or a data set is there that
        it was not made with: it is tried again."""
        done = self.done()
        result = done.get("result") if done else None
        has_failed = isinstance(result, dict) and result.get("not_run")
        return None if has_failed or self._new_data_sets() else done

    def _new_data_sets(self) -> list[str]:
        read = read_data_sets(self.folder) if self.data_sets else {}
        return [name for name, digest in self.data_sets.items() if digest not in (None, read.get(name))]


@dataclass
class Graph:
    """Stages in an order in which each comes after its inputs; equal stages are kept once."""

    runs_dir: Path
    stages: dict[Path, Stage] = field(default_factory=dict)
    is_quick: bool = False  # for a plan: of a folder of pictures as it was, no file is looked at
    note: str = ""  # after the label of each stage that is added, such as which seed it is for
    guards: dict[Path, list[Stage]] = field(
        default_factory=dict
    )  # by the folder of the stage that is guarded
    held: dict[Path, list[Stage]] = field(default_factory=dict)  # by the folder of the stage that waits

    def add(
        self,
        name: str,
        module: str,
        config: Any,
        *,
        label: str = "",
        inputs: Iterable[Stage] = (),
        files: Iterable[Path] = (),
        pictures: Iterable[Path] = (),
        data_sets: Mapping[str, Path] | None = None,
        seconds: float = 0.0,
        disk_mb: float | None = None,
    ) -> Stage:
        """Add a stage, or return the equal one that is there.

        pictures: folders whose listing counts, and of their files the content of those that are no pictures.
        data_sets: name -> file or folder, which need not be there.
        Raises:
            ConfigError: `config` names a path under the runs folder that is no input's.
            FileNotFoundError: one of `files` or `pictures` is not there.
        """
        inputs = tuple(inputs)
        stage = Stage(
            name=name,
            label=f"{label or name}{self.note}",
            module=module,
            config=config,
            inputs=inputs,
            files=tuple(files),
            pictures={short(folder): self._listings.of(folder) for folder in pictures},
            data_sets={name: self._content(path) for name, path in (data_sets or {}).items()},
            seconds=seconds,
            disk_mb=disk_mb,
            runs_dir=self.runs_dir,
        )
        for path in _paths_under(resolve(config), f"{self.runs_dir}/"):
            if not any(f"{path}/".startswith(f"{source.folder}/") for source in inputs):
                raise ConfigError(f"{stage.label}: {path} is the output of a stage that is not an input")
        return self.stages.setdefault(stage.folder, stage)

    def _content(self, place: Path) -> str | None:
        """One hash over what is in a file or folder, whatever it is called; None where it is not there."""
        hashes = remembered(self.runs_dir)
        return sha256_json(list(hash_files([place], hashes).values())) if place.exists() else None

    @functools.cached_property
    def _listings(self) -> Listings:
        return Listings(self.runs_dir, remembered(self.runs_dir), is_quick=self.is_quick)

    def guard(self, source: Stage, check: Stage) -> None:
        """Whatever reads `source` starts only once `check` is complete. It reads nothing of `check`, which is
        no part of its fingerprint."""
        _add_once(self.guards.setdefault(source.folder, []), check)

    def hold(self, stage: Stage, check: Stage) -> None:
        """`stage` starts only once `check` is complete, of which it reads nothing."""
        _add_once(self.held.setdefault(stage.folder, []), check)

    def waits_for(self, stage: Stage) -> list[Stage]:
        """The inputs of a stage, what guards them, and what it is held for."""
        guards = [check for source in stage.inputs for check in self.guards.get(source.folder, [])]
        guards += self.held.get(stage.folder, [])
        return [*stage.inputs, *(check for check in guards if check.folder != stage.folder)]

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages.values())

    def __len__(self) -> int:
        return len(self.stages)

    def seconds_to_end(self, left: Mapping[Path, float]) -> dict[Path, float]:
        """For each stage (by folder) the seconds of the longest chain from its start to the graph's end.

        `left` holds each unfinished stage's own estimated seconds; a stage that is not in it counts nothing.
        """
        longest: dict[Path, float] = {}
        for stage in reversed(list(self)):
            longest[stage.folder] = left.get(stage.folder, 0.0) + longest.get(stage.folder, 0.0)
            for source in stage.inputs:
                longest[source.folder] = max(longest.get(source.folder, 0.0), longest[stage.folder])
        return longest


def _add_once(checks: list[Stage], check: Stage) -> None:
    if check not in checks:
        checks.append(check)


def _relative_to_runs(value: Any, prefix: str) -> Any:
    if isinstance(value, dict):
        return {key: _relative_to_runs(item, prefix) for key, item in value.items()}
    if isinstance(value, list):
        return [_relative_to_runs(item, prefix) for item in value]
    return value.removeprefix(prefix) if isinstance(value, str) else value


def _paths_under(value: Any, prefix: str) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _paths_under(item, prefix)
    elif isinstance(value, str) and value.startswith(prefix):
        yield value
