"""Live tokens: what the encoder says of the cut pictures, their statistics, and a training on them."""

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.data.batch import to_pixels
from encoder.data.picture_set import open_pictures
from encoder.load import load_encoder
from rae_bridge.config import TrainDiTConfig
from rae_bridge.latents import to_latents
from rae_bridge.live import LiveTokens
from rae_bridge.pictures_config import PicturesConfig
from rae_bridge.shapes import DiTSize
from rae_bridge.train import train


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures of odd sizes in three classes."""
    rng = np.random.default_rng(0)
    for i in range(12):
        place = tmp_path / "pictures" / "train" / f"n{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        shape = (int(rng.integers(8, 40)), int(rng.integers(8, 40)), 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(place / f"{i}.png")
    return tmp_path / "pictures"


def config(folder, encoder, **changes) -> PicturesConfig:
    return PicturesConfig(folder=str(folder), encoder=encoder, num_threads=2, encode_batch_size=5, **changes)


def naive(folder, source: str, indices: list[int], flip: bool) -> torch.Tensor:
    images = open_pictures(folder, "train").images(indices, 8)
    pixels = to_pixels(images.flip(2) if flip else images)
    return to_latents(load_encoder(source).encode(pixels), 2)


def test_latents_are_those_of_the_cut_pictures_mirrored_where_asked(folder, invertible):
    live = LiveTokens.open(config(folder, invertible), "cpu")
    indices, is_flipped = torch.tensor([7, 2, 11, 0, 5, 9, 3]), torch.tensor([1, 0, 1, 0, 0, 1, 1]).bool()
    got = live.latents(indices, is_flipped)
    for row, index, flip in zip(got, indices.tolist(), is_flipped.tolist(), strict=True):
        torch.testing.assert_close(row, naive(folder, invertible, [index], flip)[0])
    assert live.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_pictures_are_cut_at_the_size_that_is_asked_for_and_shrunk_by_the_encoder(folder, invertible):
    live = LiveTokens.open(config(folder, invertible, image_size=20), "cpu")
    images = open_pictures(folder, "train").images([4, 9], 20)
    expected = to_latents(load_encoder(invertible).encode(to_pixels(images)), 2)
    torch.testing.assert_close(live.latents(torch.tensor([4, 9])), expected)
    assert not torch.allclose(expected, naive(folder, invertible, [4, 9], False), atol=0.05)


def test_statistics_are_those_of_the_pictures_and_their_mirror_images(folder, invertible):
    live = LiveTokens.open(config(folder, invertible), "cpu")
    both = torch.cat([naive(folder, invertible, list(range(12)), flip) for flip in (False, True)]).double()
    statistics = live.statistics()
    torch.testing.assert_close(statistics.mean.double(), both.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics.var.double(), both.var(0, correction=0), rtol=1e-4, atol=1e-6)
    few = LiveTokens.open(config(folder, invertible, num_for_statistics=3), "cpu").statistics()
    assert not torch.equal(few.mean, statistics.mean)


def test_too_many_that_cannot_be_decoded_are_refused_before_the_first_step(folder, invertible):
    (folder / "train" / "n1" / "4.png").write_bytes(b"no picture")
    live = LiveTokens.open(config(folder, invertible), "cpu")
    index = live.pictures.pictures.names.index("n1/4.png")
    stands_for_it = naive(folder, invertible, [index + 1], False)[0]  # the class has 1, 10, 4, 7
    torch.testing.assert_close(live.latents(torch.tensor([index]))[0], stands_for_it)
    with pytest.raises(ValueError, match=r"3 of 28 pictures are unusable.*n1/4\.png: not a picture"):
        live.statistics()


def test_a_dit_learns_from_live_tokens_and_resumes_to_the_bit(folder, invertible, tmp_path):
    def run(name: str, **changes) -> dict:
        (tmp_path / name).mkdir(exist_ok=True)
        size = DiTSize(hidden_size=(16, 16), depth=(1, 1), num_heads=(2, 2))
        pictures = config(folder, invertible)
        values = {"num_classes": 3, "num_steps": 4, "batch_size": 6, "checkpoint_steps": 2} | changes
        return train(TrainDiTConfig(pictures=pictures, size=size, **values), tmp_path / name)

    whole = run("whole")
    run("cut", num_steps=2)
    assert run("cut")["loss"] == whole["loss"]
    with pytest.raises(ValueError, match="either tokens, a folder that holds them, or pictures"):
        TrainDiTConfig(num_classes=3, num_steps=1)
