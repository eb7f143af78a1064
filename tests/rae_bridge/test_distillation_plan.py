"""What a distillation may be asked for, when it stops, what it takes: config, stop rule, plan, recipes."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from encoder.runtime.config import ROOT, load
from encoder.runtime.ranks import Ranks
from encoder.training.finite import FiniteSteps
from encoder.training.flops import PEAK_FLOPS
from rae_bridge.distillation import flops, plan
from rae_bridge.distillation.config import DistillConfig, DistributionConfig, MatchingConfig
from rae_bridge.distillation.learner import StopRule
from rae_bridge.distillation.stages import STAGES
from rae_bridge.distillation.states import Grids
from rae_bridge.distillation.teacher import Teacher
from rae_bridge.dit import build_dit
from rae_bridge.flops import part_flops
from rae_bridge.shapes import DIT_SIZES, DiTConfig, TransitionShape
from rae_bridge.transition import MeanFlowDiT, TransitionDiT

SHAPE = {
    "hidden_size": (128, 192), "depth": (2, 2), "num_heads": (2, 2), "input_size": 4, "in_channels": 6,
    "num_classes": 3,
}  # fmt: skip


def config_of(method="tmd", stage=1, **values):
    values = {"tokens": "t", "teacher": "a", "num_steps": 10, "batch_size": 4, **values}
    if (method, stage) == ("tmd", 2):
        values["student"] = "b"
    return DistillConfig(method=method, stage=stage, **values)


# ---- the stop rule


def test_a_gradient_far_over_the_median_ends_the_run():
    rule = StopRule(100.0)
    for step in range(19):
        rule.see(step, 1e6 if step == 3 else 1.0)  # too early to tell
    rule.see(19, 1.0)
    rule.see(20, 99.0)
    with pytest.raises(
        ValueError, match=r"gradient norm 101 at step 21 .* 100 times the median 1.*warmup_steps"
    ):
        rule.see(21, 101.0)
    never = StopRule(None)
    for step in range(30):
        never.see(step, 10.0**step)


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_is_no_explosion_and_no_part_of_the_median(norm):
    rule = StopRule(100.0)
    for step in range(40):
        rule.see(step, norm if step % 2 else 1.0)
    rule.see(40, norm)
    assert rule.norms == [1.0] * 20
    with pytest.raises(ValueError, match="explodes"):
        rule.see(41, 101.0)


def test_the_largest_norm_is_of_all_steps_not_of_those_that_are_kept():
    rule = StopRule(None)
    for step in range(600):
        rule.see(step, 600.0 - step)
    assert len(rule.norms) == 500 and rule.largest == 600.0


# ---- the config


@pytest.mark.parametrize(
    "values, words",
    [
        ({"method": "meanflow", "stage": 2}, "meanflow has stage 1 alone"),
        ({"method": "dmd2", "stage": 1}, "dmd2 has stage 2 alone"),
        ({"stage": 2, "student": None}, "stage 2 of tmd needs the weights folder of its stage 1"),
        ({"student": "b"}, "starts from the teacher"),
        ({"method": "dmd2", "stage": 2, "student": "b"}, "starts from the teacher"),
        ({"method": "meanflow", "inner_steps": 2}, "has no inner flow"),
        ({"method": "meanflow", "anchor": "noise"}, "anchor=noise is of stage 1 of tmd: meanflow has none"),
        ({"method": "dmd2", "stage": 2, "fusion": "gated"}, "dmd2 has none"),
        ({"stage": 2, "student": "b", "fusion": "concat"}, "tmd takes those of its stage 1"),
        ({"steps": 0}, "must be 1 or more"),
        ({"guidance": 0.5}, "guidance 0.5"),
        ({"matching": MatchingConfig(warmup_steps=11)}, "more than num_steps"),
        ({"pictures": object()}, "either tokens"),
        ({"ema_share": 0.01}, "ema_share"),
    ],
)
def test_impossible_configs_are_refused(values, words):
    fixed = {"tokens": "t", "teacher": "a", "num_steps": 10, "method": "tmd", "stage": 1}
    with pytest.raises(ValueError, match=words):
        DistillConfig(**{**fixed, **values})


@pytest.mark.parametrize("delta", [1e-4, 0.5])
def test_a_difference_that_fp32_would_lose_is_refused(delta):
    with pytest.raises(ValueError, match="delta"):
        MatchingConfig(delta=delta)


# ---- the plan and the recipes


def counted(work):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def least(**values):
    """Stage 1's settings, none of whose steps leaves the derivative out."""
    return {"matching": MatchingConfig(same_time_share=0.0, pair_steps=4, **values)}


def critics(num, **values):
    return {"distribution": DistributionConfig(critic_steps=num, gan_width=4, **values)}


PAIRS = least(warmup="teacher_pairs", warmup_steps=10)


@pytest.mark.parametrize(
    "method, stage, values",
    [
        ("tmd", 1, least()),
        ("tmd", 1, least() | {"guidance": 2.0}),
        ("tmd", 1, {"matching": MatchingConfig(same_time_share=1.0)}),
        ("tmd", 1, least(warmup_steps=10)),
        ("tmd", 1, PAIRS),
        ("tmd", 1, PAIRS | {"guidance": 2.0}),
        ("meanflow", 1, least()),
        ("meanflow", 1, least() | {"guidance": 2.0}),
        ("meanflow", 1, least(velocity="data")),
        ("meanflow", 1, least(velocity="data") | {"guidance": 2.0}),
        ("meanflow", 1, least(warmup_steps=10)),
        ("meanflow", 1, PAIRS | {"guidance": 2.0}),
        ("tmd", 2, critics(1)),
        ("tmd", 2, critics(1) | {"guidance": 2.0}),
        ("tmd", 2, critics(1, rollout=False)),
        ("tmd", 2, critics(2, gan_weight=0.0)),
        ("dmd2", 2, critics(1)),
    ],
)
def test_the_plan_counts_the_flops_and_batches_of_a_step(method, stage, values):
    """Against torch's counter on the step itself, all of whose kind are alike here. Not in the plan:
    embeddings of time, fusion, heads of the discriminator, and what the first layer need not derive."""
    inner_steps = 3 if method == "tmd" else 1
    config = config_of(method, stage, inner_steps=inner_steps, **values)
    kind, about = {"tmd": (TransitionDiT, TransitionShape), "meanflow": (MeanFlowDiT, DiTConfig)}.get(
        method, (build_dit, DiTConfig)
    )
    torch.manual_seed(0)
    more = {"fusion": "concat"} if method == "tmd" else {}  # the smallest
    teacher = Teacher(build_dit(DiTConfig(**SHAPE)).requires_grad_(False), config.guidance, "fp32")
    grids = Grids.of(config, 1.0)
    run = STAGES[stage](config, teacher, kind(about(**SHAPE, **more)), grids, Ranks.start("cpu"))
    read = iter([(torch.randn(4, 6, 4, 4), torch.arange(4) % 3)] * flops.num_batches(config))
    found = counted(lambda: run.step(0, read, FiniteSteps()))
    assert run.num_batches == flops.num_batches(config) and next(read, None) is None
    assert flops.step_flops(config, DiTConfig(**SHAPE), 16, 6) * 4 == pytest.approx(found, rel=0.08)


def test_a_second_stage_is_as_large_as_its_first_made_it(tmp_path):
    of = lambda config: plan.num_parameters(config, DiTConfig(**SHAPE))[0]  # noqa: E731
    TransitionDiT(TransitionShape(**SHAPE, fusion="concat")).save_pretrained(tmp_path / "one")
    first, usual = of(config_of(fusion="concat")), of(config_of())
    later = config_of("tmd", 2), replace(config_of("tmd", 2), student=str(tmp_path / "one"))
    assert first != usual and [of(each) for each in later] == [usual, first]


def test_the_plan_mixes_steps_of_the_warm_up_with_the_others():
    of = lambda steps: flops.step_flops(  # noqa: E731
        config_of(matching=MatchingConfig(warmup="teacher_pairs", warmup_steps=steps)),
        DiTConfig(**SHAPE),
        16,
        6,
    )
    assert of(3) == pytest.approx(0.7 * of(0) + 0.3 * of(10)) and of(10) > 4 * of(0)


@pytest.mark.parametrize(
    "values, peak",
    [({"precision": "bf16"}, 989e12), ({}, 494.5e12), ({"tf32": False}, 67e12)],
    ids=["bf16", "tf32", "fp32"],
)
def test_hours_are_by_the_peak_of_the_precision(values, peak):
    config = config_of(num_steps=10_000, batch_size=256, **values)
    shape = plan.teacher_shape(config.teacher, plan.PlanConfig())
    each = flops.step_flops(config, shape, shape.input_size**2, shape.in_channels)
    hours = 10_000 * 256 * each / (0.4 * peak) / 3600
    assert f"  GPU-hours       {hours:,.1f} on H100" in plan.plan_lines(config, plan.PlanConfig())[-1]
    assert set(plan.FP32_FLOPS) == set(PEAK_FLOPS)


@pytest.mark.parametrize("name", ["tmd_1", "tmd_2", "tmd_meanflow", "tmd_dmd2"])
def test_recipes_load_and_have_a_plan(name, capsys):
    config = load(DistillConfig, ROOT / f"configs/recipes/{name}.yaml")
    assert config.teacher == "runs/rae/dit_xl/weights" and config.steps == 4
    plan.main([str(ROOT / f"configs/recipes/{name}.yaml"), "plan.num_gpus=8"])
    out = capsys.readouterr().out
    assert "head 26% of" in out and "GPU-hours" in out and f"{config.num_steps:,} steps x 256" in out
    backbone, head = part_flops(DIT_SIZES["DiTDH-XL"], 256, 768)
    assert head / (backbone + head) == pytest.approx(0.26, abs=0.01)  # 42 of 161.6 GMAC
    assert backbone + head == pytest.approx(2 * 161.6e9, rel=0.01)


def test_tmds_recipe_is_the_papers_where_it_says_so():
    first, second = (load(DistillConfig, ROOT / f"configs/recipes/tmd_{i}.yaml") for i in (1, 2))
    assert (first.optim.lr, first.matching.same_time_share, first.matching.delta) == (3e-5, 0.75, 5e-3)
    about = second.distribution
    assert (about.critic_steps, about.gan_weight, about.critic_optim.lr) == (5, 0.03, 1e-5)
    assert (second.num_steps, second.optim.lr, about.normaliser) == (4000, 1e-5, "difference")
    assert second.student == "runs/tmd/stage_1/weights" and first.inner_steps == second.inner_steps


@pytest.mark.parametrize("words", [["plan.size=DiTDH-XX"], ["plan.gpu=H1000"], ["stage=3"], ["plan.gpus=1"]])
def test_a_plan_of_what_is_not_is_one_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        plan.main([str(ROOT / "configs/recipes/tmd_1.yaml"), *words])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
