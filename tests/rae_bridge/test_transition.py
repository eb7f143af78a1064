"""Few-step students: their start, the inner flow's map and its sign, sampling by count, files."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from encoder.runtime.stage import write_json
from rae_bridge import draw, generate
from rae_bridge.config import GenerateConfig, GuidanceConfig
from rae_bridge.distillation import cost
from rae_bridge.distillation.config import CostConfig
from rae_bridge.dit import DiT, DiTDH, build_dit
from rae_bridge.sample import sample, sample_transitions, time_grid
from rae_bridge.shapes import DiTConfig, TransitionShape
from rae_bridge.transition import (
    MeanFlowDiT,
    TransitionDiT,
    inner_step,
    load_model,
    mean_velocity,
    start_from,
)

SIZE = {"hidden_size": (16, 24), "depth": (2, 1), "num_heads": (2, 2), "input_size": 2, "in_channels": 6}
SHAPE = {**SIZE, "num_classes": 3}


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def teacher_of(**more):
    return randomised(build_dit(DiTConfig(**SHAPE, **more))).eval()


def student_of(teacher, cls=TransitionDiT, **more):
    torch.manual_seed(5)
    shape = TransitionShape if cls is TransitionDiT else DiTConfig
    student = cls(shape(**SHAPE, prediction=teacher.config.prediction, **more)).eval()
    start_from(student, teacher.state_dict())
    return student


def inputs(num=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x_t, inner = torch.randn(2, num, 6, 2, 2, generator=generator)
    return x_t, torch.rand(num, generator=generator), torch.arange(num) % 3, inner


@pytest.mark.parametrize("prediction", ["velocity", "latents"])
@pytest.mark.parametrize("fusion", ["gated", "concat"])
@pytest.mark.parametrize("anchor", ["state", "noise"])
@pytest.mark.parametrize("num_inner", [1, 2, 4])
def test_before_training_the_student_is_its_teacher(prediction, fusion, anchor, num_inner):
    teacher = teacher_of(prediction=prediction)
    student = student_of(teacher, fusion=fusion, anchor=anchor)
    x_t, t, y, inner = inputs()
    with torch.no_grad():
        w = student(x_t, t, y, inner, time_grid(num_inner, 3.0, "zero"))
        expected = teacher(x_t, t, y)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(w, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_before_training_a_meanflow_student_is_its_teacher_to_any_time():
    teacher = teacher_of()
    student = student_of(teacher, MeanFlowDiT)
    x_t, t, y, _ = inputs()
    for r in (torch.zeros_like(t), t / 2, t):
        torch.testing.assert_close(student(x_t, t, y, r), teacher(x_t, t, y), rtol=0, atol=0)


@pytest.mark.parametrize("fusion", ["gated", "concat"])
def test_every_new_tensor_can_leave_its_start(fusion):
    """The first gradient reaches what is zero; the second, after a step, all that hides behind it."""
    student = student_of(teacher_of(), fusion=fusion).train()
    x_t, t, y, inner = inputs()
    optimiser = torch.optim.SGD([each for each in student.parameters() if each.requires_grad], lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        student(x_t, t, y, inner, [1.0, 0.4, 0.0]).square().mean().backward()
        optimiser.step()
    stuck = [name for name, each in student.named_parameters() if each.requires_grad and not each.grad.any()]
    assert stuck == []


def test_the_gate_stays_below_one_and_replaces_the_tokens_when_it_opens():
    fusion = student_of(teacher_of()).fusion
    x, w, time = torch.randn(2, 4, 24), torch.randn(2, 4, 24), torch.zeros(2, 1, 16)
    with torch.no_grad():
        fusion.modulation.bias[48:] = 40.0
        fusion.mlp.w3.weight.zero_(), fusion.mlp.w3.bias.zero_()
        torch.testing.assert_close(fusion(x, w, time), w, rtol=0, atol=1e-5)
        fusion.modulation.bias[48:] = -40.0
        closed = 1 / (1 + math.exp(2))
        torch.testing.assert_close(fusion(x, w, time), x - closed / (1 - closed) * (w - x))


def test_the_flow_map_of_a_linear_field_goes_against_the_velocity():
    """dw/ds = a w + b has the mean velocity u = (w_s - w_r) / (s - r), known in closed form: w_r is
    w_s - (s - r) u; the printed sign misses it."""
    a, b, s, r = 0.8, 0.3, 0.9, 0.2
    w_s = torch.tensor([1.5, -0.7], dtype=torch.float64)
    solution = lambda w, by: (w + b / a) * math.exp(a * by) - b / a  # noqa: E731
    exact = solution(w_s, r - s)
    span = s - r
    u = (w_s + b / a) * (1 - math.exp(-a * span)) / span
    torch.testing.assert_close(inner_step(w_s, u, s, r), exact, rtol=1e-12, atol=0)
    assert (w_s + span * u - exact).abs().max() > 1
    num, w = 20_000, w_s.clone()  # the field itself, in small steps
    for _ in range(num):
        w = w - span / num * (a * w + b)
    torch.testing.assert_close(w, exact, rtol=1e-3, atol=0)


def test_both_anchors_agree_at_s_1_and_the_papers_narrows_a_normal_distribution():
    """Of w ~ N(0, 1) the true flow is w_s = sqrt((1-s)^2 + s^2) w_1, and E[w | w_s] is linear. The mean
    velocity of the `noise` anchor is w_1 minus the mean of E[w | w_s] over s: asinh(1) / sqrt(2) = 0.623 w_1
    is left of w_1 after a step from 1 to 0, where w_1 itself should be."""
    w_1 = torch.tensor([2.0], dtype=torch.float64)
    head = torch.tensor([0.4], dtype=torch.float64)
    assert mean_velocity(head, w_1, w_1, 1.0, "state") == mean_velocity(head, w_1, w_1, 1.0, "noise")

    def posterior(w_s, s):
        return (1 - s) / ((1 - s) ** 2 + s**2) * w_s

    times = torch.linspace(1, 0, 4001, dtype=torch.float64).tolist()
    ends = {}
    for anchor in ("state", "noise"):
        w = w_1
        for s, r in itertools.pairwise(times):
            w = inner_step(w, mean_velocity(posterior(w, s), w, w_1, s, anchor), s, r)
        ends[anchor] = float(w)
    assert ends["state"] == pytest.approx(2.0, rel=1e-3)
    middle = [(a + b) / 2 for a, b in itertools.pairwise(times)]
    path = [posterior(math.sqrt((1 - s) ** 2 + s**2) * w_1, s) for s in middle]
    biased = inner_step(w_1, mean_velocity(sum(path) / len(path), w_1, w_1, 1.0, "noise"), 1.0, 0.0)
    assert float(biased) == pytest.approx(2 * math.asinh(1) / math.sqrt(2), rel=1e-4)
    assert ends["noise"] < 0.9 * 2  # and with many steps of the instantaneous one it is narrower too


class Counting(TransitionDiT):
    def __init__(self, shape):
        super().__init__(shape)
        self.calls = {"backbone": 0, "head": 0}

    def backbone(self, *args, **kwargs):
        self.calls["backbone"] += 1
        return super().backbone(*args, **kwargs)

    def head(self, *args, **kwargs):
        self.calls["head"] += 1
        return super().head(*args, **kwargs)


@pytest.mark.parametrize("num_steps, num_inner", [(1, 1), (2, 2), (4, 3)])
def test_m_outer_and_n_inner_steps_call_the_backbone_m_and_the_head_m_n_times(num_steps, num_inner):
    student = randomised(Counting(TransitionShape(**SHAPE)))
    x, _, y, _ = inputs()
    inner = torch.randn(num_steps, *x.shape)
    grid = time_grid(num_inner, 1.0, "zero")
    settings = {"num_steps": num_steps, "shift": 2.0, "inner_noise": inner, "inner_times": grid}
    first = sample_transitions(student, x, y, **settings)
    assert student.calls == {"backbone": num_steps, "head": num_steps * num_inner}
    assert torch.equal(first, sample_transitions(student, x, y, **settings))
    other = sample_transitions(student, x, y, **{**settings, "inner_noise": inner + 1})
    assert not torch.equal(first, other)


def test_one_step_of_one_step_is_one_call_of_the_head():
    student = randomised(student_of(teacher_of()), seed=3)
    x, _, y, inner = inputs()
    one, zero = torch.ones(len(x)), torch.zeros(len(x))
    with torch.no_grad():
        condition, _ = student.backbone(x, one, y)
        head = student.inner_head(condition, x, one, inner, one, zero)
    drawn = sample_transitions(student, x, y, num_steps=1, shift=2.0, inner_noise=inner[None])
    torch.testing.assert_close(drawn, x - head, rtol=1e-5, atol=1e-5)


def test_an_untrained_student_samples_what_euler_samples():
    teacher = teacher_of()
    x, _, y, _ = inputs()
    expected = sample(teacher, x, y, num_steps=3, shift=2.0)
    inner = torch.randn(3, *x.shape)
    for student in (student_of(teacher), student_of(teacher, MeanFlowDiT)):
        drawn = sample_transitions(student, x, y, num_steps=3, shift=2.0, inner_noise=inner)
        torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_steps": 0}, "num_steps 0"),
        ({"num_steps": 3}, "inner noise"),
        ({"inner_times": [1.0, 0.5]}, "fall from 1 to 0"),
        ({"inner_times": [1.0, 0.2, 0.4, 0.0]}, "fall from 1 to 0"),
    ],
)
def test_impossible_steps_are_refused(change, words):
    x, _, y, _ = inputs()
    settings = {"num_steps": 2, "shift": 1.0, "inner_noise": torch.randn(2, *x.shape)}
    with pytest.raises(ValueError, match=words):
        sample_transitions(student_of(teacher_of()), x, y, **{**settings, **change})


@pytest.mark.parametrize(
    "cls, more", [(TransitionDiT, {"fusion": "concat", "anchor": "noise"}), (MeanFlowDiT, {})]
)
def test_a_student_is_saved_and_read_back(cls, more, tmp_path):
    student = randomised(student_of(teacher_of(), cls, **more), seed=4)
    student.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert type(again) is cls and again.config == student.config and not again.training
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in student.state_dict().items())
    with pytest.raises(ValueError, match=f"'{cls.name}', not 'dit'"):
        DiT.from_pretrained(tmp_path)


def test_a_teacher_is_read_by_the_same_name_and_a_stranger_is_refused(tmp_path):
    teacher_of().save_pretrained(tmp_path / "teacher")
    assert type(load_model(tmp_path / "teacher")) is DiTDH
    write_json(tmp_path / "config.json", {"model": "vae", "shape": {}})
    with pytest.raises(ValueError, match="'vae', not 'dit'"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_model(tmp_path / "nowhere")


def test_a_teacher_of_another_shape_does_not_fit():
    wide = randomised(build_dit(DiTConfig(**{**SHAPE, "hidden_size": (32, 24)})))
    with pytest.raises(ValueError, match="does not fit the student"):
        start_from(TransitionDiT(TransitionShape(**SHAPE)), wide.state_dict())


@pytest.fixture
def folders(tmp_path, write_model, invertible):
    """A teacher's weights folder and one of a student of it, as `rae_bridge.distill` leaves it."""
    teacher, student = (write_model(tmp_path / name, invertible) for name in ("teacher", "student"))
    torch.manual_seed(2)
    model = TransitionDiT(TransitionShape(**dataclasses.asdict(DiT.from_pretrained(teacher).config)))
    randomised(model, seed=6).save_pretrained(student)
    about = {"method": "tmd", "inner_steps": 2, "inner_shift": 1.5}
    write_json(student / "flow.json", {"shift": 2.0, "student": about})
    return str(teacher), str(student)


def samples(tmp_path, name, **values):
    out = tmp_path / name
    out.mkdir()
    generate.run(GenerateConfig(num_samples=7, num_steps=2, **values), out)
    return np.load(out / "samples.npz")["arr_0"].astype(int)


def test_pictures_of_a_student_depend_on_seed_and_index_alone(folders, tmp_path, invertible):
    values = {"model": folders[1], "encoder": invertible}
    whole = samples(tmp_path, "whole", **values)
    by_threes = samples(tmp_path, "threes", batch_size=3, **values)
    assert np.abs(whole - by_threes).max() <= 1
    assert np.array_equal(whole, samples(tmp_path, "learnt", inner_steps=2, **values))
    assert np.abs(whole - samples(tmp_path, "one", inner_steps=1, **values)).mean() > 1
    assert np.abs(whole - samples(tmp_path, "seed", seed=1, **values)).mean() > 1


def test_the_drawn_grid_of_a_student_is_its_samples(folders, tmp_path, invertible):
    whole = samples(tmp_path, "whole", model=folders[1], encoder=invertible, inner_steps=3)
    words = ["--model", folders[1], "--encoder", invertible, "--steps", "2", "--inner", "3", "--columns", "1"]
    draw.draw_grid(
        draw.parse_arguments([*words, "--classes", "0", "1", "2", "--out", str(tmp_path / "a.png")])
    )
    drawn = np.array(Image.open(tmp_path / "a.png")).reshape(3, 8, 8, 3)
    assert np.abs(drawn.astype(int) - whole[:3]).max() <= 1


def test_ways_of_sampling_that_a_model_does_not_know_are_refused(folders, tmp_path, invertible):
    teacher, student = folders
    values = {"model": student, "encoder": invertible}
    guided = GuidanceConfig(kind="cfg", scale=2.0)
    for i, wrong in enumerate(({"guidance": guided}, {"solver": "heun"}, {"end": "rae"})):
        with pytest.raises(ValueError, match="no guidance"):
            samples(tmp_path, str(i), **values, **wrong)
    with pytest.raises(ValueError, match="inner_steps 2 needs"):
        samples(tmp_path, "inner", model=teacher, encoder=invertible, inner_steps=2)
    with pytest.raises(ValueError, match="must be 1 or more"):
        samples(tmp_path, "none", inner_steps=0, **values)
    weaker = GuidanceConfig(kind="autoguidance", scale=2.0, model=student)
    with pytest.raises(ValueError, match="is a student"):
        samples(tmp_path, "weaker", model=teacher, encoder=invertible, guidance=weaker)


def test_what_a_picture_costs_by_count_and_by_flops(folders, tmp_path, invertible):
    """The teacher has one block in each part: N calls of the head cost M (1 + (N - 1) / 2) by count. By FLOPs
    a student's step is a forward pass, N - 1 more heads, and what is new in it."""
    teacher, student = folders
    found = {}
    for name, model, num_inner in (("teacher", teacher, None), ("one", student, 1), ("three", student, 3)):
        about = {"teacher": teacher, "encoder": invertible, "repeats": 1, "batch_size": 2, "teacher_steps": 8}
        config = CostConfig(model=model, num_steps=4, inner_steps=num_inner, **about)
        found[name] = cost.run(config, tmp_path)
    value = lambda name, key: found[name]["metrics"][key]["value"]  # noqa: E731
    assert [value(name, "steps") for name in found] == [4, 4, 4]
    assert [value(name, "nfe") for name in found] == [4, 4, 8]
    assert value("teacher", "nfe/flops") == pytest.approx(4)
    share = found["teacher"]["head_share"]
    assert 0.4 < share < 0.7
    more = value("three", "gflops") / value("one", "gflops")
    assert 1 + 2 * share * 0.8 < more < 1 + 2 * share * 1.5
    assert value("one", "nfe/flops") > 4 and value("teacher", "gflops/decoder") > 0
    forward = value("teacher", "gflops") / 4
    model = DiT.from_pretrained(teacher)
    x, y = torch.randn(1, 48, 2, 2), torch.tensor([0])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x, torch.ones(1), y)
    assert forward == pytest.approx(counter.get_total_flops() / 1e9)
    assert value("teacher", "seconds") > 0 and value("teacher", "times faster") > 0
