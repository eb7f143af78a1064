"""What the command line's subcommands do: `verify RESULTS`, `compare A B` and `card RESULTS ENCODER` read
results folders, `check encoders=[...]` tries encoders out; none of them runs a stage.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from encoder.runtime.config import ConfigError, choose, dump
from harness.config import Options, Preset, chosen_suites, find_places, parse
from harness.encoders import Encoder, resolve_encoder
from harness.paper.sources import TO_TRAIN, places
from harness.suites.released import released_config
from harness.suites.trained import reads_shards_in
from harness.tables import model_card, side_by_side
from harness.verify import verify
from llava_bridge.benchmark_table import BENCHMARKS

if TYPE_CHECKING:
    from harness.paper.look import Seen

DIFFERENT = 1  # exit code, as diff's


def run(name: str, words: Sequence[str], console: Console) -> int:
    """Do what a subcommand says; returns the exit code: 0, or 1 where something differs.

    Raises:
        ConfigError: not the folders that it takes.
        FileNotFoundError: a folder without a leaderboard.
        ValueError: a leaderboard that cannot be read.
    """
    takes, act = choose(SUBCOMMANDS, name, "subcommand")
    if not takes:
        return act(words, console)
    if len(words) != len(takes):
        raise ConfigError(f"{name} takes {' and '.join(takes)}, got {' '.join(words) or 'nothing'}")
    return act(*words, console)


def _verify(results: str, console: Console) -> int:
    verdict = verify(Path(results))
    for fault in verdict.faults:
        print(f"error: {fault}", file=sys.stderr)
    for place in sorted(verdict.gone):
        console.print(f"no longer there: {place}", highlight=False, soft_wrap=True, markup=False)
    console.print(str(verdict), highlight=False, soft_wrap=True, markup=False)
    return DIFFERENT if verdict.faults else 0


def _compare(a: str, b: str, console: Console) -> int:
    pairs = side_by_side.compare(Path(a), Path(b))
    side_by_side.show(pairs, Path(a), Path(b), console)
    return DIFFERENT if any(pair.num_changed for pair in pairs) else 0


def _card(results: str, encoder: str, console: Console) -> int:
    path = model_card.write(Path(results), encoder)
    console.print(str(path), highlight=False, soft_wrap=True, markup=False)
    return 0


def _check(words: Sequence[str], console: Console) -> int:
    """The real sources, where the preset has some: 2 if one is missing or wrong. Then contract and proxies of
    each encoder: 1 where one breaks the contract."""
    options, preset = parse(words)
    if preset.released:
        look_at_sources(options, preset, console)
    names = list(dict.fromkeys(options.encoders or preset.encoders))
    if later := [name for name in names if name in preset.trained]:
        console.print(f"not tried out: {', '.join(later)}: a run trains it first", highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        there = [name for name in names if name not in later]
        found = [each for name in there for each in _encoders(name, options, preset, Path(folder))]
        return _check_encoders(found, options.device or preset.device, console)


def look_at_sources(options: Options, preset: Preset, console: Console, *, is_run: bool = False) -> None:
    """Show what there is of the real sources that the chosen suites read. A run goes on without some of the
    benchmarks: their keys are then not run, until their folders are there.

    Raises:
        ConfigError: one is missing or is not what it should be.
    """
    from harness.paper.look import NEEDED, look, render  # here: pyarrow would delay the other subcommands

    suites = [suite.role for suite in chosen_suites(options.suite)]
    needed = dict.fromkeys(name for suite in suites for name in NEEDED.get(suite, ()))
    needed |= dict.fromkeys(preset.llava.mixes if "understanding" in suites else ())
    trained = [preset.trained[name] for name in options.encoders or preset.encoders if name in preset.trained]
    needed |= dict.fromkeys(TO_TRAIN if trained else ())
    shards = places("recap_datacomp", TO_TRAIN["recap_datacomp"], preset.sources, options.data_root)
    is_streamed = bool(trained) and not any(reads_shards_in(shards, each) for each in trained)
    kinds = {"is_large": preset.is_large, "is_streamed": is_streamed}
    seen = look(preset.sources, options.data_root, needed, **kinds)
    console.print(render(seen), highlight=False, soft_wrap=True, markup=False)
    wrong = [each.name for each in seen if not each.is_fine]
    if is_run and wrong == ["benchmarks"] and _are_some_there(options, preset, seen):
        console.print("what is wrong with a benchmark stands in its place in the table; the others run")
        wrong = []
    if wrong:
        raise ConfigError(f"sources missing or wrong: {', '.join(wrong)}; docs/paper.md says where each lies")


def _are_some_there(options: Options, preset: Preset, seen: Sequence["Seen"]) -> bool:
    """Whether a benchmark that is asked for could be read."""
    counts = next(each.counts for each in seen if each.name == "benchmarks")
    known = {
        name: BENCHMARKS[name] for name in options.tasks or preset.llava.benchmarks if name in BENCHMARKS
    }
    return any({each.data_set, each.config} & counts.keys() for each in known.values())


def _encoders(name: str, options: Options, preset: Preset, folder: Path) -> list[tuple[str, Encoder]]:
    """What `load_encoder` takes, and the encoder, of a name; a released one of each suite that was chosen."""
    if name not in preset.released:
        return [(name, resolve_encoder(name))]
    sources, found = find_places(options, preset), []
    for suite in chosen_suites(options.suite):
        config = released_config(name, preset.released[name], suite.role, sources)
        path = folder / f"{name}-{suite.name}.yaml"
        dump(dataclasses.replace(config, decoder=None), path)
        found.append(
            (str(path), dataclasses.replace(resolve_encoder(str(path)), name=f"{name}, {suite.name}"))
        )
    return found


def _check_encoders(found: Sequence[tuple[str, Encoder]], device: str, console: Console) -> int:
    from harness import check  # here: torch would delay the other subcommands

    table = Table("encoder", "tokens", "contract", title="check", title_justify="left")
    for heading in ("linear probe %", "questions %", "retrieval R@1 %", "PSNR dB"):
        table.add_column(heading, justify="right")
    probes, reports = check.Probes.scenes(), []
    for word, encoder in found:
        report = check.check(encoder, word, probes, device)
        reports.append(report)
        tokens = "" if report.width is None else f"{report.num_tokens} x {report.width}"
        contract = f"{len(report.faults)} broken" if report.faults else "holds"
        values = (report.probe_percent, report.questions_percent, report.retrieval_percent, report.psnr_db)
        missing = "" if report.faults else "not run"
        shown = [missing if value is None else f"{value:.1f}" for value in values]
        table.add_row(escape(report.name), tokens, contract, *shown)
        for fault in report.faults:
            print(f"error: {report.name}: {fault}", file=sys.stderr)
    console.print(table)
    for report in reports:
        for reason in report.not_run:
            console.print(f"not run: {report.name}: {reason}", highlight=False, soft_wrap=True, markup=False)
    console.print(check.LEGEND, highlight=False, soft_wrap=True, markup=False)
    return DIFFERENT if any(report.faults for report in reports) else 0


SUBCOMMANDS: dict[str, tuple[tuple[str, ...], Callable[..., int]]] = {
    "verify": (("a results folder such as results/demo",), _verify),
    "compare": (("one results folder", "another"), _compare),
    "card": (("a preset's results folder", "an encoder of its tables"), _card),
    "check": ((), _check),  # key=value words, as a run takes them
}
