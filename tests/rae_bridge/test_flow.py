"""The flow's formulas, its end points and its time distribution."""

import math

import pytest
import torch

from rae_bridge.flow import (
    flow_loss,
    interpolate,
    sample_time,
    shift_factor,
    shift_time,
    training_shift,
    velocity_of_latents,
    velocity_target,
)


def test_time_zero_is_data_and_time_one_is_noise():
    latents, noise = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64).unbind(0)
    torch.testing.assert_close(interpolate(latents, noise, torch.zeros(4)), latents)
    torch.testing.assert_close(interpolate(latents, noise, torch.ones(4)), noise)


def test_velocity_is_the_derivative_of_the_path():
    latents, noise = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64).unbind(0)
    t = torch.rand(4, dtype=torch.float64)
    difference = (interpolate(latents, noise, t + 1e-4) - interpolate(latents, noise, t)) / 1e-4
    torch.testing.assert_close(velocity_target(latents, noise), difference, rtol=1e-8, atol=1e-8)


def test_each_sample_has_its_own_time():
    latents, noise, t = torch.zeros(2, 2, 1, 1), torch.ones(2, 2, 1, 1), torch.tensor([0.25, 0.75])
    assert interpolate(latents, noise, t)[:, 0, 0, 0].tolist() == [0.25, 0.75]


def test_loss_is_the_plain_mean_in_fp32():
    velocity, target = torch.randn(2, 3, 4, 2, 2).bfloat16().unbind(0)
    expected = sum(float(d) ** 2 for d in (velocity - target).flatten()) / target.numel()
    loss = flow_loss(velocity, target)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-2)  # the squares themselves are bf16


def test_shift_factor_is_the_square_root():
    assert shift_factor(768 * 16 * 16) == pytest.approx(6.9282, abs=1e-4)
    assert shift_factor(768 * 32 * 32) == pytest.approx(13.856, abs=1e-3)
    assert shift_factor(1024) == 0.5
    assert training_shift(1024) == 1.0  # small latents are not pushed towards data
    assert training_shift(768 * 256) == shift_factor(768 * 256)


def test_shift_keeps_the_ends_is_monotone_and_undoes_itself():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    shifted = shift_time(t, 6.93)
    assert shifted[0] == 0 and shifted[-1] == 1
    assert (shifted.diff() > 0).all() and (shifted[1:-1] > t[1:-1]).all()
    torch.testing.assert_close(shift_time(shifted, 1 / 6.93), t)
    torch.testing.assert_close(shift_time(t, 1.0), t)


def test_shifted_logit_normal_times_have_the_quantiles_measured_on_the_official_code():
    t = shift_time(
        sample_time(200_000, torch.Generator().manual_seed(0), distribution="logit_normal"), 6.9282
    )
    quantiles = torch.quantile(t, torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99]))
    torch.testing.assert_close(
        quantiles, torch.tensor([0.397, 0.657, 0.874, 0.961, 0.986]), rtol=0, atol=8e-3
    )
    assert t.mean() == pytest.approx(0.837, abs=2e-3)


@pytest.mark.parametrize("distribution", ["logit_normal", "uniform"])
def test_times_come_from_the_generator_and_stay_below_the_limit(distribution):
    first, second = (
        sample_time(50_000, torch.Generator().manual_seed(3), distribution=distribution) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert first.min() >= 0 and first.max() <= 0.999
    if distribution == "uniform":
        assert first.mean() == pytest.approx(0.4995, abs=3e-3)
        assert first.std() == pytest.approx(0.999 / math.sqrt(12), abs=3e-3)


def test_predicted_latents_are_a_velocity():
    latents, noise = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    t = torch.tensor([0.05, 0.3, 0.9, 1.0])
    x_t = interpolate(latents, noise, t)
    torch.testing.assert_close(velocity_of_latents(latents, x_t, t), noise - latents, rtol=1e-4, atol=1e-5)
    # nearer to the data the divisor stays 0.05
    near = velocity_of_latents(latents, latents + 1, torch.zeros(4))
    torch.testing.assert_close(near, torch.full_like(near, 20.0), rtol=1e-4, atol=1e-4)
