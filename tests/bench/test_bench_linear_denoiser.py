"""The linear denoiser of bench/linear_denoiser.py, against closed forms and against denoising itself."""

import sys

import pytest
import torch

from encoder.data.options import ScenesConfig
from encoder.data.scenes import write
from encoder.options import TokensConfig
from encoder.runtime.config import ROOT
from encoder.tokens import run as write_tokens
from rae_bridge.latents import open_latents

sys.path.insert(0, str(ROOT / "bench"))
import linear_denoiser

sys.path.remove(str(ROOT / "bench"))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_white_tokens_leave_the_error_of_shrinking_towards_the_mean(t):
    assert linear_denoiser.linear_loss(torch.ones(5), t) == pytest.approx(1 / ((1 - t) ** 2 + t**2))
    assert linear_denoiser.linear_loss(torch.zeros(5), t) == 0


def test_it_is_the_error_that_regression_on_noisy_samples_finds():
    generator = torch.Generator().manual_seed(0)
    mix, t = torch.randn(6, 6, generator=generator) / 2, 0.4
    x = torch.randn(200_000, 6, generator=generator) @ mix
    noise = torch.randn(x.shape, generator=generator)
    x_t, target = (1 - t) * x + t * noise, noise - x
    fitted = torch.linalg.lstsq(x_t, target).solution
    found = float((x_t @ fitted - target).square().mean())
    covariance = x.T @ x / len(x)
    assert linear_denoiser.linear_loss(torch.linalg.eigvalsh(covariance), t) == pytest.approx(found, rel=0.02)


def test_of_tokens_on_the_disk_eigenvalues_are_those_of_their_correlations(tmp_path):
    none = dict.fromkeys(("num_val", "num_test", "num_llava_images", "num_text"), 0)
    none |= {"num_seed_questions": 0, "num_pope_pairs": 0}
    (tmp_path / "scenes").mkdir()
    write.run(ScenesConfig(image_size=64, num_train=24, **none), tmp_path / "scenes")
    (tmp_path / "tokens").mkdir()
    write_tokens(TokensConfig(encoder="ov3-demo", data=str(tmp_path / "scenes")), tmp_path / "tokens")
    latents = open_latents(tmp_path / "tokens")
    found = linear_denoiser.eigenvalues(latents)
    flat = latents.latents(torch.arange(24)).flatten(1).double()
    normed = (flat - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-5).sqrt()
    singular = torch.linalg.svdvals(normed).square() / 24
    torch.testing.assert_close(found.flip(0)[:24].double(), singular, atol=2e-3, rtol=1e-3)
    assert float(found.sum()) == pytest.approx(len(found), rel=1e-3)
