"""The configurations of this package's stages. No torch here: the command line reads them.

Relative paths are relative to the repository root.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from encoder.options import TokensConfig
from encoder.runtime.device import Device, Precision, settled_precision
from encoder.runtime.trackers import Tracker
from encoder.training.options import OptimConfig

Template = Literal["plain", "vicuna_v1", "chat"]  # see `prompt`
Aspect = Literal["stretch", "crop", "pad"]  # how a picture becomes square
Framework = Literal["llava_1_5", "llava_next"]
Grouping = Literal["length", "modality", "random"]  # of samples to batches
Attention = Literal["eager", "sdpa"]  # on a CPU, eager is the faster of the two below about 250 tokens


# LLaVA-NeXT's canvases, [columns, rows] of tiles in its recipes' order: the first wins a tie
TILES = ([1, 2], [2, 1], [2, 2], [3, 1], [1, 3])


ANY_TOPIC = "any"
CAPTION = "caption"  # of a LessonPhase
# Keys of what a language model saw of the questions' pictures, beside its scores
TOKENS_SEEN = ("image-tokens/base", "image-tokens/mean", "image-tokens/max")


def check_tiles(tiles: Sequence[Sequence[int]]) -> None:
    """Raises: ValueError unless they are different pairs of counts."""
    if not tiles or any(len(each) != 2 or min(each) < 1 for each in tiles):
        raise ValueError(f"tiles must be [columns, rows] of one or more canvases, got {[*tiles]}")
    if len({tuple(each) for each in tiles}) < len(tiles):
        raise ValueError(f"tiles names a canvas twice: {[*tiles]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """Sizes of the demo's Llama."""

    width: int = 192
    depth: int = 4
    num_heads: int = 3
    mlp_width: int = 512
    # Llama's own 1e4 leaves a narrow head few slow dimensions to match words by over hundreds of tokens
    rope_theta: float = 1e7
    max_length: int = 512  # tokens, pictures' included

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonPhase:
    """Some of the steps of `llava_bridge.train_llm`: see `llava_bridge.demo_llm.course`."""

    num_steps: int
    batch_size: int = 64
    # One question a scene, of these topics (`QUESTIONS` of encoder.data.scenes.wording, presence and
    # description; any: of all), and with `caption` those scenes whole that have no question. None: of each
    # scene its whole conversation or caption
    topics: list[str] | None = None
    unclear: float = 0.0  # of the cells: 0 as the scene is, 1 as a projector may write them

    def __post_init__(self):
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError(f"num_steps {self.num_steps} and batch_size {self.batch_size} must be 1 or more")
        if self.topics == []:
            raise ValueError(f"topics is empty: give some, [{ANY_TOPIC}], or null for whole conversations")
        if not 0 <= self.unclear <= 1:
            raise ValueError(f"unclear {self.unclear} must be 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainLlmConfig:
    """Stage `llava_bridge.train_llm`: train the demo's Llama on scenes laid out in cells."""

    MAY_CHANGE: ClassVar = (
        "precision", "attention", "device", "log_steps", "checkpoint_steps", "keep_checkpoints",
        "skip_non_finite", "trackers",
    )  # fmt: skip

    layouts: list[str]  # JSONL files of scenes in cells, layouts.jsonl
    phases: list[LessonPhase]  # one after another, under one schedule of the rate
    init: str | None = None  # folder of a Llama of this shape to go on from
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1.5e-3, warmup_steps=200, betas=(0.9, 0.98))
    )
    shape: LlamaShape = field(default_factory=LlamaShape)
    precision: Precision = "auto"
    attention: Attention = "sdpa"
    # Peak rate of Muon on the blocks' matrices; None: AdamW alone, which learns to read far more slowly
    muon_lr: float | None = None
    text_weight: float = 1.0  # of the loss on all words, beside the loss on answers
    device: Device = "cpu"
    num_held_out: int = 1000  # last rows of the layouts: scored, not trained on
    seed: int = 0
    trackers: list[Tracker] = field(default_factory=list)
    log_steps: int = 50
    checkpoint_steps: int = 500
    keep_checkpoints: int = 1  # as in `encoder.training.options.TrainConfig`
    skip_non_finite: int = 0  # as in `encoder.training.options.TrainConfig`

    def __post_init__(self):
        if self.num_held_out < 1:
            raise ValueError(f"num_held_out {self.num_held_out} must be 1 or more: the result is their score")
        if not self.layouts or not self.phases:
            raise ValueError("layouts and phases must not be empty: what to read, and for how many steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsConfig(TokensConfig):
    """Stage `llava_bridge.any_resolution.cache`: the frozen side of LLaVA-NeXT, once for every view of the
    pictures that `records` name."""

    tiles: list[list[int]] = field(default_factory=lambda: [*TILES])  # as in LlavaConfig
    # latents: OpenVision 3's VAE latents (33 KB a view at 256 px in fp16), the ViT then runs at every step
    holds: Literal["tokens", "latents"] = "tokens"

    def __post_init__(self):
        super(ViewsConfig, self).__post_init__()
        check_tiles(self.tiles)
        if not self.records or self.flips:
            raise ValueError("views are of the pictures that records name, and none of mirror images")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaConfig:
    """Stage `llava_bridge.train`: one of the two stages of LLaVA-1.5 or LLaVA-NeXT over one frozen encoder.

    Stage 1 trains the projector on captions (`plain`), stage 2 projector and language model on
    conversations (`vicuna_v1`).
    """

    MAY_CHANGE: ClassVar = (
        "learning_rate", "projector_learning_rate", "warmup_fraction", "micro_batch_size", "attention",
        "gradient_checkpointing", "compile", "picture_cache", "records_cache", "max_missing_fraction",
        "max_bad_fraction", "log_steps", "checkpoint_steps", "trackers",
    )  # fmt: skip

    stage: Literal[1, 2]
    encoder: str  # what `encoder.load_encoder` takes
    features: str | None = (
        None  # what the language model sees of the encoder; None: the encoder's own default
    )
    # `llava_next`: pictures of any size, as a whole and as tiles of the tower's size (see `any_resolution`)
    framework: Framework = "llava_1_5"
    tiles: list[list[int]] = field(default_factory=lambda: [*TILES])  # of llava_next: [columns, rows] each
    # `whole`: llava_next's first view alone, as LLaVA-NeXT's own stage 1 has it; stage 2 may see tiles all
    # the same, and evaluation does
    views: Literal["tiles", "whole"] = "tiles"
    # llava_next's image_newline: `trained` in both stages; `official` not in stage 1, and drawn anew in 2
    newline: Literal["trained", "official"] = "trained"
    # tokens that the language model sees of a picture, the encoder's square grid resized (bilinear); None: as
    # many as the encoder gives, in stage 2 as many as in stage 1
    num_image_tokens: int | None = None
    data: list[str]  # LLaVA JSON, JSONL or parquet files, or folders of parquet files
    # folder of the pictures; needed where neither cached tokens nor parquet files hold them
    image_root: str | None = None
    more_image_roots: list[str] = field(default_factory=list)  # searched after it, in order
    allow_outside_root: bool = False  # records may name pictures outside of these folders
    # Folder for the pictures inside parquet files, copied there once so that rows can be read in any order
    picture_cache: str = "runs/pictures"
    # Folder for the tokenised records and the looks at their pictures, both made once and mapped by every
    # process of every run over the same records
    records_cache: str = "runs/records"
    # LLaVA-1.5: crop in stage 1, pad in stage 2. Cached tokens were made with `stretch`.
    aspect: Aspect = "stretch"
    tokens: str | None = (
        None  # folder written by `encoder.tokens` for these pictures; None: the tower runs at every step
    )
    # stage 1: a causal language model with its tokenizer, a folder or a hub id (`owner/name[@revision]`) that
    # is in the hub's cache; stage 2: what stage 1 wrote
    init: str
    # None: the stage's own (plain, vicuna_v1); `chat`: the language model's own chat template in stage 2
    template: Template | None = None
    num_epochs: float = 1.0
    batch_size: int  # of one optimiser step, all processes and accumulated micro-batches together
    micro_batch_size: int | None = None  # of one forward pass on one process; None: no accumulation
    learning_rate: float  # LLaVA-1.5: 1e-3 in stage 1, 2e-5 in stage 2; peak of a cosine
    warmup_fraction: float = 0.03
    weight_decay: float = 0.0
    # of the loss: `tokens` counts every supervised token of a step alike (transformers 5); `samples` averages
    # each micro-batch first, as LLaVA's original did, so that short answers weigh more
    loss_average: Literal["tokens", "samples"] = "tokens"
    max_length: int = 2048  # tokens, pictures' included
    # samples of similar length share a batch; `modality`: all with a picture or all without, too (LLaVA-1.5)
    grouping: Grouping = "length"
    # Tokens of a packed row; None: a sample a row, padded. Packed samples cannot see each other: the loss is
    # that of separate rows. Long rows leave few places empty and cost no more: each sample attends to itself
    # alone, by torch's fused attention (with `compile`: by `attention`, over a mask of the whole row).
    pack_length: int | None = None
    # Rows are padded to a multiple of this: on a CPU every new length builds new kernels, which take time and
    # stay in memory, and where blocks are compiled, compiles them anew.
    length_multiple: int = 8
    lora_rank: int | None = None  # None: the whole language model learns. LLaVA-1.5: 128
    lora_alpha: float = 256.0
    lora_dropout: float = 0.05
    projector_learning_rate: float | None = None  # None: learning_rate. LLaVA-1.5's LoRA: 2e-5
    precision: Precision = "bf16"
    attention: Attention = "sdpa"
    gradient_checkpointing: bool = False
    # the language model's blocks, once for each length (see length_multiple): slow to start, then faster
    compile: bool = False
    deepspeed: str | None = "configs/deepspeed/zero2.json"  # None: transformers' Trainer alone
    # of the pictures, missing ones before the first step and broken ones met later together; beyond it the
    # run stops. `encoder.tokens` skips as many.
    max_missing_fraction: float = 0.01
    # of the records, those that cannot be read or hold nothing to learn; beyond it nothing is trained
    max_bad_fraction: float = 0.01
    seed: int = 0
    trackers: list[Tracker] = field(default_factory=list)
    log_steps: int = 10
    checkpoint_steps: int = 200

    @property
    def chosen_precision(self) -> str:
        """fp32 or bf16, by what this machine multiplies in."""
        return settled_precision(self.precision, "auto")

    @property
    def chosen_template(self) -> Template:
        """The prompt template that the stage trains on."""
        return self.template or ("plain" if self.stage == 1 else "vicuna_v1")

    def __post_init__(self):
        is_json = all(path.endswith((".json", ".jsonl")) for path in self.data)  # which hold no pictures
        if self.tokens is None and self.image_root is None and is_json:
            raise ValueError("give tokens (cached visual tokens) or image_root (pictures for the live tower)")
        if self.framework == "llava_next":
            self._check_next()
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.tokens is not None and self.aspect != "stretch":
            raise ValueError(
                f"aspect '{self.aspect}' with cached tokens, which were made with 'stretch'; drop one of them"
            )
        if self.pack_length is not None and self.pack_length < self.max_length:
            raise ValueError(
                f"pack_length {self.pack_length} must be at least max_length {self.max_length}, a sample's"
            )
        if self.stage == 1 and (self.lora_rank is not None or self.template == "chat"):
            raise ValueError("stage 1 trains the projector on captions: lora_rank, template are of stage 2")

    def _check_next(self) -> None:
        check_tiles(self.tiles)
        if self.num_image_tokens is not None:
            raise ValueError(
                f"num_image_tokens {self.num_image_tokens} with llava_next, whose tiles are maps of the "
                "tower's own grid; drop it, or take framework=llava_1_5"
            )
        if self.aspect != "stretch":
            raise ValueError(f"aspect '{self.aspect}' with llava_next, which has its own; drop it")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Stage `llava_bridge.evaluate`: lmms-eval scores of one model folder."""

    # folder that AutoModelForImageTextToText loads; one in llava-hf's layout is evaluated as it is
    model: str
    # lmms-eval task -> its parquet file; None: the data set that the task's YAML names
    tasks: dict[str, str | None] = field(default_factory=dict)
    task_dir: str = "harness/tasks"  # folder of those tasks' YAMLs
    # public benchmarks as lmms-eval packages them, each of which runs or says why not: see `benchmarks`
    task_set: Literal["none", "paper", "extended"] = "none"
    benchmarks: list[str] = field(default_factory=list)  # these instead, by their names in `benchmarks`
    data_root: str | None = None  # folder of their parquet files; None: from the hub
    # lmms-eval tasks of one's own: paths of their YAML files, or their names in `include_path`
    custom: list[str] = field(default_factory=list)
    include_path: str | None = None  # folder of such YAML files
    batch_size: int = 64
    max_new_tokens: int = 16
    precision: Precision = "fp32"
    device: Device = "cpu"
    attention: Attention = "sdpa"
    # llava_next: all pictures on one canvas of 2 x 2 tiles, as Open-LLaVA-NeXT's own table is made
    square_eval: bool = False
    limit: int | None = None  # questions per task; None: all
    seed: int = 0  # of the bootstrap behind the standard errors

    def __post_init__(self):
        if not (self.tasks or self.benchmarks or self.custom) and self.task_set == "none":
            raise ValueError("nothing to evaluate: give tasks, benchmarks or task_set, or custom tasks")
