"""The parts of distillation against their formulas: identities, targets, gradients, states, scores."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.func import jvp

from rae_bridge.distillation.config import DistillConfig, DistributionConfig, MatchingConfig
from rae_bridge.distillation.dmd2 import Generator
from rae_bridge.distillation.matching import (
    Matching,
    adaptive_loss,
    central_difference,
    head_target,
    velocity_target,
)
from rae_bridge.distillation.states import Grids, below, draw_states
from rae_bridge.distillation.teacher import Teacher, lesson
from rae_bridge.dit import build_dit
from rae_bridge.sample import Guidance, guided_velocity, sample
from rae_bridge.shapes import DiTConfig, TransitionShape
from rae_bridge.transition import MeanFlowDiT, TransitionDiT, mean_velocity, start_from

SHAPE = {
    "hidden_size": (16, 24), "depth": (2, 1), "num_heads": (2, 2), "input_size": 2, "in_channels": 6,
    "num_classes": 3,
}  # fmt: skip
NUM = 16


def config_of(method="tmd", stage=1, **values):
    values = {"tokens": "t", "teacher": "a", "num_steps": 10, "batch_size": NUM, **values}
    if (method, stage) == ("tmd", 2):
        values["student"] = "b"
    return DistillConfig(method=method, stage=stage, **values)


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def teacher_of(scale=1.0, **more):
    torch.manual_seed(7)  # of the frozen frequencies
    model = randomised(build_dit(DiTConfig(**SHAPE, **more))).requires_grad_(False).eval()
    return Teacher(model, scale, "fp32")


def student_of(teacher, cls=TransitionDiT):
    shape = TransitionShape if cls is TransitionDiT else DiTConfig
    student = cls(shape(**SHAPE))
    start_from(student, teacher.model.state_dict())
    return randomised(student, seed=3)


def states_of(config, step=0, part=slice(None), what=""):
    latents = torch.randn(NUM, 6, 2, 2, generator=torch.Generator().manual_seed(1))
    y, grids = torch.arange(NUM) % 3, Grids.of(config, 2.0)
    return draw_states(latents[part], y[part], config, grids, step, part, null=3, what=what)


def spread(t):
    return t[:, None, None, None]


# ---- the identity


def linear_field(a, b):
    """v = a x + b, and its exact mean velocity from s down to r."""
    velocity = lambda x: a * x + b  # noqa: E731
    mean = lambda x, s, r: (x + b / a) * (1 - torch.exp(-a * spread(s - r))) / spread(s - r)  # noqa: E731
    return velocity, mean


def test_the_identity_holds_on_a_linear_field_and_only_with_its_sign():
    velocity, mean = linear_field(0.8, 0.3)
    x, s, r = torch.randn(4, 2, 1, 1), torch.tensor([0.9, 0.5, 1.0, 0.4]), torch.tensor([0.1, 0.2, 0.0, 0.3])
    u, v = mean(x, s, r), velocity(x)
    slope = central_difference(lambda x, s: mean(x, s, r), x, v, s, 5e-3)
    torch.testing.assert_close(velocity_target(v, slope, s, r), u, rtol=1e-3, atol=1e-3)
    assert (v + spread(s - r) * slope - u).abs().max() > 0.1


@pytest.mark.parametrize("at, points", [(0.5, (0.495, 0.505)), (1.0, (0.995, 1.0)), (0.0, (0.0, 0.005))])
def test_a_central_difference_stays_in_the_interval(at, points):
    """And in fp32: bf16 would round s x W to 1/256 of it, where the points lie 1/100 or less apart."""
    asked, weight = [], torch.tensor([[0.7, -1.3], [0.4, 2.1]])

    def linear(x, s):
        asked.append(float(s))
        return (x @ weight) * spread(s)

    x, v = torch.tensor([[[[2.0, -0.5]]]]), torch.tensor([[[[-1.5, 0.3]]]])
    with torch.autocast("cpu", torch.bfloat16):
        slope = central_difference(linear, x.bfloat16(), v, torch.tensor([at]), 5e-3)
    assert sorted(asked) == pytest.approx(sorted(points)) and slope.dtype == torch.float32
    nearest = sum(points) / 2  # where the difference of s (x + (s - at) v) W is exact
    torch.testing.assert_close(slope, ((2 * nearest - at) * v + x) @ weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("anchor", ["state", "noise"])
def test_the_heads_target_is_the_identity_of_u_solved_for_the_head(anchor):
    """Against u's own derivative in float64, by automatic differentiation."""
    generator = torch.Generator().manual_seed(0)
    w, noise = torch.randn(2, 5, 3, 1, 1, generator=generator, dtype=torch.float64)
    s = torch.tensor([0.2, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
    r = torch.tensor([0.0, 0.5, 0.3, 0.1, 0.0], dtype=torch.float64)
    w_s, v = (1 - spread(s)) * w + spread(s) * noise, noise - w
    head_of = lambda x, s: torch.sin(2 * x) + spread(s) ** 2 * x  # noqa: E731
    u_of = lambda x, s: mean_velocity(head_of(x, s), x, noise, spread(s), anchor)  # noqa: E731
    head, slope = jvp(head_of, (w_s, s), (v, torch.ones_like(s)))
    _, du = jvp(u_of, (w_s, s), (v, torch.ones_like(s)))
    u_target = velocity_target(v, du, s, r)
    expected = w_s - spread(s) * u_target if anchor == "state" else noise - u_target
    found = head_target(w, w_s, noise, head, slope, s, r, anchor)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(head_target(w, w_s, noise, head, slope, s, s, anchor), w)  # r = s: w itself


def test_the_loss_weighs_each_picture_by_its_own_error_held_fixed():
    said = torch.randn(4, 2, 3, 3, dtype=torch.float64).float().requires_grad_()
    target = torch.zeros(4, 2, 3, 3)
    loss, error = adaptive_loss(said, target, 0.5)
    errors = said.detach().square().flatten(1).mean(1)
    assert loss.item() == pytest.approx(float((errors / (errors + 0.5)).mean()), rel=1e-6)
    assert error.item() == pytest.approx(float(errors.mean()), rel=1e-6)
    loss.backward()
    expected = 2 * said.detach() / 18 / 4 / spread(errors + 0.5)
    torch.testing.assert_close(said.grad, expected)


def test_stage_1_learns_what_its_formulas_say():
    """Loss and target put together by hand from the student's calls."""
    teacher, config = teacher_of(), config_of(matching=MatchingConfig(same_time_share=0.0), inner_steps=2)
    student, states = student_of(teacher), states_of(config)
    w = states.velocity
    loss, error = Matching(student, config)(states, w, False)
    with torch.no_grad():
        condition, _ = student.backbone(states.x_t, states.t, states.y)
        call = lambda w_s, s: student.inner_head(condition, states.x_t, states.t, w_s, s, states.r)  # noqa: E731
        w_s = (1 - spread(states.s)) * w + spread(states.s) * states.inner_noise
        head = call(w_s, states.s)
        slope = central_difference(call, w_s, states.inner_noise - w, states.s, 5e-3)
        ratio = spread(states.r / states.s)
        target = ratio * w + (1 - ratio) * head - spread(states.s - states.r) * slope
        errors = (head - target).square().flatten(1).mean(1)
    assert error.item() == pytest.approx(float(errors.mean()), rel=1e-4)
    assert loss.item() == pytest.approx(float((errors / (errors + 1)).mean()), rel=1e-4)
    loss.backward()
    assert all(each.grad is not None for each in student.blocks.parameters())


def test_stage_1_of_meanflow_takes_velocity_and_tangent_from_the_teacher():
    teacher = teacher_of()
    config = config_of("meanflow", matching=MatchingConfig(same_time_share=0.0))
    student, states = student_of(teacher, MeanFlowDiT), states_of(config)
    states, velocity, is_pair = lesson(teacher, states, config, Grids.of(config, 2.0), 0, slice(None))
    torch.testing.assert_close(velocity, teacher.model(states.x_t, states.t, states.y))
    _, error = Matching(student, config)(states, velocity, is_pair)
    with torch.no_grad():
        call = lambda x, t: student(x, t, states.y, states.r)  # noqa: E731
        slope = central_difference(call, states.x_t, velocity, states.t, 5e-3)
        target = velocity - spread(states.t - states.r) * slope
        expected = (call(states.x_t, states.t) - target).square().mean()
    assert error.item() == pytest.approx(float(expected), rel=1e-4) and not is_pair


# ---- states and lessons


def test_states_lie_on_the_path_and_on_the_students_grids():
    config = config_of(steps=4, inner_steps=2, matching=MatchingConfig(same_time_share=0.0))
    states, grids = states_of(config), Grids.of(config, 2.0)
    t = spread(states.t)
    torch.testing.assert_close(states.x_t, (1 - t) * states.latents + t * states.noise)
    assert {round(float(each), 5) for each in states.t} <= {round(each, 5) for each in grids.times[:-1]}
    expected = [max(p for p in grids.inner_times if p < s) for s in states.s.tolist()]
    assert states.r.tolist() == pytest.approx(expected)
    second = states_of(config_of(stage=2, steps=4, inner_steps=2))
    assert set(second.s.tolist()) <= {1.0, float(torch.tensor(grids.inner_times[1]))}
    assert not second.r.any() and (second.y < 3).all()
    assert torch.equal(below([1.0, 0.5, 0.0], torch.tensor([1.0, 0.5, 0.4])), torch.tensor([0.5, 0.0, 0.0]))


def test_grids_are_the_teachers_unless_others_are_given():
    own = config_of(steps=2, inner_steps=2, shift=3.0, inner_shift=1.0, matching=MatchingConfig(s_shift=2.0))
    grids = Grids.of(own, 6.93)
    assert (grids.times, grids.inner_times, grids.s_shift) == ([1.0, 0.75, 0.0], [1.0, 0.5, 0.0], 2.0)
    usual = Grids.of(config_of(steps=2, inner_steps=2), 6.9282)
    assert usual.times == usual.inner_times and usual.times[1] == pytest.approx(0.874, abs=1e-3)
    assert all(t > r for t, r in itertools.pairwise(usual.times))


def test_the_grid_of_m_steps_holds_that_of_its_divisors():
    of = lambda steps: Grids.of(config_of(steps=steps), 6.93).times  # noqa: E731
    for few in (1, 2, 4):
        assert all(min(abs(t - point) for point in of(8)) < 1e-12 for t in of(few))


def test_shares_of_equal_times_and_of_dropped_classes_are_kept():
    config = config_of(batch_size=NUM)
    equal = [torch.equal(states.r, states.s) for states in (states_of(config, step) for step in range(300))]
    assert sum(equal) / 300 == pytest.approx(0.75, abs=0.08)
    dropped = torch.cat([states_of(config, step).y == 3 for step in range(300)]).float().mean()
    assert dropped == pytest.approx(0.1, abs=0.015)  # once: not 0.19
    warm = replace(config, num_steps=50, matching=MatchingConfig(same_time_share=0.0, warmup_steps=2))
    assert [torch.equal(s.r, s.s) for s in (states_of(warm, i) for i in range(4))] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("method", ["tmd", "meanflow"])
def test_states_depend_on_seed_step_name_and_row_alone(method):
    config = config_of(method)
    whole = states_of(config)
    halves = [states_of(config, part=part) for part in (slice(0, 8), slice(8, 16))]
    for name in ("x_t", "t", "y", "s", "r", "inner_noise"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(each, name) for each in halves]))
    for other in (
        states_of(config, step=1),
        states_of(replace(config, seed=1)),
        states_of(config, what="b/"),
    ):
        assert not torch.equal(whole.noise, other.noise)
    assert not torch.equal(whole.noise, whole.inner_noise)


def test_a_guided_teacher_is_the_samplers_and_pushes_no_one_without_a_class():
    teacher, plain = teacher_of(scale=2.5), teacher_of()
    x, y = torch.randn(4, 6, 2, 2), torch.tensor([0, 1, 2, 3])
    t = torch.full((4,), 0.6)
    expected = guided_velocity(plain.model, x[:3], 0.6, y[:3], Guidance(kind="cfg", scale=2.5))
    torch.testing.assert_close(teacher.velocity(x, t, y)[:3], expected, rtol=1e-5, atol=1e-5)
    assert not teacher.push(x, t, y)[3].any() and not plain.push(x, t, y).any()
    config = config_of()
    states = states_of(config)
    taught = lesson(teacher, states, config, Grids.of(config, 2.0), 0, slice(None))[1]
    push = teacher.push(states.x_t, states.t, states.y)
    torch.testing.assert_close(taught, states.noise - states.latents + push)


@pytest.mark.parametrize("method", ["tmd", "meanflow"])
def test_pairs_are_two_states_of_the_teachers_path_at_their_own_times(method):
    warmup = MatchingConfig(warmup="teacher_pairs", warmup_steps=5, pair_steps=4)
    config, teacher = config_of(method, matching=warmup), teacher_of()
    states, grids = states_of(config), Grids.of(config, 2.0)
    found, mean, is_pair = lesson(teacher, states, config, grids, 0, slice(None))
    assert is_pair and not lesson(teacher, states, config, grids, 5, slice(None))[2]
    times = Grids.of(replace(config, steps=4), 2.0).times
    path = teacher.path(states.noise, states.y, times)
    end = sample(teacher.model, states.noise, states.y, num_steps=4, shift=2.0)
    torch.testing.assert_close(path[-1], end)
    for row in range(NUM):
        i = min(range(4), key=lambda i: abs(times[i] - float(found.t[row])))
        assert torch.equal(found.x_t[row], path[i][row])
        r = float(found.r[row]) if method == "meanflow" else 0.0
        j = min(range(5), key=lambda j: abs(times[j] - r))
        assert j > i
        expected = (path[i][row] - path[j][row]) / (times[i] - times[j])
        torch.testing.assert_close(mean[row], expected, rtol=1e-4, atol=1e-4)


# ---- the generator of distribution matching


@pytest.mark.parametrize("num_inner", [1, 2, 4])
def test_gradients_reach_the_backbone_through_all_inner_steps(num_inner):
    teacher, config = teacher_of(), config_of(stage=2, inner_steps=num_inner)
    student, calls = student_of(teacher), []
    original = student.inner_head
    student.inner_head = lambda *args: calls.append(original(*args)) or calls[-1]
    made = Generator(student, config, Grids.of(config, 2.0))(states_of(config))
    for call in calls:
        call.retain_grad()
    made.square().mean().backward()
    assert len(calls) == num_inner and all(call.grad.abs().sum() > 0 for call in calls)
    first = [each for name, each in student.named_parameters() if name.startswith(("s_embedder", "blocks.0"))]
    assert all(each.grad.abs().sum() > 0 for each in first)


def test_without_rollout_one_call_starts_from_the_datas_inner_state():
    config = config_of(stage=2, inner_steps=2, distribution=DistributionConfig(rollout=False))
    student, states = student_of(teacher_of()), states_of(config)
    made = Generator(student, config, Grids.of(config, 2.0))(states)
    w = states.velocity
    w_s = (1 - spread(states.s)) * w + spread(states.s) * states.inner_noise
    condition, _ = student.backbone(states.x_t, states.t, states.y)
    head = student.inner_head(condition, states.x_t, states.t, w_s, states.s, torch.zeros_like(states.s))
    torch.testing.assert_close(made, states.x_t - spread(states.t) * head, rtol=1e-4, atol=1e-4)


def test_the_whole_networks_latents_are_its_velocitys():
    config = config_of("dmd2", 2)
    model, states = teacher_of().model, states_of(config)
    made = Generator(model, config, Grids.of(config, 2.0))(states)
    velocity = model(states.x_t, states.t, states.y)
    torch.testing.assert_close(made, states.x_t - spread(states.t) * velocity)
