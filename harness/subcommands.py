"""What the command line's subcommands do: `verify RESULTS` and `compare A B` read results folders,
`check encoders=[...]` tries encoders out; none of them runs a stage.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from encoder.runtime.config import ConfigError, choose
from harness.config import parse
from harness.encoders import resolve_encoder
from harness.tables import side_by_side
from harness.verify import verify

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
    return act(*map(Path, words), console)


def _verify(results: Path, console: Console) -> int:
    verdict = verify(results)
    for fault in verdict.faults:
        print(f"error: {fault}", file=sys.stderr)
    for place in sorted(verdict.gone):
        console.print(f"no longer there: {place}", highlight=False, soft_wrap=True, markup=False)
    console.print(str(verdict), highlight=False, soft_wrap=True, markup=False)
    return DIFFERENT if verdict.faults else 0


def _compare(a: Path, b: Path, console: Console) -> int:
    pairs = side_by_side.compare(a, b)
    side_by_side.show(pairs, a, b, console)
    return DIFFERENT if any(pair.num_changed for pair in pairs) else 0


def _check(words: Sequence[str], console: Console) -> int:
    """Contract and proxies of each encoder; 1 where one breaks the contract."""
    options, preset = parse(words)
    names = list(dict.fromkeys(options.encoders or preset.encoders))
    encoders = [resolve_encoder(name) for name in names]
    from harness import check  # here: torch would delay the other subcommands

    table = Table("encoder", "tokens", "contract", title="check", title_justify="left")
    for heading in ("linear probe %", "retrieval R@1 %", "PSNR dB"):
        table.add_column(heading, justify="right")
    probes, reports = check.Probes.scenes(), []
    for name, encoder in zip(names, encoders, strict=True):
        report = check.check(encoder, name, probes, options.device or preset.device)
        reports.append(report)
        tokens = "" if report.width is None else f"{report.num_tokens} x {report.width}"
        contract = f"{len(report.faults)} broken" if report.faults else "holds"
        values = (report.probe_percent, report.retrieval_percent, report.psnr_db)
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
    "check": ((), _check),  # key=value words, as a run takes them
}
