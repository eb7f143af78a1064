"""The samplers: exactness, order, RAE's grid, guidance formulas, and what each step costs."""

import itertools
import math
from functools import partial

import pytest
import torch

from rae_bridge.flow import T_MAX
from rae_bridge.sample import Guidance, sample, time_grid

NUM_CLASSES = 4


class Counting:
    """A velocity field that counts its calls and remembers times, batch sizes and labels."""

    num_classes = NUM_CLASSES

    def __init__(self, field):
        self.field, self.times, self.batches, self.labels = field, [], [], []

    def __call__(self, x_t, t, y):
        assert t.shape == (len(x_t),) and y.shape == (len(x_t),)
        self.times.append(float(t[0]))
        self.batches.append(len(x_t))
        self.labels.append(y.tolist())
        return self.field(x_t, t, y)


def noise(batch=2):
    return torch.randn(batch, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def classes(batch=2):
    return torch.arange(batch) % NUM_CLASSES


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("shift", [1.0, 6.9282])
def test_constant_velocity_is_integrated_exactly(solver, shift):
    data, start = noise() + 3, noise()
    for num_steps in (2, 6):
        result = sample(
            lambda x_t, t, y: start - data, start, classes(), num_steps=num_steps, shift=shift, solver=solver
        )
        torch.testing.assert_close(result, data)


def error_at(solver, num_steps):
    """dx/dt = t x has the solution x(0) = x(1) exp(-1/2)."""
    result = sample(
        lambda x_t, t, y: t[:, None, None, None] * x_t,
        noise(),
        classes(),
        num_steps=num_steps,
        shift=1.0,
        solver=solver,
    )
    return float((result - noise() * math.exp(-0.5)).norm())


def test_euler_is_of_first_order_and_heun_of_second():
    assert error_at("euler", 64) / error_at("euler", 128) == pytest.approx(2, rel=0.05)
    assert error_at("heun", 64) / error_at("heun", 128) == pytest.approx(4, rel=0.05)


def test_the_grids_end_where_they_say():
    assert time_grid(7, 6.9282, "zero")[0] == 1 and time_grid(7, 6.9282, "zero")[-1] == 0
    grid = time_grid(49, 6.9282, "rae")
    assert len(grid) == 50 and grid[0] == 1
    assert grid[-1] == pytest.approx(0.00689, abs=1e-5)  # measured on the official code
    assert all(later < earlier for earlier, later in itertools.pairwise(grid))


def test_rae_grid_equals_the_official_sampler_step_by_step():
    field = Counting(lambda x_t, t, y: torch.sin(x_t) * t[:, None, None, None] + y[:, None, None, None])
    result = sample(field, noise(), classes(), num_steps=49, shift=6.9282, end="rae")
    x = noise()
    u = torch.linspace(0, T_MAX, 50, dtype=torch.float64)
    t = 6.9282 * (1 - u) / (1 + (6.9282 - 1) * (1 - u))
    for now, after in itertools.pairwise(t):
        x = x + (after - now) * (torch.sin(x) * now + classes()[:, None, None, None])
    assert len(field.times) == 49 and field.times[0] == 1.0
    torch.testing.assert_close(result, x)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("end", ["rae", "zero"])
@pytest.mark.parametrize("kind", [None, "cfg", "autoguidance"])
def test_num_steps_is_the_number_of_model_calls(solver, end, kind):
    model, weaker = Counting(lambda x_t, t, y: x_t), Counting(lambda x_t, t, y: x_t)
    guidance = kind and Guidance(kind=kind, scale=1.5, model=weaker if kind == "autoguidance" else None)
    sample(model, noise(), classes(), num_steps=8, shift=2.0, solver=solver, end=end, guidance=guidance)
    assert len(model.times) == 8
    assert set(model.batches) == {4 if kind == "cfg" else 2}
    assert len(weaker.times) == (8 if kind == "autoguidance" else 0)


def test_guidance_costs_nothing_outside_its_interval_or_at_scale_one():
    model, weaker = Counting(lambda x_t, t, y: x_t), Counting(lambda x_t, t, y: x_t)
    guided = partial(sample, model, noise(), classes(), shift=1.0)
    guided(num_steps=10, guidance=Guidance(kind="cfg", scale=2, interval=(0.3, 0.65)))
    assert [t for t, batch in zip(model.times, model.batches, strict=True) if batch == 4] == pytest.approx(
        [0.6, 0.5, 0.4, 0.3]
    )
    by_another = Guidance(kind="autoguidance", scale=2, interval=(0.35, 0.65), model=weaker)
    guided(num_steps=10, guidance=by_another)
    assert weaker.times == pytest.approx([0.6, 0.5, 0.4])
    model.batches.clear()
    guided(num_steps=5, guidance=Guidance(kind="cfg", scale=1.0))
    assert model.batches == [2] * 5


def test_cfg_mixes_class_and_null_class_velocities():
    model = Counting(lambda x_t, t, y: torch.ones_like(x_t) * y[:, None, None, None])
    result = sample(
        model, noise(), classes(), num_steps=1, shift=1.0, guidance=Guidance(kind="cfg", scale=3.0)
    )
    velocity = NUM_CLASSES + 3.0 * (classes() - NUM_CLASSES)
    torch.testing.assert_close(result, noise() - velocity.double()[:, None, None, None])
    assert model.labels == [[0, 1, NUM_CLASSES, NUM_CLASSES]]


def test_autoguidance_mixes_two_models_with_the_same_class():
    strong, weak = (
        Counting(lambda x_t, t, y: torch.full_like(x_t, 2.0)),
        Counting(lambda x_t, t, y: torch.full_like(x_t, 5.0)),
    )
    result = sample(
        strong,
        noise(),
        classes(),
        num_steps=1,
        shift=1.0,
        guidance=Guidance(kind="autoguidance", scale=1.42, model=weak),
    )
    torch.testing.assert_close(result, noise() - (5.0 + 1.42 * (2.0 - 5.0)))
    assert weak.labels == strong.labels == [[0, 1]]


def test_refusals():
    field = Counting(lambda x_t, t, y: x_t)
    arguments = {"num_steps": 4, "shift": 1.0}
    with pytest.raises(ValueError, match="positive multiple of 2 for heun"):
        sample(field, noise(), classes(), **arguments | {"num_steps": 5}, solver="heun")
    with pytest.raises(ValueError, match="positive multiple of 1"):
        sample(field, noise(), classes(), **arguments | {"num_steps": 0})
    with pytest.raises(ValueError, match="choices: euler, heun"):
        sample(field, noise(), classes(), **arguments, solver="dopri5")
    with pytest.raises(ValueError, match="choices: rae, zero"):
        sample(field, noise(), classes(), **arguments, end="one")
    with pytest.raises(ValueError, match="needs the weaker model"):
        Guidance(kind="autoguidance", scale=1.5)
    with pytest.raises(ValueError, match="t_min < t_max"):
        Guidance(kind="cfg", scale=1.5, interval=(1.0, 0.0))
