"""Metrics against closed forms, against torch-fidelity on the same features, and in their direction."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from harness.metrics import fid, psnr_ssim
from harness.metrics.inception_score import inception_score
from harness.metrics.kid import kernel_distance
from harness.metrics.precision_recall import precision_recall


def features(seed, num=300, width=16, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5
    return torch.randn(num, width, generator=generator) @ mixing * scale + shift


def test_frechet_distance_of_two_gaussians_in_closed_form():
    # axis-aligned Gaussians: |m1 - m2|^2 + sum (s1 - s2)^2
    mean_1, mean_2 = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    std_1, std_2 = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 0.0])
    got = fid.frechet_distance(mean_1, std_1.square().diag(), mean_2, std_2.square().diag())
    assert got == pytest.approx(5.0 + (2.0**2 + 1.5**2), abs=1e-12)


def test_frechet_distance_equals_torch_fidelity():
    one, two = features(0), features(1, shift=0.3, scale=1.2)
    statistics = [fid_features_to_statistics(part.double()) for part in (one, two)]
    reference = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert fid.distance(fid.moments_of(one), fid.moments_of(two)) == pytest.approx(reference, abs=1e-6)
    assert fid.distance(fid.moments_of(one), fid.moments_of(one)) == pytest.approx(0.0, abs=1e-6)


def test_frechet_distance_with_fewer_pictures_than_features_equals_torch_fidelity():
    one, two = features(0, num=10), features(1, num=12)
    statistics = [fid_features_to_statistics(part.double()) for part in (one, two)]
    reference = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert fid.distance(fid.moments_of(one), fid.moments_of(two)) == pytest.approx(reference, abs=1e-6)


def test_moments_do_not_depend_on_batches_or_ranks():
    seen = features(2, shift=5.0)
    ranks = [fid.Moments.empty(16), fid.Moments.empty(16)]
    for i, batch in enumerate(seen.split(7)):
        ranks[i % 2].update(batch)
    ranks[0].merge(ranks[1])
    assert ranks[0].num_samples == 300
    assert_close(
        ranks[0].mean(), seen.double().mean(dim=0), atol=1e-12, rtol=0
    )  # float64 sums of 300 numbers
    assert_close(ranks[0].covariance(), seen.double().T.cov(), atol=1e-11, rtol=0)
    with pytest.raises(ValueError, match="at least 2 pictures"):
        fid.moments_of(seen[:1]).covariance()


@pytest.mark.parametrize("gram_limit", [0, 12_000])
def test_kernel_distance_equals_torch_fidelity(monkeypatch, gram_limit):
    monkeypatch.setattr("harness.metrics.kid._GRAM_LIMIT", gram_limit)
    one, two = features(0), features(1, shift=0.2)
    options = {"kid_subsets": 10, "kid_subset_size": 100, "rng_seed": 2020, "verbose": False}
    reference = kid_features_to_metric(one.double(), two.double(), **options)
    got = kernel_distance(one, two, num_subsets=10, subset_size=100)
    assert got.mean == pytest.approx(reference["kernel_inception_distance_mean"], abs=1e-9)
    assert got.std == pytest.approx(reference["kernel_inception_distance_std"], abs=1e-9)
    with pytest.raises(ValueError, match="subset_size 1000"):
        kernel_distance(one, two)


def test_inception_score_equals_torch_fidelity_in_adm_order():
    logits = features(3, num=103, width=10, scale=3.0)
    reference = isc_features_to_metric(logits, splits=10, shuffle=False)
    got = inception_score(logits)
    assert got.mean == pytest.approx(reference["inception_score_mean"], abs=1e-9)
    assert got.std == pytest.approx(reference["inception_score_std"], abs=1e-9)


def test_inception_score_is_the_number_of_classes_at_best_and_one_at_worst():
    sure = 50.0 * torch.eye(10).repeat(20, 1)
    assert inception_score(sure).mean == pytest.approx(10.0, abs=1e-6)
    assert inception_score(torch.zeros(200, 10)).mean == pytest.approx(1.0, abs=1e-6)


def test_precision_and_recall_equal_torch_fidelity_whatever_the_tile():
    generated, real = features(0, num=120), features(1, num=150, shift=0.5)
    reference = prc_features_to_metric(generated, real, verbose=False)
    for tile in (7, 1000):
        got = precision_recall(generated, real, tile=tile)
        assert got.precision == pytest.approx(
            reference["precision"], abs=1e-6
        )  # torch-fidelity averages in float32
        assert got.recall == pytest.approx(reference["recall"], abs=1e-6)


def test_a_collapsed_generator_has_high_precision_and_low_recall():
    real = features(0, num=400)
    collapsed = real[:1] + 1e-3 * features(1, num=400)
    got = precision_recall(collapsed, real)
    assert got.precision > 0.95
    assert got.recall < 0.05
    scattered = features(2, num=400, scale=10.0)
    assert precision_recall(scattered, real).precision < 0.1


def test_a_worse_set_is_farther_by_every_distance():
    real = features(0)
    near, far = features(1, shift=0.05), features(1, shift=0.5)
    assert fid.distance(*map(fid.moments_of, (near, real))) < fid.distance(*map(fid.moments_of, (far, real)))
    near, far = (kernel_distance(part, real, num_subsets=5, subset_size=200) for part in (near, far))
    assert near.mean < far.mean


def test_psnr_of_a_constant_error_in_closed_form():
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    assert_close(
        psnr_ssim.psnr(pixels, pixels + 0.1), torch.full((2,), 20.0, dtype=torch.float64), atol=1e-5, rtol=0
    )
    assert torch.isinf(psnr_ssim.psnr(pixels, pixels)).all()


def naive_ssim(x, y):
    """Wang et al. 2004, Eq. 13, one window at a time."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for colour in range(3):
        for top in range(x.shape[1] - 10):
            for left in range(x.shape[2] - 10):
                a, b = (part[colour, top : top + 11, left : left + 11] for part in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                cov = (window * (a - mean_a) * (b - mean_b)).sum()
                values.append(
                    (2 * mean_a * mean_b + 1e-4)
                    * (2 * cov + 9e-4)
                    / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
                )
    return float(np.mean(values))


def test_ssim_equals_the_formula_written_naively_and_is_one_at_identity():
    generator = torch.Generator().manual_seed(0)
    pixels, other = (
        torch.rand(2, 3, 14, 13, generator=generator),
        torch.rand(2, 3, 14, 13, generator=generator),
    )
    got = psnr_ssim.ssim(pixels, other)
    expected = [
        naive_ssim(x, y) for x, y in zip(pixels.double().numpy(), other.double().numpy(), strict=True)
    ]
    assert got.tolist() == pytest.approx(expected, abs=1e-9)
    assert_close(psnr_ssim.ssim(pixels, pixels), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least 11 x 11"):
        psnr_ssim.ssim(pixels[..., :10], other[..., :10])
