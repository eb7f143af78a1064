"""FLOPs of a distillation, from its config and the teacher's size alone. No torch.

Those of the transformers: what encodes live pictures, tmd's fusion and optimisers are not counted. Stage 1's
derivative, which is taken in fp32, is counted as if it were as fast as the rest.
"""

from rae_bridge.distillation.config import DistillConfig
from rae_bridge.flops import part_flops
from rae_bridge.shapes import DiTSize


def num_batches(config: DistillConfig) -> int:
    """That a step reads: in stage 2 one for each update, of the critics and of the student."""
    return 1 if config.stage == 1 else config.distribution.critic_steps + 1


def step_flops(config: DistillConfig, size: DiTSize, num_tokens: int, in_channels: int) -> float:
    """Of a step, over batch_size, and the mean of all steps: a forward pass is one, backward two, through
    frozen weights one."""
    backbone, head = part_flops(size, num_tokens, in_channels)
    return (first_stage_flops if config.stage == 1 else second_stage_flops)(config, backbone, head)


def first_stage_flops(config: DistillConfig, backbone: float, head: float) -> float:
    """`step_flops` of stage 1: while warming up, paths or nothing beside the student; then what the teacher
    says and the derivative."""
    matching, is_guided, whole = config.matching, config.guidance > 1, backbone + head
    warming = matching.warmup_steps / config.num_steps
    is_asked = config.method == "meanflow" and matching.velocity == "teacher"
    taught = whole * (1 + is_guided) if is_asked else 2 * whole * is_guided
    is_path = matching.warmup == "teacher_pairs"
    warmup = matching.pair_steps * whole * (1 + is_guided) if is_path else taught
    derived = 2 * (1 - matching.same_time_share) * (head if config.method == "tmd" else whole)
    return 3 * whole + warming * warmup + (1 - warming) * (taught + derived)


def second_stage_flops(config: DistillConfig, backbone: float, head: float) -> float:
    """`step_flops` of stage 2: the critics' updates and the student's."""
    about, whole = config.distribution, backbone + head
    student = backbone + (config.inner_steps if about.rollout else 1) * head
    is_judged, teacher = about.gan_weight > 0, whole * (1 + (config.guidance > 1))
    critic = student + 3 * whole + 2 * backbone * is_judged
    return about.critic_steps * critic + 3 * student + whole + teacher + 2 * backbone * is_judged
