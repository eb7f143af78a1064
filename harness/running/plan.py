"""What `--list` and `--plan` print."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from encoder.runtime.config import ROOT, read_yaml
from harness.config import CONFIGS, Options, Preset, presets, suites
from harness.running.cost import stage_flops
from harness.running.cost_released import is_released, released_disk_mb, released_flops
from harness.running.display import clock
from harness.running.engines import num_gpus, num_processes
from harness.running.published_hours import published_hours
from harness.running.stages import Graph, Stage


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


def print_plan(graph: Graph, preset: Preset, options: Options, console: Console) -> None:
    """The stages in order: whether each is there, begun or new, its time, what it keeps busy and its disk.

    What is there says what it took; the rest is the preset's estimate, and blank where it gives none.
    """
    is_gpu = (options.device or preset.device) == "cuda"
    busy = "GPU h" if is_gpu else "core h"
    is_cluster = options.launch == "slurm"  # it decides what runs at once; on a machine, jobs share the GPU
    at_once = "a job each" if is_cluster else f"{preset.jobs} at a time"
    table = Table(title=f"{len(graph)} stages, {at_once}", title_justify="left", box=None, padding=(0, 2))
    is_compared = any(is_released(stage) and published_hours(stage) for stage in graph)
    published = ["published"] if is_compared else []
    for heading in ("stage", "state", "about", busy, *published, "disk", "folder"):
        table.add_column(heading, justify="left" if heading in ("stage", "state", "folder") else "right")
    left, hours_left, disk_left, computing, uncounted = {}, 0.0, 0.0, 0.0, 0
    for stage in graph:
        done = stage.whole()
        state = "cached" if done is not None else "begun" if stage.folder.is_dir() else "to run"
        counted = _computed(stage, preset, options) if done is None else 0.0
        computed, uncounted = counted or 0.0, uncounted + (counted is None)
        seconds = stage.seconds + computed if done is None else done["seconds"]
        megabytes = _estimated_disk(stage, preset) if done is None else _megabytes(stage.folder)
        hours = seconds / 3600 * _units(stage.module, preset, options, is_gpu)
        if done is None:
            left[stage.folder] = seconds
            hours_left, disk_left = hours_left + hours, disk_left + megabytes
            computing += computed
        shown, others = f"{graph.runs_dir.name}/{stage.name}/{stage.fingerprint}", published_hours(stage)
        cells = (
            clock(seconds) if seconds else "unknown",
            f"{hours:.2f}" if hours else "",
            *([f"{others:g}" if others else ""] * len(published)),
            _size(megabytes),
            escape(shown),
        )
        table.add_row(escape(stage.label), state, *cells)
    console.print(table)
    chains = graph.seconds_to_end(left).values()
    together = [0.0] if is_cluster else [sum(left.values()) / preset.jobs, computing]
    seconds = max([*together, *chains])
    without = sum(not each for each in left.values())
    if without:
        console.print(f"{without} stages without an estimate are not in these sums:", highlight=False)
    sums = f"{hours_left:.2f} {busy}, {_size(disk_left) or 'unknown'} of disk"
    console.print(f"{len(left)} to run, about {clock(seconds)}, {sums}", highlight=False)
    if preset.assumed_flops is not None:
        rate = f"{preset.assumed_flops / 1e12:,.0f} TFLOP/s a GPU"
        console.print(f"calculated, not measured: each stage's FLOPs at {rate}, and its other seconds")
    if published:
        console.print(
            "published: GPU-hours that others print. LLaVA-1.5 7B, 576 image tokens: 3.5 h and 10 h on 8 "
            "A100; RAE's 50,000 samples: 7 h on one H800",
            soft_wrap=True,
        )
    if uncounted:
        whose = f"whose weights or pictures preset={options.preset} does not make"
        if preset.released:
            whose = "whose networks' config files are missing or wrong"
        console.print(f"without the FLOPs of {uncounted} stages {whose}", highlight=False)


def _computed(stage: Stage, preset: Preset, options: Options) -> float | None:
    """Seconds that a stage computes at the rate that the preset assumes, 0 where it assumes none; None where
    its FLOPs are not known."""
    if preset.assumed_flops is None:
        return 0.0
    processes = num_processes(stage.module, options.launch, options.processes, preset.slurm)
    flops = released_flops(stage) if is_released(stage) else stage_flops(stage)
    return None if flops is None else flops / (preset.assumed_flops * processes)


def _estimated_disk(stage: Stage, preset: Preset) -> float:
    """Megabytes by the stage itself, by the preset, or by the released networks' sizes."""
    if stage.disk_mb is not None:
        return stage.disk_mb
    if stage.name in preset.disk_mb:
        return preset.disk_mb[stage.name]
    return released_disk_mb(stage) if is_released(stage) else 0.0


def _units(module: str, preset: Preset, options: Options, is_gpu: bool) -> int:
    """GPUs that a stage holds (rendering, packing and reading logs: none), or cores that it keeps busy."""
    launched = options.launch, options.processes, preset.slurm
    if not is_gpu:
        return preset.threads * num_processes(module, *launched)
    return num_gpus(module, *launched)


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _size(megabytes: float) -> str:
    if not megabytes:
        return ""
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{max(1, round(megabytes))} MB"


def _about(path: Path) -> str:
    """The description in a YAML file, else the words of the comment that it opens with."""
    lines = path.read_text().splitlines()
    if lines and lines[0].startswith("#"):
        return lines[0].lstrip("# ")
    return str(read_yaml(path).get("description", ""))
