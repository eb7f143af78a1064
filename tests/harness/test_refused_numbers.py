"""What is not finite, not symmetric, of another shape or too little is refused by name, in every metric."""

import math

import numpy as np
import pytest
import torch

from encoder.metrics.probes import linear_probe, recall_at_1
from encoder.metrics.seen import Seen
from harness.metrics import fid, numbers, psnr_ssim
from harness.metrics.features import Features, extract
from harness.metrics.inception_score import inception_score
from harness.metrics.kid import kernel_distance
from harness.metrics.precision_recall import precision_recall

BAD = (math.nan, math.inf, -math.inf)


def features(num=1100, width=8, seed=0):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def spoilt(value, row=1030, **sizes):
    seen = features(**sizes)
    seen[row, 5] = value
    return seen


def kernel(one, two):
    return kernel_distance(one, two, num_subsets=1, subset_size=2)


def metrics_of(one, two):
    return numbers.generation_metrics(Features(pooled=one), numbers.Against.of(Features(pooled=two)), 20)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    "metric",
    [lambda one, two: fid.distance(*map(fid.moments_of, (one, two))), kernel, precision_recall, metrics_of],
)
def test_a_row_that_is_not_finite_is_named_on_either_side(metric, value):
    for pair in ((spoilt(value), features(seed=1)), (features(seed=1), spoilt(value))):
        with pytest.raises(ValueError, match=rf"row 1030 is not finite \({value} in column 5\)"):
            metric(*pair)


def test_rows_are_counted_over_batches_and_a_refused_batch_leaves_no_trace():
    moments = fid.moments_of(features())
    before = moments.covariance()
    with pytest.raises(ValueError, match="row 1103 is not finite"):
        moments.update(spoilt(math.nan, row=3))
    assert moments.num_samples == 1100 and torch.equal(moments.covariance(), before)
    with pytest.raises(ValueError, match="width 3 cannot be added to those of width 8"):
        moments.update(features(width=3))
    with pytest.raises(ValueError, match="width 3 cannot be added to those of width 8"):
        moments.merge(fid.moments_of(features(width=3)))


@pytest.mark.parametrize("value", BAD)
def test_logits_and_pictures_that_are_not_finite_are_named(value):
    with pytest.raises(ValueError, match="logits: row 7 is not finite"):
        inception_score(spoilt(value, row=7, num=20))
    pixels, spoilt_pixels = torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16)
    spoilt_pixels[2, 1, 4, 4] = value
    for metric in (psnr_ssim.psnr, psnr_ssim.ssim):
        for pair in ((pixels, spoilt_pixels), (spoilt_pixels, pixels)):
            with pytest.raises(ValueError, match="picture 2 of 3 is not finite"):
                metric(*pair)
        with pytest.raises(ValueError, match="two batches of pictures of one shape"):
            metric(pixels, pixels[:1])
    labels = torch.arange(20) % 4
    with pytest.raises(ValueError, match="row 7 is not finite"):
        linear_probe(spoilt(value, row=7, num=20), labels, features(num=20), labels)
    with pytest.raises(ValueError, match="row 7 is not finite"):
        recall_at_1(features(num=20), spoilt(value, row=7, num=20))


def test_a_judge_whose_features_are_not_finite_is_found_out_at_the_picture():
    def network(pictures):
        pooled = pictures.float().mean(dim=(2, 3))
        return Seen(pooled=pooled.where(pooled < 200, math.nan))

    pictures = np.full((10, 8, 8, 3), 100, dtype=np.uint8)
    pictures[7] = 250
    with pytest.raises(ValueError, match="what the judge sees: row 7 is not finite"):
        extract(network, pictures, batch_size=4)
    with pytest.raises(ValueError, match="expected uint8 pictures"):
        extract(network, pictures / 255)
    with pytest.raises(ValueError, match="cannot be compared picture by picture"):
        numbers.reconstruction_metrics(pictures, pictures[:9], *[Features(pooled=features(10))] * 2)


@pytest.mark.parametrize("value", BAD)
def test_published_statistics_that_are_not_finite_name_the_entry(tmp_path, value):
    mean, cov = np.zeros(8), np.eye(8)
    path = tmp_path / "adm.npz"
    mean[6] = value
    np.savez(path, mu=mean, sigma=cov)
    with pytest.raises(ValueError, match=r"adm.npz: mu and sigma: entry 6 of the mean is not finite"):
        fid.Statistics.load(path)
    mean[6], cov[2, 3] = 0, value
    np.savez(path, mu=mean, sigma=cov)
    with pytest.raises(ValueError, match=r"entry \(2, 3\) of the covariance is not finite"):
        fid.Statistics.load(path)
    with pytest.raises(ValueError, match=r"second set's .*entry \(2, 3\) of the covariance is not finite"):
        fid.distance(fid.moments_of(features()), fid.Statistics(mean, cov))


@pytest.mark.parametrize(
    ("mean", "cov", "message"),
    [
        (np.zeros(8), np.eye(8) + np.eye(8, k=2), r"not symmetric: entry \(0, 2\) is 1.0, \(2, 0\) is 0.0"),
        (np.zeros(8), np.diag([1.0] * 7 + [-1.0]), r"variance 7 is below zero \(-1.0\)"),
        (np.zeros(8), np.ones(8), "no mean and covariance"),
        (np.zeros((8, 1)), np.eye(8), "no mean and covariance"),
        (np.zeros(0), np.zeros((0, 0)), "no mean and covariance"),
        (np.zeros(8, dtype=complex), np.eye(8), "holds complex128, expected real numbers"),
    ],
)
def test_what_is_no_gaussian_is_refused(tmp_path, mean, cov, message):
    np.savez(tmp_path / "adm.npz", mu=mean, sigma=cov)
    with pytest.raises(ValueError, match=message):
        fid.Statistics.load(tmp_path / "adm.npz")


def test_a_covariance_in_half_the_precision_is_one_still(tmp_path):
    cov = features(width=40).double().T.cov().numpy()
    np.savez(tmp_path / "adm.npz", mu=np.zeros(40, np.float32), sigma=cov.astype(np.float32))
    loaded = fid.Statistics.load(tmp_path / "adm.npz")
    assert loaded.cov.dtype == np.float64 and np.allclose(loaded.cov, cov, atol=1e-6)


def test_too_few_or_misshapen_features_are_refused():
    with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
        fid.distance(fid.moments_of(features(1)), fid.moments_of(features()))
    with pytest.raises(ValueError, match=r"expected rows of features \(N, D\), got \(1100,\)"):
        fid.moments_of(features()[:, 0])
    for metric in (kernel, precision_recall):
        with pytest.raises(ValueError, match="width 8 and 3 cannot be compared"):
            metric(features(), features(width=3))
    with pytest.raises(ValueError, match="at least 1 subset of 2 pictures, got 1 of 1"):
        kernel_distance(features(), features(), num_subsets=1, subset_size=1)
    with pytest.raises(ValueError, match="neighbours 0"):
        precision_recall(features(), features(), neighbours=0)


def test_classes_without_any_chance_add_nothing_to_the_inception_score():
    sure = 1000.0 * torch.eye(10).repeat(20, 1)  # the others' chance is below the least float64
    assert inception_score(sure).mean == pytest.approx(10.0, abs=1e-9)


def test_numbers_that_overflow_on_the_way_are_refused_and_large_ones_are_not():
    with pytest.raises(ValueError, match=r"as large as .*e\+20 overflow float32"):
        precision_recall(features(50) * 1e20, features(50))
    with pytest.raises(ValueError, match="overflow the cubic kernel"):
        kernel_distance(features(50).double() * 1e120, features(50), num_subsets=1, subset_size=2)
    assert precision_recall(features(50) * 1e15, features(50) * 1e15).precision == 1.0


def test_an_indefinite_covariance_is_none_and_a_singular_one_is():
    indefinite = np.ones((3, 3)) + np.diag([0.0, 0.0, -0.9])
    assert np.linalg.eigvalsh(indefinite).min() < -0.3
    with pytest.raises(ValueError, match="variance below zero"):
        fid.frechet_distance(np.zeros(3), np.eye(3), np.zeros(3), indefinite)
    ones = np.ones((3, 3))  # of rank 1: tr (I ones)^(1/2) = sqrt(3)
    assert math.isclose(
        fid.frechet_distance(np.zeros(3), np.eye(3), np.zeros(3), ones), 6 - 2 * math.sqrt(3), abs_tol=1e-6
    )


def test_features_of_another_byte_order_are_read_and_a_single_number_is_none(tmp_path):
    seen = features(9).numpy()
    np.savez(tmp_path / "other.npz", pooled=seen.astype(seen.dtype.newbyteorder()))
    found = fid.Statistics.load(tmp_path / "other.npz")
    np.testing.assert_allclose(found.cov, np.cov(seen.T), atol=1e-6)
    np.savez(tmp_path / "number.npz", pooled=np.float32(1))
    with pytest.raises(ValueError, match=r"number\.npz: .*expected rows of features"):
        fid.Statistics.load(tmp_path / "number.npz")
    with pytest.raises(ValueError, match="do not fill 0 chunks"):
        inception_score(features(9), 0)
