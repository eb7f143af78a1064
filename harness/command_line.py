"""The command line. No torch here: `--help`, `--list` and `--plan` answer at once, wrong input before any
work."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from encoder.runtime.config import ConfigError, dump
from encoder.runtime.stage import BAD_INPUT, INTERRUPTED, make_writable
from harness import report, subcommands
from harness.config import (
    ABLATION,
    ALL,
    DISTILLATION,
    REHEARSAL,
    Options,
    Preset,
    SuiteConfig,
    chosen_suites,
    find_places,
    parse,
    results_folder,
    written_preset,
)
from harness.encoders import Encoder, resolve_encoder
from harness.running import engines
from harness.running.display import Display
from harness.running.launch import Launcher, Outcome
from harness.running.lock import FolderBusyError, hold
from harness.running.plan import print_choices, print_plan
from harness.running.stages import Graph
from harness.suites import plan_suite
from harness.suites.foundation import add_foundation
from harness.suites.released import add_released
from harness.suites.request import Request, SuitePlan
from harness.suites.trained import add_trained
from harness.tables import against_baseline, grids, leaderboard
from harness.tables.result_files import Identity, collect, merge_seeds
from harness.tables.results_folder import RUN_CONFIG
from llava_bridge.benchmark_table import BENCHMARKS

FAILED = 1
USAGE = """\
python harness/run.py [--list | --plan] [key=value ...]
python harness/run.py verify results/demo          is every table what the result files say?
python harness/run.py compare results/a results/b  two folders side by side: config, provenance, numbers
python harness/run.py card results/demo ov3-demo   its rows as a model card for the Hugging Face hub
python harness/run.py check encoders=[...]         do they keep the contract? linear probe, retrieval, PSNR

  suite=understanding|generation|all   what to measure (all: both)
  suite=ablation                       train variants of OpenVision 3, measure each: branches, omega, tau, ...
  suite=distillation                   a generator in few steps: teacher, MeanFlow, DMD2, TMD
  suite=text2image                     words in place of classes, judged by SceneEval
  preset=demo                          sizes of everything: configs/presets (demo: a laptop CPU, no download)
  encoders=[ov3-demo,clip-demo]        which frozen encoders: names of configs/encoders, a folder, or
                                       module:my_module:MyEncoder, timm:<model>, ... (the preset's)
  seeds=[0,1]                          what depends on the seed runs for each: mean, deviation, n
  launch=local|torchrun|slurm          how stages start; processes=8: of those that several can share
  data_root=<folder>                   where preset=paper's sources lie (docs/paper.md)
  tasks=[pope,gqa,my.yaml]             these benchmarks of preset=paper alone; on any preset, lmms-eval
                                       tasks of your own
  overrides=<file.yaml>                values over the preset's, as on the command line
  seed=0  device=cpu|cuda  runs_dir=runs  results_dir=results
  a.b=value                            a value of the preset, e.g. rae.train.num_steps=100; the tables of
                                       such a run go to results/local, not into the preset's own

  --list   suites, presets, encoders and tasks
  --plan   the stages: cached or not, how long, GPU-hours, disk

The same command again, after a crash, a kill or Ctrl-C, goes on where it was.
Exit code: 0 all done, 1 something could not be run (the table says what) or differs, 2 wrong input,
130 interrupted.
"""


def main(words: Sequence[str]) -> int:
    """Do what the words say; returns the exit code."""
    flags = [word for word in words if word.startswith("-")]
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        if {"--help", "-h"} & set(flags):
            print(USAGE, end="")
            return 0
        if words and words[0] in subcommands.SUBCOMMANDS:
            return subcommands.run(words[0], words[1:], console)
        if unknown := [flag for flag in flags if flag not in ("--list", "--plan")]:
            raise ValueError(f"unknown flag '{unknown[0]}'; valid: --help, --list, --plan")
        options, preset = parse([word for word in words if word not in flags])
        if "--list" in flags:
            print_choices(console)
            return 0
        if preset.released and "--plan" not in flags:
            subcommands.look_at_sources(options, preset, console, is_run=True)
        graph = Graph(options.runs_dir.resolve(), is_quick="--plan" in flags)
        plans = make_plans(graph, options, preset)
        for plan in plans:
            plan.check()
        if "--plan" in flags:
            print_plan(graph, preset, options, console)
            return 0
        return run(graph, plans, options, preset, console)
    except KeyboardInterrupt:
        print("interrupted; what was complete stays, the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, FolderBusyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


def make_plans(graph: Graph, options: Options, preset: Preset) -> list[SuitePlan]:
    """The chosen suites' stages added to `graph`, a plan for each suite and seed; the other suites are
    planned too, so that every section is checked (text2image's many stages only where it is asked for)."""
    names = options.encoders or preset.encoders
    device = options.device or preset.device
    foundation = add_foundation(graph, preset, preset.foundation, device) if preset.foundation else None
    made = foundation.encoders if foundation else {}
    written = written_preset(options.preset)
    places = find_places(options, preset)
    asked = [task for task in options.tasks or () if task in BENCHMARKS]
    if asked and places is None:
        raise ConfigError(f"tasks={asked} are benchmarks of presets on real sources, as preset=paper")

    def request(suite: SuiteConfig, into: Graph, seed: int) -> Request:
        controls = [preset.controls.get(name, name) for name in suite.controls]
        words = dict.fromkeys([*names, *filter(None, controls)])
        encoders = [made.get(name) or _encoder(into, preset, places, suite, name, device) for name in words]
        return Request(
            graph=into,
            preset=preset,
            written=written,
            suite=suite,
            encoders=encoders,
            seed=seed,
            device=device,
            foundation=foundation,
            places=places,
            tasks=options.tasks,
        )

    if preset.baseline is not None and preset.baseline not in {*names, *made, *preset.released}:
        resolve_encoder(preset.baseline)  # a misspelt one would leave every comparison out
    chosen = chosen_suites(options.suite)
    plans = []
    for seed in options.all_seeds:
        graph.note = f", seed {seed}" if seed != options.all_seeds[0] else ""
        plans += [plan_suite(request(suite, graph, seed)) for suite in chosen]
    own = {ABLATION: preset.ablation, DISTILLATION: preset.distillation}  # suites that a preset need not have
    every = chosen_suites(ALL) + [suite for name in own if own[name] for suite in chosen_suites(name)]
    for suite in every:
        if suite not in chosen and places is None:  # who has LLaVA's data need not have ImageNet
            plan_suite(request(suite, Graph(graph.runs_dir), options.seed))
    return plans


def _encoder(
    graph: Graph,
    preset: Preset,
    places: Mapping[str, Path] | None,
    suite: SuiteConfig,
    name: str,
    device: str,
) -> Encoder:
    """A release of the preset's, an encoder that it trains, or whatever else the word means."""
    if name in preset.released:
        return add_released(graph, name, preset.released[name], suite.role, places)
    if name in preset.trained:
        return add_trained(graph, name, preset.trained[name], suite.role, places, device)
    return resolve_encoder(name)


def run(graph: Graph, plans: list[SuitePlan], options: Options, preset: Preset, console: Console) -> int:
    """Run the graph, write and show the leaderboards; returns the exit code."""
    if options.launch == "slurm":
        engines.check_slurm(preset.slurm)
    make_writable(options.runs_dir)
    make_writable(options.results_dir)
    with hold(graph.runs_dir) as lock:
        display = Display(graph, preset.jobs, console)
        launcher = Launcher(
            graph=graph,
            jobs=preset.jobs,
            threads=preset.threads,
            lock=lock,
            display=display,
            launch=options.launch,
            processes=options.processes,
            slurm=preset.slurm,
            device=options.device or preset.device,
        )
        outcomes = launcher.run()
        suites = {plan.suite.name: [each for each in plans if each.suite is plan.suite] for plan in plans}
        results = results_folder(options, preset)
        reports = [_report(seeds, outcomes, options, preset, console) for seeds in suites.values()]
        page = report.write(results)
    console.print("\nfiles:")
    for path in [*(path for each in reports for path in each.files), page]:
        console.print(f"  {_shown(path)}", highlight=False, soft_wrap=True, markup=False)
    return 0 if all(each.is_complete for each in reports) else FAILED


@dataclass(frozen=True)
class _Report:
    files: list[Path]
    is_complete: bool  # every row that was asked for has all its numbers


def _report(
    plans: Sequence[SuitePlan],
    outcomes: Mapping[Path, Outcome],
    options: Options,
    preset: Preset,
    console: Console,
) -> _Report:
    """Write a suite's result files, leaderboard, config and figures, and show its tables; `plans` holds the
    suite's plan for each seed.
    """
    plan = plans[0]
    results = results_folder(options, preset)
    folder, is_rehearsal = results / plan.suite.name, results.name == REHEARSAL
    seeds = []
    for each in plans:
        identity = Identity(
            suite=plan.suite.name, preset=options.preset, seed=each.seed, rehearsal=is_rehearsal
        )
        seeds.append([collect(row, outcomes, folder, identity) for row in each.rows])
    rows = [merge_seeds(runs) for runs in zip(*seeds, strict=True)]
    against_baseline.write([each.rows for each in plans], outcomes, preset.baseline, folder)
    board = leaderboard.build(plan.suite, options.preset, rows, folder)
    files = leaderboard.write(board, plan.suite, folder) + plan.draw(folder, board)
    said = {"seeds": options.all_seeds, "device": options.device or preset.device, "preset": preset}
    dump({**said, "encoders": [row.encoder for row in plan.rows]}, folder / RUN_CONFIG)
    grids.show(board, plan.suite, console)
    planned = zip(rows, plan.rows, strict=True)  # what a row cannot have by its nature is no failure
    is_complete = not any(
        set(row["not_run"]) - set(asked.undefined) or row.get("incomplete") for row, asked in planned
    )
    return _Report(files, is_complete=is_complete)


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
