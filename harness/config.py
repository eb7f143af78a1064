"""What the command line means: the fixed names, the preset and the suites, read strictly before anything
runs. No torch here.

A preset holds one section of values per stage; each section is checked against its stage's own dataclass
when the graph is built (`stage_config`), with the paths between stages filled in by the harness.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from encoder.runtime.config import ROOT, ConfigError, choose, load, nearest, read_yaml, resolve
from encoder.runtime.stage import sha256_json
from harness.paper.sources import SourcesConfig, locate
from harness.replica.mark import is_in_replica
from harness.sections import (
    AblationSections,
    DistillationSections,
    FoundationSections,
    GenerationSections,
    LlavaSections,
    RaeSections,
    ReleasedEncoder,
    TextToImageSections,
    TrainedEncoder,
)

CONFIGS = ROOT / "configs"
ABLATION, DISTILLATION = "ablation", "distillation"  # the suites that a preset need not have
ALL = "all"  # suite=all: every suite that does not train encoders
REHEARSAL = "rehearsal"  # the results folder of whatever reads a replica
LOCAL = "local"  # below the results folder: runs with values of their own; git ignores it
# Keys of a preset that change no number
_WITHOUT_EFFECT = ("jobs", "slurm", "seconds", "disk_mb", "assumed_flops")
Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The fixed names of the command line."""

    suite: str = ALL
    preset: str = "demo"
    encoders: list[str] | None = None  # None: the preset's
    seed: int = 0  # of training, sampling and bootstrap; the data has its own in the preset
    seeds: list[int] | None = None  # several: what depends on the seed runs for each
    device: Literal["cpu", "cuda"] | None = None  # None: the preset's
    launch: Literal["local", "torchrun", "slurm"] = "local"
    processes: int = 1  # of one machine, for the stages that several can share; torchrun and slurm
    overrides: Path | None = None  # YAML of values over the preset's, under those of the command line
    data_root: Path | None = None  # the folder of a preset's real sources: `harness.paper.sources`
    # Of suite=understanding: benchmarks on real sources (None: the preset's), and on any preset tasks of
    # one's own, by the path of their lmms-eval YAML or by name in llava.include_path
    tasks: list[str] | None = None
    runs_dir: Path = ROOT / "runs"
    results_dir: Path = ROOT / "results"

    def __post_init__(self) -> None:
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise ValueError(f"seeds must be one or more different numbers, got {self.seeds}")
        if min(self.all_seeds) < 0:
            raise ValueError(f"seeds must be 0 or more, got {min(self.all_seeds)}")
        if self.encoders is not None and not self.encoders:
            raise ValueError("encoders=[] names none; leave it out for the preset's")
        for name in ("runs_dir", "results_dir", "data_root"):
            if (path := getattr(self, name)) is not None and path.is_file():
                raise ValueError(f"{name}={path} is a file; give a folder")
        if self.processes < 1 or (self.processes > 1 and self.launch == "local"):
            raise ValueError(
                f"processes {self.processes} with launch={self.launch}: several need launch=torchrun or slurm"
            )

    @property
    def all_seeds(self) -> list[int]:
        """`seeds`, or the one `seed`."""
        return self.seeds or [self.seed]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One size of everything: `configs/presets/<name>.yaml`; `like: <another>` gives what it leaves out."""

    description: str
    encoders: list[str]
    device: Literal["cpu", "cuda"] = "cpu"
    seeds: list[int] | None = None  # what `seeds=` is where the command line says neither that nor `seed=`
    jobs: int = 1  # stages that run at the same time
    threads: int = 1  # of each stage; part of what makes a run repeatable
    # With `released`, the paper's own data in place of Scenes: places beside `data_root`
    sources: SourcesConfig = dataclasses.field(default_factory=SourcesConfig)
    released: dict[str, ReleasedEncoder] = dataclasses.field(default_factory=dict)
    trained: dict[str, TrainedEncoder] = dataclasses.field(default_factory=dict)
    is_large: bool = False  # the paper's L, whose baseline is CLIP L/14
    scenes: dict[str, Any] = dataclasses.field(default_factory=dict)  # encoder.data.options.ScenesConfig
    # harness.own_data.OwnDataConfig: pictures of one's own instead
    own_data: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokens: dict[str, Any]  # encoder.options.TokensConfig
    llava: LlavaSections
    probe: dict[str, Any] = dataclasses.field(default_factory=dict)  # harness.probe.config.ProbeConfig
    rae: RaeSections
    generation: GenerationSections = dataclasses.field(default_factory=GenerationSections)
    reference: dict[str, Any]  # ReferenceConfig
    score: dict[str, Any]  # ScoreConfig
    baseline: str | None = None  # the encoder that the others are tested against, question by question
    # A suite's control -> what stands for it at this size: blind has to have as many tokens as the others
    # null: no such row
    controls: dict[str, str | None] = dataclasses.field(default_factory=dict)
    ablation: AblationSections | None = None
    distillation: DistillationSections | None = None
    text2image: TextToImageSections | None = None
    foundation: FoundationSections | None = None
    # submitit's: slurm_partition, mem_gb, ...
    slurm: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float]  # estimated wall time of each stage, by its folder's name
    # FLOP/s of one GPU in bf16 training: `--plan` then adds each stage's FLOPs over it (`running.cost`)
    assumed_flops: float | None = None
    disk_mb: dict[str, float] = dataclasses.field(default_factory=dict)  # what each leaves there

    def __post_init__(self) -> None:
        given = (self.llava.language_model is not None, self.foundation is not None, bool(self.released))
        if sum(given) != 1:
            raise ValueError(
                "give one of llava.language_model, foundation, which trains one, and released, whose sources "
                "hold one"
            )
        if self.trained and not self.released:
            raise ValueError("trained is of presets on real sources, with `released`; others have foundation")
        if twice := [name for name in self.trained if name in self.released]:
            raise ValueError(f"{twice[0]} is in both released and trained; a row has one encoder")
        if self.jobs < 1 or self.threads < 1:
            raise ValueError(f"jobs and threads must be at least 1, got {self.jobs} and {self.threads}")
        for name, least in (("nodes", 1), ("tasks_per_node", 1), ("gpus_per_node", 0)):
            count = self.slurm.get(name, least)
            if type(count) is not int or count < least:
                raise ValueError(f"slurm.{name} must be a whole number, {least} or more, got {count!r}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One question of suite=ablation: a table and a figure."""

    title: str
    variants: dict[str, dict[str, Any]]  # label -> what it changes in the preset's ablation.train


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SuiteConfig:
    """What a suite shows: `configs/suites/<name>.yaml`."""

    name: str
    title: str
    description: str
    # Encoders that are always measured beside those named
    controls: list[str] = dataclasses.field(default_factory=list)
    headline: list[str]  # the main table's columns
    details: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # more tables: title -> keys
    # In the files, not on the terminal
    appendix: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    studies: dict[str, Study] = dataclasses.field(default_factory=dict)  # a table each, over `headline`
    is_part_of_all: bool = True  # suite=all runs it
    encoders_as: str | None = None  # the suite whose encoders on real sources it judges; None: its own

    @property
    def role(self) -> str:
        """What an encoder is frozen for here, as rows on real sources say: understanding or generation."""
        return self.encoders_as or self.name

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key of every table."""
        tables = [self.headline, *self.details.values(), *self.appendix.values()]
        return tuple(dict.fromkeys(key for table in tables for key in table))


def parse(words: Sequence[str]) -> tuple[Options, Preset]:
    """Options and preset from `key=value` words.

    Raises:
        ConfigError: anything that cannot be meant, named with its nearest valid form.
    """
    fixed = [field.name for field in dataclasses.fields(Options)]
    sections = [field.name for field in dataclasses.fields(Preset)]
    option_words, overrides = [], []
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals:
            raise ConfigError(f"cannot read '{word}'; write key=value{nearest(key, [*fixed, *sections])}")
        if key in fixed:
            option_words.append(word)
        elif key.split(".")[0] in sections:
            overrides.append(word)
        else:
            raise ConfigError(
                f"unknown key '{key}'{nearest(key.split('.')[0], [*fixed, *sections])}; "
                f"valid: {', '.join(fixed)}, and the preset's {', '.join(sections)}"
            )
    options = load(Options, None, option_words, name="command line")
    chosen_suites(options.suite)
    values = _written_values(options.preset)
    if options.overrides is not None:
        values = merged(values, read_yaml(options.overrides))
    preset = load(Preset, values, overrides, name=f"preset {options.preset}")
    if not any(word.startswith(("seed=", "seeds=")) for word in option_words):
        options = dataclasses.replace(options, seeds=preset.seeds)
    return options, preset


def written_preset(name: str) -> Preset:
    """A preset as its file has it: what its estimates were made with."""
    return load(Preset, _written_values(name), name=f"preset {name}")


def _written_values(name: str) -> dict[str, Any]:
    """A preset's sections; those that its file leaves out are those of the preset that it is `like`."""
    values = read_yaml(choose(presets(), name, "preset"))
    like = values.pop("like", None)
    return values if like is None else {**_written_values(like), **values}


def presets() -> dict[str, Path]:
    """The presets' files by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("presets/*.yaml"))}


def suites() -> dict[str, Path]:
    """The suites' files by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("suites/*.yaml"))}


def chosen_suites(name: str) -> list[SuiteConfig]:
    """The suites that `suite=<name>` means.

    Raises:
        ConfigError: there is no such suite.
    """
    files = suites()
    if name != ALL:
        choose({**files, ALL: None}, name, "suite")
    chosen = [load(SuiteConfig, files[key]) for key in (files if name == ALL else [name])]
    return [suite for suite in chosen if suite.is_part_of_all or name != ALL]


def find_places(options: Options, preset: Preset) -> dict[str, Path] | None:
    """Where the real sources lie; None for a preset that makes its own data."""
    if not preset.released:
        return None
    kinds = {"is_large": preset.is_large, "has_training": has_training(options, preset)}
    return locate(preset.sources, options.data_root, mixes=preset.llava.mixes, **kinds)


def has_training(options: Options, preset: Preset) -> bool:
    """Whether an encoder of the chosen rows is trained first, on sources of its own."""
    return any(name in preset.trained for name in options.encoders or preset.encoders)


def results_folder(options: Options, preset: Preset) -> Path:
    """Where a run's tables go: `<results_dir>/<preset>`. In the repository's own results folder, which is
    committed, a run with other values than the preset's file has, or with encoders, seeds or a device of its
    own, goes to `local/<preset>-<hash of its values>` instead. What reads a replica of the real sources goes
    to `rehearsal`, wherever the results are.
    """
    results = options.results_dir.resolve()
    places = find_places(options, preset)
    if places is not None and any(is_in_replica(place) for place in places.values()):
        return results / REHEARSAL
    values, written = (
        {key: value for key, value in resolve(each).items() if key not in _WITHOUT_EFFECT}
        for each in (preset, written_preset(options.preset))
    )
    usual = Options(seeds=written_preset(options.preset).seeds)
    own = {name: getattr(options, name) for name in ("encoders", "all_seeds", "device", "tasks")}
    is_usual = values == written and all(getattr(usual, name) == value for name, value in own.items())
    if is_usual or results != usual.results_dir.resolve():
        return results / options.preset
    return results / LOCAL / f"{options.preset}-{sha256_json({**own, 'preset': values})[:8]}"


def stage_config(cls: type[Config], section: Mapping[str, Any], name: str, /, **filled: Any) -> Config:
    """A stage's config from a preset's section and what the harness fills in (paths, seed, device).

    Raises:
        ConfigError: an unknown key, a wrong type, or a key in the section that the harness fills in.
    """
    taken = [key for key in section if key in filled]
    if taken:
        raise ConfigError(f"{name}: '{taken[0]}' is filled in by the harness; remove it")
    return load(cls, {**section, **filled}, name=name)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` laid over them, mappings within mappings too."""
    both = dict(values)
    for key, change in changes.items():
        is_nested = isinstance(change, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], change) if is_nested else change
    return both
