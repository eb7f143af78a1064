"""The losses of distribution matching against their formulas: matching gradient, times, discriminator."""

import math

import pytest
import torch

from rae_bridge.distillation.critic import (
    Discriminator,
    discriminator_loss,
    generator_loss,
    tapped_blocks,
)
from rae_bridge.distillation.dmd2 import clean, matching_gradient, matching_loss, renoise_times


def test_what_is_made_of_perfect_draws_is_distributed_as_data_and_the_papers_form_is_not():
    """Latents N(2, 1), t = 0.5: draws of w given x_t in closed form. x_t - t w has the data's variance; the
    noise that x_t was mixed with, minus w, has another."""
    generator = torch.Generator().manual_seed(0)
    latents = 2 + torch.randn(200_000, generator=generator)
    noise, draw = torch.randn(2, 200_000, generator=generator)
    x_t = 0.5 * latents + 0.5 * noise
    posterior = 2 + (x_t - 1) * 0.5 / 0.5 + draw * math.sqrt(1 - 0.25 / 0.5)
    w = (x_t - posterior) / 0.5
    ours, printed = x_t - 0.5 * w, noise - w
    assert (ours.mean(), ours.var()) == (pytest.approx(2, abs=0.02), pytest.approx(1, abs=0.02))
    assert printed.var() == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("normaliser", ["difference", "teacher"])
def test_the_matching_gradient_is_its_formula_and_autograds(normaliser):
    fake, real, latents = torch.randn(3, 4, 2, 3, 3, dtype=torch.float64)
    gradient = matching_gradient(fake, real, latents, normaliser)
    for i in range(4):
        size = fake[i] - real[i] if normaliser == "difference" else latents[i] - real[i]
        torch.testing.assert_close(gradient[i], (fake[i] - real[i]) / size.abs().mean())
    made = latents.clone().requires_grad_()
    matching_loss(made, gradient).backward()
    torch.testing.assert_close(made.grad, gradient / made.numel())


def test_the_matching_gradient_moves_the_student_to_the_teacher():
    """Student N(m, 1), teacher N(0, 1), their exact denoisers at t' = 0.5: the gradient has m's sign."""
    t, x_t = torch.full((3,), 0.5), torch.randn(3, 1, 1, 1)
    denoised = lambda mean: mean + (x_t - 0.5 * mean) * 0.5 / 0.5  # noqa: E731
    for m in (3.0, -3.0):
        gradient = matching_gradient(denoised(m), denoised(0.0), x_t, "difference")
        assert torch.equal(gradient.sign(), torch.full_like(gradient, math.copysign(1, m)))
    velocity = torch.randn(3, 1, 1, 1)
    assert torch.equal(clean(x_t, t, velocity), x_t - 0.5 * velocity)


def test_renoising_times_are_shifted_and_stop_where_teachers_do():
    t = renoise_times(50_000, 5.0, torch.Generator().manual_seed(0))
    u = t / (5 - 4 * t)
    assert u.mean() == pytest.approx(0.5, abs=0.01) and t.min() >= 0 and t.max() <= 0.999


def test_the_adversarial_losses_are_the_logistic_ones():
    real, fake = torch.randn(2, 4, 5, dtype=torch.float64)
    log = lambda x: torch.log(torch.sigmoid(x))  # noqa: E731
    torch.testing.assert_close(discriminator_loss(real, fake), -log(real).mean() - log(-fake).mean())
    torch.testing.assert_close(generator_loss(fake), -log(fake).mean())


def test_a_head_sees_where_a_token_lies_and_its_neighbours():
    torch.manual_seed(0)
    discriminator = Discriminator(16, 2, side=3, width=8)
    features = [torch.randn(2, 9, 16) for _ in range(2)]
    logits = discriminator(features)
    assert logits.shape == (2, 18)
    moved = [each.clone() for each in features]
    moved[0][0, 0] += torch.randn(16)
    changed = (discriminator(moved) - logits).abs() > 1e-7
    assert changed[0, :9].all() and not changed[0, 9:].any() and not changed[1].any()  # the norm reaches all


@pytest.mark.parametrize("depth, expected", [(1, (0,)), (2, (0, 1)), (6, (1, 3, 5)), (28, (8, 17, 27))])
def test_blocks_that_are_looked_at_lie_evenly(depth, expected):
    assert tapped_blocks(depth, None) == expected


def test_blocks_that_are_not_there_are_refused():
    assert tapped_blocks(6, [4]) == (4,)
    for wrong in ([6], [-1], []):
        with pytest.raises(ValueError, match="gan_blocks"):
            tapped_blocks(6, wrong)
