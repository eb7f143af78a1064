"""The configurations of `rae_bridge.distill` and `rae_bridge.distillation.cost`. No torch here.

Numbers of the papers are named where they differ; TMD's (arXiv:2601.09881) are for video.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from encoder.runtime.device import Device, Precision
from encoder.runtime.trackers import Tracker
from encoder.training.options import OptimConfig
from rae_bridge.config import PicturesConfig, check_keeping

Method = Literal["tmd", "meanflow", "dmd2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchingConfig:
    """Stage 1: the mean velocity, of the head's inner flow (tmd) or of the whole network (meanflow)."""

    same_time_share: float = 0.75  # of the steps have r = s: no derivative; all papers' share
    delta: float = 5e-3  # of the central difference; 1e-4 is lost in fp32's rounding (arXiv:2511.13019)
    # c of the weight 1 / (error + c), error a mean over a picture's numbers; TMD: 1 (1.3B), 1e-5 (14B)
    adaptive_constant: float = 1.0
    s_shift: float | None = None  # of the uniform s; None: the teacher's shift; TMD: 3
    # before the identity is used: plain matching (r = s always), or mean velocities on the teacher's paths
    warmup: Literal["matching", "teacher_pairs"] = "matching"
    warmup_steps: int = 0  # of num_steps; naive MeanFlow explodes on RAE's latents without (arXiv:2511.13019)
    pair_steps: int = 16  # Euler steps of a teacher's path
    # meanflow's target at r = t: the teacher's velocity there, or that of the data
    velocity: Literal["teacher", "data"] = "teacher"

    def __post_init__(self) -> None:
        if not 0 <= self.same_time_share <= 1:
            raise ValueError(f"same_time_share {self.same_time_share} must be 0 to 1")
        if not 1e-3 <= self.delta <= 0.1:
            raise ValueError(f"delta {self.delta} must be 0.001 to 0.1; below, fp32 keeps nothing of it")
        if self.adaptive_constant <= 0 or self.warmup_steps < 0 or self.pair_steps < 1:
            raise ValueError("adaptive_constant and pair_steps must be over 0, warmup_steps 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributionConfig:
    """Stage 2: distribution matching (DMD2-v) of the student's one-shot latents at every t of its grid."""

    critic_steps: int = 5  # updates of fake score and discriminator to one of the student
    critic_optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5, warmup_steps=0))
    renoise_shift: float | None = None  # None: the teacher's shift; TMD: 5
    # what the difference of scores is divided by: its own mean size (TMD), or the teacher's error (DMD2)
    normaliser: Literal["difference", "teacher"] = "difference"
    gan_weight: float = 0.03  # 0: no discriminator
    gan_blocks: tuple[int, ...] | None = (
        None  # of the teacher's backbone; None: three, evenly, the last included
    )
    gan_width: int = 64  # channels of a head's convolutions
    # all N steps with gradient, as in sampling; False: one, from an inner state that the data give
    rollout: bool = True

    def __post_init__(self) -> None:
        if self.critic_steps < 1 or self.gan_width < 1:
            raise ValueError("critic_steps and gan_width must be 1 or more")
        if self.gan_weight < 0:
            raise ValueError(f"gan_weight {self.gan_weight} must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """Stage `rae_bridge.distill`: a student of a trained DiT-DH.

    `tmd` has both stages, `meanflow` the first alone, `dmd2` (the whole network as student) the second alone.
    """

    MAY_CHANGE: ClassVar = (
        "precision", "tf32", "device", "log_steps", "checkpoint_steps", "keep_checkpoints",
        "skip_non_finite", "stop_factor", "trackers",
    )  # fmt: skip
    MAY_GROW: ClassVar = ("num_steps",)

    teacher: str  # weights folder by `rae_bridge.train`: a DiT-DH
    method: Method
    stage: Literal[1, 2]
    student: str | None = None  # stage 2 of tmd: the weights folder of its stage 1
    tokens: str | None = None  # folder written by `encoder.tokens` or `rae_bridge.cache`
    pictures: PicturesConfig | None = None  # or pictures, encoded as they are needed
    num_steps: int  # updates of the student
    batch_size: int = 64
    steps: int = 4  # M: the student's grid; it also knows those of every divisor of M
    inner_steps: int = 1  # N, of tmd's head
    shift: float | None = None  # of the grid; None: the teacher's; TMD: 10
    inner_shift: float | None = None  # of the inner grid; None: the teacher's; TMD: 10
    guidance: float = 1.0  # cfg's scale, distilled in: TMD 3 in stage 1, 5 in stage 2
    class_dropout_prob: float = 0.1  # of stage 1
    # Of stage 1 of tmd alone, as in `rae_bridge.shapes.TransitionShape`; None: its defaults, gated and state
    fusion: Literal["gated", "concat"] | None = None
    anchor: Literal["state", "noise"] | None = None
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    distribution: DistributionConfig = field(default_factory=DistributionConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-5, warmup_steps=0))
    ema_decay: float = 0.9995  # a longer one keeps too much of the start in a short distillation
    ema_share: float | None = None  # in place of ema_decay: 1 - 1 / (ema_share x num_steps)
    stop_factor: float | None = (
        100.0  # a gradient this many times the median norm ends the run; None: none does
    )
    precision: Precision = "fp32"
    tf32: bool = True
    device: Device = "cpu"
    seed: int = 0
    trackers: list[Tracker] = field(default_factory=list)
    log_steps: int = 20
    checkpoint_steps: int = 500
    keep_checkpoints: int = 1
    skip_non_finite: int = 0

    def __post_init__(self) -> None:
        check_keeping(self.keep_checkpoints, self.skip_non_finite)
        if (self.tokens is None) == (self.pictures is None):
            raise ValueError("give either tokens, a folder that holds them, or pictures to encode")
        only = {"meanflow": 1, "dmd2": 2}.get(self.method)
        if only not in (None, self.stage):
            raise ValueError(f"method {self.method} has stage {only} alone, got stage {self.stage}")
        is_second = self.method == "tmd" and self.stage == 2
        if is_second != (self.student is not None):
            has = (
                "needs the weights folder of its stage 1 as student"
                if is_second
                else "starts from the teacher"
            )
            raise ValueError(f"stage {self.stage} of {self.method} {has}; got student={self.student}")
        if self.of_head and (self.method, self.stage) != ("tmd", 1):
            which = "stage 2 of tmd takes those of its stage 1" if is_second else f"{self.method} has none"
            given = ", ".join(f"{name}={value}" for name, value in self.of_head.items())
            raise ValueError(f"{given} is of stage 1 of tmd: {which}; leave it out")
        if self.steps < 1 or self.inner_steps < 1:
            raise ValueError(f"steps {self.steps} and inner_steps {self.inner_steps} must be 1 or more")
        if self.method != "tmd" and self.inner_steps > 1:
            raise ValueError(f"inner_steps {self.inner_steps}: {self.method} has no inner flow, it must be 1")
        if self.matching.warmup_steps > self.num_steps:
            raise ValueError(
                f"warmup_steps {self.matching.warmup_steps} are more than num_steps {self.num_steps}"
            )
        if self.guidance < 1:
            raise ValueError(f"guidance {self.guidance} must be 1 (none) or more")
        if self.ema_share is not None and not 1 <= self.ema_share * self.num_steps <= self.num_steps:
            raise ValueError(f"ema_share {self.ema_share} must span 1 step to all {self.num_steps}")

    @property
    def of_head(self) -> dict[str, str]:
        """How tmd's head sees the inner flow, as far as it is given: fields of a `TransitionShape`."""
        given = {"fusion": self.fusion, "anchor": self.anchor}
        return {name: each for name, each in given.items() if each is not None}

    @property
    def average_decay(self) -> float:
        """Of the averaged weights, at each step after the ramp."""
        return self.ema_decay if self.ema_share is None else 1 - 1 / (self.ema_share * self.num_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostConfig:
    """Stage `rae_bridge.distillation.cost`: what a picture costs, by count, by FLOPs and by the clock."""

    model: str  # a teacher or a student
    teacher: str  # measured beside it
    encoder: str
    decoder: str | None = None
    num_steps: int
    inner_steps: int | None = None  # as in `GenerateConfig`
    teacher_steps: int = 50
    batch_size: int = 16
    repeats: int = 3  # of which the least counts
    device: Device = "cpu"
