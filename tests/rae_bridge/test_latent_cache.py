"""The sharded latent cache: both flips, exact statistics, resumption, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from encoder.data.batch import to_pixels
from encoder.data.shards import load_images
from rae_bridge import cache as stage
from rae_bridge import train
from rae_bridge.codec import load_for_generation
from rae_bridge.config import DiTOptimConfig, DiTSize, TrainDiTConfig
from rae_bridge.latents import LatentStatistics, open_latents, to_latents
from rae_bridge.pictures_config import CacheConfig


@pytest.fixture
def config(pictures, invertible) -> CacheConfig:
    return CacheConfig(encoder=invertible, data=str(pictures), shard_size=7, batch_size=3)


def write(config, folder):
    folder.mkdir(exist_ok=True)
    return stage.run(config, folder), open_latents(folder)


def test_it_holds_every_picture_and_its_mirror_image_in_order(config, tmp_path, pictures, invertible):
    about, cache = write(config, tmp_path / "cache")
    assert about["num_pictures"] == 24 and about["num_shards"] == 4  # 7 + 7 + 7 + 3
    images, records = load_images(pictures, "train")
    assert cache.labels.tolist() == [record["label"] for record in records]
    encoder = load_for_generation(invertible)
    pixels = to_pixels(torch.as_tensor(images))
    indices = torch.tensor([23, 0, 7, 13, 0])
    flips = torch.tensor([False, True, False, True, False])
    wanted = torch.where(flips[:, None, None, None], pixels[indices].flip(3), pixels[indices])
    expected = to_latents(encoder.encode(wanted).half().float(), 2)
    torch.testing.assert_close(cache.latents(indices, flips), expected, rtol=0, atol=2e-3)  # fp16
    assert cache.origin["fingerprint"] == encoder.fingerprint and cache.side == 2 and cache.width == 48


def test_its_statistics_are_the_two_pass_ones_of_pictures_and_mirror_images(config, tmp_path):
    _, cache = write(config, tmp_path / "cache")
    everything = torch.arange(24)
    both = torch.cat([cache.latents(everything), cache.latents(everything, torch.ones(24, dtype=torch.bool))])
    statistics = cache.statistics()
    torch.testing.assert_close(statistics.mean, both.double().mean(0).float())
    torch.testing.assert_close(statistics.var, both.double().var(0, correction=0).float())
    written = LatentStatistics.load(tmp_path / "cache" / "latent_stats.pt")
    torch.testing.assert_close(written.var, statistics.var)


def test_training_reads_it_and_draws_mirror_images_by_halves(config, tmp_path):
    _, cache = write(config, tmp_path / "cache")
    size = DiTSize(hidden_size=(16, 16), depth=(1, 1), num_heads=(2, 2))
    training = TrainDiTConfig(
        tokens=str(tmp_path / "cache"), num_classes=3, num_steps=2, batch_size=24, size=size,
        optim=DiTOptimConfig(), log_steps=1,
    )  # fmt: skip
    (tmp_path / "out").mkdir()
    assert train.train(training, tmp_path / "out")["num_samples"] == 48
    drawn = []
    for step in range(20):
        draw = train.checkpoint.step_generator(training.seed, step, "flip")
        drawn.append(torch.rand(24, generator=draw) < 0.5)
        indices = train.checkpoint.batch_indices(0, step, 24, 24)
        raw, _ = train.load_rows(cache, training, slice(24), step)
        assert torch.equal(raw, cache.latents(indices, drawn[-1]))
    assert torch.cat(drawn).float().mean() == pytest.approx(0.5, abs=0.08)


def test_it_goes_on_with_the_shards_that_are_missing_or_damaged(config, tmp_path):
    folder = tmp_path / "cache"
    _, cache = write(config, folder)
    before = cache.latents(torch.arange(24)).clone()
    paths = sorted((folder / "shards").iterdir())
    times = [path.stat().st_mtime_ns for path in paths]
    paths[2].write_bytes(b"not a shard")
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"shard not found: .*00001.*run its stage again"):
        open_latents(folder)
    _, cache = write(config, folder)
    assert torch.equal(cache.latents(torch.arange(24)), before)
    kept = [path.stat().st_mtime_ns == time for path, time in zip(paths, times, strict=True)]
    assert kept == [True, False, False, True]


def test_what_no_dit_can_be_trained_on_is_refused(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="no shards"):
        write(replace(config, data=str(tmp_path / "nowhere")), tmp_path / "none")
    _, plain = write(replace(config, flips=False, shard_size=None), tmp_path / "plain")
    assert (tmp_path / "plain" / "tokens.safetensors").is_file() and not plain.has_flips
    with pytest.raises(ValueError, match="no mirror images"):
        plain.latents(torch.tensor([0]), torch.tensor([True]))
