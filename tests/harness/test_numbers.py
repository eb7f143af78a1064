"""The generation suite's numbers: keys, standard errors, and both metric stages on real shards."""

import math

import numpy as np
import pytest
import torch

from encoder.runtime.config import ConfigError
from harness.metrics import numbers, reference, score
from harness.metrics.config import PICTURES, ReferenceConfig, ScoreConfig, keys_of
from harness.metrics.features import Features
from harness.metrics.kid import kernel_distance
from harness.metrics.picture_sets import read_class_names, read_labels, read_pictures


def features(seed, num=40):
    generator = torch.Generator().manual_seed(seed)
    return Features(
        pooled=torch.rand(num, 16, generator=generator), logits=torch.randn(num, 10, generator=generator)
    )


def pictures(seed, num=6):
    return np.random.RandomState(seed).randint(0, 256, (num, 16, 16, 3), dtype=np.uint8)


def test_each_kind_gives_its_keys_with_their_directions():
    labels = torch.arange(40) % 3
    against = numbers.Against.of(features(1), labels)
    generated = numbers.generation_metrics(features(0), against, kernel_subset_size=20, labels=labels)
    rebuilt = numbers.reconstruction_metrics(pictures(0), pictures(1), features(0, 6), features(1, 6))
    config = ReferenceConfig(data="anywhere")
    assert tuple(rebuilt) == keys_of("reconstruction", config)
    assert tuple(generated) == keys_of("generation", config)
    up = {key for key, metric in {**generated, **rebuilt}.items() if metric["higher_is_better"]}
    assert up == {"precision-lite0", "recall-lite0", "class-accuracy-lite0", "IS-lite0", "PSNR", "SSIM"}


def test_pictures_without_classes_have_no_class_accuracy():
    known = torch.arange(40) % 3
    for labels, real_labels in ((None, known), (known, None), (known, known - 1)):  # -1: one has none
        against = numbers.Against.of(features(1), real_labels)
        found = numbers.generation_metrics(features(0), against, kernel_subset_size=20, labels=labels)
        assert "class-accuracy-lite0" not in found and "precision-lite0" in found


def test_the_standard_error_of_a_mean_over_pictures():
    rebuilt = numbers.reconstruction_metrics(pictures(0), pictures(1), features(0, 6), features(1, 6))
    errors = (pictures(0).astype(float) - pictures(1)) / 255
    values = -10 * np.log10((errors**2).mean(axis=(1, 2, 3)))
    assert rebuilt["PSNR"]["value"] == pytest.approx(values.mean(), abs=1e-9)
    assert rebuilt["PSNR"]["stderr"] == pytest.approx(values.std(ddof=1) / math.sqrt(6), abs=1e-9)


def test_identical_pictures_have_no_psnr_and_no_distance():
    same = pictures(0)
    rebuilt = numbers.reconstruction_metrics(same, same, features(0, 6), features(0, 6))
    assert rebuilt["PSNR"]["value"] is None
    assert rebuilt["SSIM"]["value"] == pytest.approx(1.0)
    assert rebuilt["rFD-lite0"]["value"] == pytest.approx(0.0, abs=1e-6)


def test_the_jackknife_error_of_the_kernel_distance_is_its_spread_over_fresh_sets():
    def pair(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(80, 4, generator=generator), torch.randn(80, 4, generator=generator) + 0.5

    distances = [kernel_distance(*pair(seed), num_subsets=40, subset_size=40) for seed in range(60)]
    spread = np.std([distance.mean for distance in distances], ddof=1)
    claimed = np.mean([numbers._jackknife(distance.std, 40, 80) for distance in distances])
    assert 0.75 < claimed / spread < 1.35  # 60 sets fix a standard deviation to about a tenth
    assert numbers._jackknife(1.0, 80, 80) is None  # no subset differs from the whole


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """24 pictures of Scenes as WebDataset shards."""
    from encoder.data.options import ScenesConfig
    from encoder.data.scenes.write import run

    folder = tmp_path_factory.mktemp("scenes")
    run(
        ScenesConfig(
            image_size=64,
            num_train=0,
            num_val=0,
            num_test=24,
            num_llava_images=0,
            num_text=0,
            num_seed_questions=0,
            num_pope_pairs=0,
        ),
        folder,
    )
    return folder


def test_the_stages_score_the_floor_reconstructions_and_samples(shards, tmp_path):
    config = ReferenceConfig(data=str(shards), num_samples=12, kernel_subset_size=6)
    floor = reference.run(config, tmp_path)["metrics"]
    real = read_pictures(tmp_path / PICTURES)
    assert real.shape == (12, 64, 64, 3)
    assert set(read_labels(tmp_path / PICTURES)) <= set(read_class_names(tmp_path / PICTURES))
    assert floor["gFD-lite0"]["value"] > 0

    np.savez(tmp_path / "near.npz", arr_0=(real * 0.9).astype(np.uint8))
    config = {"reference": str(tmp_path), "pictures": str(tmp_path / "near.npz"), "kernel_subset_size": 6}
    rebuilt = score.run(ScoreConfig(kind="reconstruction", **config), tmp_path)["metrics"]
    assert 15 < rebuilt["PSNR"]["value"] < 40
    generated = score.run(ScoreConfig(kind="generation", **config), tmp_path)["metrics"]
    assert generated["gFD-lite0"]["value"] == pytest.approx(rebuilt["rFD-lite0"]["value"], abs=1e-9)


def test_sets_of_other_sizes_are_refused(shards, tmp_path):
    with pytest.raises(ConfigError, match="two sets of 100 pictures need 200"):
        reference.run(ReferenceConfig(data=str(shards), num_samples=100), tmp_path)
    reference.run(ReferenceConfig(data=str(shards), num_samples=12, kernel_subset_size=6), tmp_path)
    np.savez(tmp_path / "few.npz", arr_0=pictures(0))
    config = ScoreConfig(kind="generation", pictures=str(tmp_path / "few.npz"), reference=str(tmp_path))
    with pytest.raises(ValueError, match="both must be as many"):
        score.run(config, tmp_path)
    np.savez(tmp_path / "none.npz", other=pictures(0))
    with pytest.raises(ValueError, match="expected arr_0"):
        read_pictures(tmp_path / "none.npz")
