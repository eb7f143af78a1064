"""The sections of a preset: what `configs/presets` gives to each part of the house. No torch here.

The values of a stage are read strictly where its configuration is built (`harness.config.stage_config`).
"""

import dataclasses
from typing import Any, Literal, get_args

from encoder.options import FeatureChoice
from encoder.runtime.config import ConfigError, choose
from llava_bridge.config import Framework

# Keys of encoder.training.options.TrainConfig that say which samples are seen, in which order
_SAMPLES = ("num_steps", "batch_size", "image_size", "train_limit", "seed", "contrastive_texts", "init")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NextRecipe:
    """A public recipe of LLaVA-NeXT on real sources."""

    # What stage 2 learns from: a name in harness.paper.sources
    mix: Literal["llava_mix", "open_next_mix", "next_mix"]
    align: dict[str, Any] = dataclasses.field(default_factory=dict)  # over LlavaSections.align
    instruct: dict[str, Any] = dataclasses.field(default_factory=dict)  # over LlavaSections.instruct


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NextSections:
    """What LLaVA-NeXT has instead of the preset's values for LLaVA-1.5."""

    recipe: str | None = None  # one of `recipes`, below the values here; None: LLaVA-1.5's mix
    recipes: dict[str, NextRecipe] = dataclasses.field(default_factory=dict)
    align: dict[str, Any] = dataclasses.field(default_factory=dict)  # over LlavaSections.align
    instruct: dict[str, Any] = dataclasses.field(default_factory=dict)  # over LlavaSections.instruct
    evaluate: dict[str, Any] = dataclasses.field(default_factory=dict)  # over LlavaSections.evaluate
    tiles: list[list[int]] | None = None  # llava_bridge.config.LlavaConfig's, of both stages
    # Of Scenes' pictures, whose views are encoded once: llava_bridge.config.ViewsConfig's
    holds: Literal["tokens", "latents"] = "tokens"

    def __post_init__(self) -> None:
        if self.recipe is not None and not self.recipes:
            raise ValueError("llava.next.recipe is of the presets on real sources")
        if self.recipe is not None:
            choose(self.recipes, self.recipe, "llava.next.recipe")

    @property
    def chosen(self) -> NextRecipe:
        """The recipe that is asked for."""
        return NextRecipe(mix="llava_mix") if self.recipe is None else self.recipes[self.recipe]


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

    @property
    def mixes(self) -> list[str]:
        """The real sources that the frameworks' second stages learn from."""
        of = {"llava_1_5": "llava_mix", "llava_next": self.next.chosen.mix}
        return list(dict.fromkeys(of[name] for name in self.frameworks))

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
    # With seeds=[...]: one teacher for all, of this seed, and students of each; None: each seed has its own
    teacher_seed: int | None = None
    ablations: bool | list[str] = False  # also the variants of tmd that the suite names: all, or these
    reference: dict[str, Any] = dataclasses.field(default_factory=dict)  # over the preset's
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
class TextToImageSections:
    """What suite=text2image trains and judges at this size. Values for stages are of `rae_bridge.text.config`
    and `harness.scene_eval.config`."""

    # What differs from the preset's `scenes`, such as {held_out: ...}; scene-centric ones, with val pictures'
    # truths left free: SceneEval's prompts are of scenes of their own
    scenes: dict[str, Any] = dataclasses.field(default_factory=dict)
    text_encoder: str  # folder of the frozen text encoder of every row: none of the encoders' own
    encode: dict[str, Any] = dataclasses.field(default_factory=dict)  # EncodeTextConfig
    train: dict[str, Any]  # TrainTextConfig
    # Over `train`: adds a row that is told the text's one vector alone; null: no such row
    pooled: dict[str, Any] | None = dataclasses.field(default_factory=dict)
    # Encoder -> folder of weights with its own text tower (encoder.train with export_text): adds a row that
    # is told that one's texts
    own_text: dict[str, str] = dataclasses.field(default_factory=dict)
    generate: dict[str, Any] = dataclasses.field(default_factory=dict)  # GenerateTextConfig
    prompts: dict[str, Any] = dataclasses.field(default_factory=dict)  # PromptsConfig
    judge: dict[str, Any] = dataclasses.field(default_factory=dict)  # JudgeConfig
    choose: dict[str, Any] = dataclasses.field(default_factory=dict)  # ChooseConfig: the grid of guidance
    score: dict[str, Any] = dataclasses.field(default_factory=dict)  # SceneScoreConfig
    reference: dict[str, Any] = dataclasses.field(default_factory=dict)  # over the preset's
    clip: str | None = None  # folder of a CLIP that gives CLIPScore; null: none
    curve: list[int] = dataclasses.field(default_factory=list)  # steps after which a row is scored as well


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
