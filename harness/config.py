"""What the command line means: the fixed names, the preset and the suites, read strictly before anything
runs. No torch here.

A preset holds one section of values per stage; each section is checked against its stage's own dataclass
when the graph is built (`stage_config`), with the paths between stages filled in by the harness.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from encoder.options import FeatureChoice
from encoder.runtime.config import ROOT, ConfigError, choose, load, nearest, read_yaml, resolve
from encoder.runtime.stage import sha256_json
from harness.paper.sources import SourcesConfig, locate
from harness.replica.mark import is_in_replica
from llava_bridge.config import Framework

CONFIGS = ROOT / "configs"
ABLATION, DISTILLATION = "ablation", "distillation"  # the suites that a preset need not have
ALL = "all"  # suite=all: every suite that does not train encoders
# Keys of encoder.training.options.TrainConfig that say which samples are seen, in which order
_SAMPLES = ("num_steps", "batch_size", "image_size", "train_limit", "seed", "contrastive_texts", "init")
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
class NextSections:
    """What LLaVA-NeXT has instead of the preset's values for LLaVA-1.5."""

    align: dict[str, Any] = dataclasses.field(default_factory=dict)  # over LlavaSections.align
    instruct: dict[str, Any] = dataclasses.field(default_factory=dict)  # over LlavaSections.instruct
    evaluate: dict[str, Any] = dataclasses.field(default_factory=dict)  # over LlavaSections.evaluate
    tiles: list[list[int]] | None = None  # llava_bridge.config.LlavaConfig's, of both stages
    # Of Scenes' pictures, whose views are encoded once: llava_bridge.config.ViewsConfig's
    holds: Literal["tokens", "latents"] = "tokens"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LlavaSections:
    """Values for the stages of `llava_bridge`."""

    # llava_1_5, llava_next, or a list of both: a row for each, LLaVA-NeXT's as <encoder>/llava_next
    framework: Any = "llava_1_5"
    next: NextSections = dataclasses.field(default_factory=NextSections)
    square_eval: bool = False  # adds LLaVA-NeXT's row on 2 x 2 tiles alone: <encoder>/llava_next/square_eval
    # Adds a row of LLaVA-1.5 with the encoder's grid resized to so many tokens: <encoder>/equal_tokens
    equal_tokens: int | None = None

    # Folder of a causal language model with its tokenizer; None: the foundation's, or the real sources'
    language_model: str | None = None
    task_dir: str = "harness/tasks"
    # lmms-eval task -> parquet file below the data folder
    tasks: dict[str, str] = dataclasses.field(default_factory=dict)
    # Names in llava_bridge.benchmarks, asked on real sources
    benchmarks: list[str] = dataclasses.field(default_factory=list)
    # Folder of lmms-eval's YAML files of one's own, whose tasks `tasks=` may name
    include_path: str | None = None
    align: dict[str, Any]  # LLaVA-1.5 stage 1: llava_bridge.config.LlavaConfig
    instruct: dict[str, Any]  # LLaVA-1.5 stage 2: llava_bridge.config.LlavaConfig
    evaluate: dict[str, Any]  # llava_bridge.config.EvaluateConfig

    @property
    def frameworks(self) -> list[str]:
        """Those that `framework` names."""
        return [self.framework] if isinstance(self.framework, str) else list(self.framework)

    def __post_init__(self) -> None:
        given = self.frameworks
        for name in given:
            choose(dict.fromkeys(get_args(Framework)), name, "llava.framework")
        if not given or len(set(given)) < len(given):
            raise ValueError(f"llava.framework must name one framework or different ones, got {given}")
        for key, name in (("square_eval", "llava_next"), ("equal_tokens", "llava_1_5")):
            if getattr(self, key) and name not in given:
                raise ValueError(f"llava.{key} adds a row of {name}, which llava.framework does not name")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RaeSections:
    """Values for the stages of `rae_bridge`: rae_bridge.config."""

    train: dict[str, Any]  # TrainDiTConfig
    generate: dict[str, Any]  # GenerateConfig
    reconstruct: dict[str, Any]  # ReconstructConfig
    train_decoder: dict[str, Any] = dataclasses.field(default_factory=dict)  # TrainDecoderConfig
    guided: dict[str, Any] | None = None  # SweepConfig: adds a row with the best guidance to each encoder's


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSections:
    """Which pictures suite=generation trains and judges generators on."""

    # What differs from the preset's `scenes`, such as {composition: object_centric}; None: those themselves
    scenes: dict[str, Any] | None = None
    # With `scenes`: a second generator on the preset's own, without guidance, `scene-centric/` before its
    # numbers' names
    also_scene_centric: bool = False
    # Pictures of the val split by which `rae.guided` chooses; None: those of the test split that judge
    num_validation: int | None = None

    def __post_init__(self) -> None:
        if self.also_scene_centric and self.scenes is None:
            raise ValueError("also_scene_centric adds to generation.scenes: give those, or leave it out")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AblationSections:
    """What suite=ablation trains at this size, and which of its studies go through the bridges."""

    train: dict[str, Any]  # encoder.training.options.TrainConfig of the variant that all others differ from
    # Study -> variant -> what it changes in `train`: sizes, which differ from preset to preset
    variants: dict[str, dict[str, dict[str, Any]]] = dataclasses.field(default_factory=dict)
    bridges: list[str] = dataclasses.field(default_factory=lambda: ["branches", "tau"])
    llava: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # over the preset's own
    rae: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # over the preset's own
    # encoder.training.options.SynergyConfig
    synergy: dict[str, Any] = dataclasses.field(default_factory=dict)
    reconstruct: dict[str, Any] = dataclasses.field(default_factory=dict)  # over the preset's rae.reconstruct


STUDENTS = ("meanflow", "dmd2", "tmd_1", "tmd_2")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DistillationSections:
    """What suite=distillation trains at this size."""

    rae: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # over the preset's: the teacher
    # meanflow, dmd2, and tmd's two stages -> rae_bridge.distillation.config.DistillConfig
    students: dict[str, dict[str, Any]]
    steps: list[int] = dataclasses.field(default_factory=lambda: [4, 2])  # M of the rows
    inner_steps: int = 2  # N of tmd
    teacher_steps: int = 50  # the teacher's many
    ablations: bool = False  # also the variants of tmd that the suite names
    cost: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # rae_bridge.distillation.config.CostConfig

    def __post_init__(self) -> None:
        most = max(self.steps, default=0)
        if not self.steps or min(self.steps) < 1 or any(most % steps for steps in self.steps):
            raise ValueError(
                f"steps {self.steps} must divide the largest of them: a student learns that one's grid, "
                "which holds the others"
            )
        if self.inner_steps < 1 or self.teacher_steps < 1:
            raise ValueError("inner_steps and teacher_steps must be 1 or more")
        if sorted(self.students) != sorted(STUDENTS):
            raise ValueError(f"students {sorted(self.students)} must be {', '.join(STUDENTS)}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSection:
    """One resolution of the encoders' training. Each phase starts from the towers of the one before."""

    resolution: int  # px
    num_pictures: int  # train pictures of this size; scene i is the same scene at every size
    # Over every encoder's own `train`: equal samples in equal order. encoder.training.options.TrainConfig
    train: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MadeEncoder:
    """An encoder that a preset trains itself."""

    train: dict[str, Any]  # encoder.training.options.TrainConfig without what the phases give
    decoder: dict[str, Any] | None = None  # rae_bridge.config.TrainDecoderConfig; None: it decodes itself
    features: FeatureChoice = dataclasses.field(default_factory=FeatureChoice)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoundationSections:
    """What a preset trains before it measures; the names of `encoders` are words of `encoders=`."""

    # encoder.data.options.ScenesConfig without sizes and train pictures, which the phases give
    scenes: dict[str, Any]
    phases: list[PhaseSection]  # of every encoder
    vae: dict[str, Any]  # encoder.training.options.TrainVaeConfig; on the last phase's pictures
    encoders: dict[str, MadeEncoder]
    language_model: dict[str, Any]  # llava_bridge.config.TrainLlmConfig

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("foundation.phases is empty: give one or more {resolution, num_pictures, train}")
        for name, made in self.encoders.items():
            for key in _SAMPLES:
                if key in made.train:
                    raise ConfigError(
                        f"foundation.encoders.{name}.train.{key}: foundation.phases give this, to all alike"
                    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedEncoder:
    """A row on real sources; the two suites may judge releases of different resolutions. Each holds fields of
    encoder.options.EncoderConfig, `{openvision3}` and the like standing for a source's path."""

    understanding: dict[str, Any]
    generation: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainedEncoder:
    """A row on real sources whose OpenVision 3 is trained first, by a recipe, and then judged with its own
    decoder. Only a run that names it in `encoders=` trains it."""

    recipe: str  # encoder.training.recipe.RecipeConfig; its data, VAE and vocabulary are the sources'
    understanding: str  # the recipe's phase that each suite judges
    generation: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # over the recipe's
    # Phase -> what it changes there: encoder.training.recipe.PhaseConfig
    phases: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    features: FeatureChoice = dataclasses.field(default_factory=FeatureChoice)


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
    return locate(preset.sources, options.data_root, **kinds)


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
