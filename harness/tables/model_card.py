"""A leaderboard row as a Hugging Face model card: YAML in front (its `model-index`), tables, how they were
made. Rendered from leaderboards and result files alone, so that `run.py verify` makes it again.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from encoder.runtime.config import ConfigError, choose, read_yaml
from encoder.runtime.files import replacing
from harness.tables.grids import LEGEND, comparison_words, grids, markdown_lines, marked, reasons
from harness.tables.model_index import Shown, metric_of, model_index
from harness.tables.result_files import slug
from harness.tables.results_folder import RUN_CONFIG, SavedSuite, saved_suites

CARDS = "cards"  # folder below a preset's results
_REHEARSAL = (
    "> **A rehearsal**: random weights and drawn pictures in the place of the sources. Its numbers are "
    "evidence of nothing, and none is in this card's metadata."
)
_HASH_LETTERS, _KEYS_NAMED = 12, 8


def write(results: Path, encoder: str) -> Path:
    """Write `cards/<encoder>.md` into the results folder of one preset; returns the file.

    Raises:
        ConfigError: no row of that name, or leaderboards of several presets.
        FileNotFoundError: no leaderboard there.
        ValueError: a leaderboard or result file that cannot be read.
    """
    suites = saved_suites(results)
    if len(folders := {suite.folder.parent for suite in suites}) > 1:
        names = ", ".join(sorted(map(str, folders)))
        raise ConfigError(f"a card is of one preset; {results} holds several: name one of {names}")
    text = render(suites, encoder)
    path = card_path(folders.pop(), encoder)
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def card_path(results: Path, encoder: str) -> Path:
    """Where an encoder's card lies in a preset's results folder."""
    return results / CARDS / f"{slug(encoder)}.md"


def encoders_of(suites: Sequence[SavedSuite]) -> list[str]:
    """The names that may have a card: of every measured row, but for the variants of an ablation."""
    rows = [row for suite in suites if not suite.config.studies for row in suite.own_rows]
    return list(dict.fromkeys(row["encoder"] for row in rows if row["kind"] == "measured"))


def render(suites: Sequence[SavedSuite], encoder: str) -> str:
    """The card of an encoder's rows in these suites (`<encoder>`, and `<encoder>, guided` and the like).

    Raises:
        ConfigError: none of the suites has a measured row of that name.
        ValueError: a suite's run config or result file that cannot be read.
    """
    choose(dict.fromkeys(encoders_of(suites)), encoder, "encoder with measured rows")
    suites = [suite for suite in suites if not suite.config.studies and rows_of(suite, encoder)]
    is_rehearsal = any(row.get("rehearsal") for suite in suites for row in rows_of(suite, encoder))
    numbers = [] if is_rehearsal else [number for suite in suites for number in _shown(suite, encoder)]
    metadata = {"pipeline_tag": "image-feature-extraction", "tags": ["frozen-encoder"]}
    if numbers:
        kinds = sorted({metric_of(number.key, number.metric["unit"]) for number in numbers})
        metadata |= {"metrics": kinds, "model-index": model_index(encoder, numbers)}
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).rstrip("\n")
    lines = ["---", front, "---", "", f"# {marked(encoder)}, frozen", ""]
    lines += [_REHEARSAL, ""] if is_rehearsal else []
    for suite in suites:
        lines += [*_tables(suite, encoder), ""]
    lines += ["## How it was made", ""]
    for suite in suites:
        lines += [*_origin(suite, encoder), ""]
    return "\n".join(lines)


def rows_of(suite: SavedSuite, encoder: str) -> list[dict]:
    """An encoder's own rows, of every kind."""
    return [row for row in suite.own_rows if (row["encoder"] + ",").startswith(f"{encoder},")]


def _shown(suite: SavedSuite, encoder: str) -> Iterator[Shown]:
    """The measured numbers for the metadata; those of controls and of the appendix stay in the tables."""
    path = suite.folder / RUN_CONFIG
    if not path.is_file():
        raise ValueError(f"{path}: not there; run its suite again")
    preset = read_yaml(path)["preset"]
    appendix = {key for keys in suite.config.appendix.values() for key in keys}
    for row in rows_of(suite, encoder):
        if row["kind"] == "measured":
            name = row["encoder"].removeprefix(encoder).removeprefix(", ")
            about = {"suite": suite.board["suite"], "preset": preset, "row": name or None}
            for key, metric in row["metrics"].items():
                if key not in appendix:
                    yield Shown(key=key, metric=metric, **about)


def _tables(suite: SavedSuite, encoder: str) -> Iterator[str]:
    """The main table with every row that was measured beside it, the longer ones of this encoder alone."""
    board, rows = suite.board, rows_of(suite, encoder)
    beside = board | {"rows": suite.own_rows}
    alone = board | {"rows": rows}
    yield from (f"## {suite.config.title}", "", suite.config.description, "", LEGEND)
    if board.get("comparisons"):
        yield f"`*`: {comparison_words(board)}."
    main, *_ = grids(beside, suite.config, with_appendix=False)
    yield from ("", *markdown_lines(main))
    for grid in list(grids(alone, suite.config, with_appendix=True))[1:]:
        yield from ("", f"### {grid.title}", "", *markdown_lines(grid))
    if lines := list(reasons(alone)):
        yield from ("", "### Not run", "", *lines)


def _origin(suite: SavedSuite, encoder: str) -> Iterator[str]:
    """Command, sources, machine and packages, then a line for each stage that gave numbers."""
    board, rows = suite.board, rows_of(suite, encoder)
    contents = [suite.result(name) for row, _, name in suite.numbers() if any(row is own for own in rows)]
    commits = ", ".join(sorted({f"`{content['commit']}`" for content in contents})) or "none"
    command = f"python harness/run.py suite={board['suite']} preset={board['preset']}"
    yield from (f"### {suite.config.title}", "")
    yield f"- `{command}`, with the values of `{suite.folder.name}/{RUN_CONFIG}`"
    yield f"- measured at commit {commits}, {board['date']}; tables rendered at `{board['commit']}`"
    yield from (f"- {marked(row['encoder'])} ({row['kind']}): {marked(row['source'])}" for row in rows)
    yield from (f"- {what}: {'; '.join(different)}" for what, different in _machines(contents).items())
    yield from (
        "",
        "| numbers | stage | seed | seconds | config | weights | data |",
        "|---|---|---:|---:|---|---|---|",
    )
    stages: dict[tuple[str, ...], list[str]] = {}
    for content in contents:
        stages.setdefault(_stage(content), []).append(content["key"])
    for about, keys in stages.items():
        more = f" and {len(keys) - _KEYS_NAMED} more" if len(keys) > _KEYS_NAMED else ""
        cells = (marked(", ".join(keys[:_KEYS_NAMED])) + more, *about)
        yield f"| {' | '.join(cells)} |"


def _machines(contents: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The different machines and sets of packages."""
    machines, packages = [], []
    for content in contents:
        facts = content["hardware"]
        words = [facts.get("processor"), f"{facts.get('cores')} cores", facts.get("gpu") or "no GPU"]
        machines.append(", ".join(map(str, words)))
        packages.append(", ".join(f"{name} {version}" for name, version in content["packages"].items()))
    return {"hardware": list(dict.fromkeys(machines)), "packages": list(dict.fromkeys(packages))}


def _stage(content: Mapping[str, Any]) -> tuple[str, ...]:
    """What a result file says of the stage that gave it."""
    hashes = [(content[f"{kind}_hash"] or "")[:_HASH_LETTERS] for kind in ("config", "checkpoint", "data")]
    return (content["stage"], str(content["seed"]), f"{content['wall_seconds']:.0f}", *hashes)
