"""The decoder's training on pictures that are read, cut and encoded at every step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.data.account import TooManyBadSamples
from encoder.data.batch import to_pixels
from encoder.data.picture_set import centre_crop, place_crop
from encoder.load import load_encoder
from encoder.runtime import checkpoint
from encoder.training.options import OptimConfig
from rae_bridge import train_decoder as stage
from rae_bridge.config import DecoderSize, TrainDecoderConfig
from rae_bridge.decoder_live import LiveSplit, draw_cuts
from rae_bridge.pictures_config import LivePicturesConfig

SIZE = DecoderSize(
    decoder_hidden_size=32,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=64,
)


@pytest.fixture
def folder(tmp_path):
    """Nine train pictures of odd sizes in three classes, and four to evaluate on."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 9), ("val", 4)):
        for i in range(num):
            place = tmp_path / "pictures" / split / f"n{i // 3}"
            place.mkdir(parents=True, exist_ok=True)
            shape = (int(rng.integers(8, 40)), int(rng.integers(8, 40)), 3)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(place / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def config(folder, blind_to_pixels) -> TrainDecoderConfig:
    return TrainDecoderConfig(
        encoder=blind_to_pixels,
        data=str(folder),
        live=LivePicturesConfig(num_threads=2, encode_batch_size=4),
        num_steps=4,
        batch_size=6,
        size=SIZE,
        optim=OptimConfig(lr=3e-3, warmup_steps=2),
        perceptual_weight=0.0,
        log_steps=2,
        checkpoint_steps=2,
    )


def files(folder, split):
    return [path for name in sorted((folder / split).iterdir()) for path in sorted(name.iterdir())]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", ["random", "centre"])
def test_rows_are_cut_by_the_steps_draws_and_encoded(config, folder, crop, flip):
    config = replace(config, live=replace(config.live, crop=crop, flip=flip))
    encoder = load_encoder(config.encoder)
    split = LiveSplit.open(config, encoder, "train", None)
    order, cuts = torch.tensor([7, 2, 8, 0, 5, 3]), draw_cuts(config, 1)
    assert cuts.shape == (6, 3) and torch.equal(cuts, draw_cuts(config, 1))
    assert not torch.equal(cuts, draw_cuts(config, 2))
    tokens, images = split.rows(order, cuts)
    for row, index in enumerate(order.tolist()):
        picture, draw = Image.open(files(folder, "train")[index]), cuts[row].tolist()
        square = place_crop(picture, 8, draw[:2]) if crop == "random" else centre_crop(picture, 8)
        expected = torch.from_numpy(np.array(square))
        expected = expected.flip(1) if flip and draw[2] < 0.5 else expected
        assert torch.equal(images[row], expected)
        torch.testing.assert_close(tokens[row], encoder.encode(to_pixels(expected[None]))[0])


def test_the_evaluation_sees_the_middle_of_each_picture(config, folder):
    split = LiveSplit.open(config, load_encoder(config.encoder), "val", 3)
    assert len(split) == 3
    _, images = split.rows(torch.tensor([2, 0]))
    for image, index in zip(images, (2, 0), strict=True):
        assert np.array_equal(image, np.asarray(centre_crop(Image.open(files(folder, "val")[index]), 8)))


def test_nothing_is_kept_and_a_killed_run_goes_on_to_the_same_last_bit(config, tmp_path, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = stage.train(config, tmp_path / "whole")
    left = {path.name for path in (tmp_path / "whole").iterdir()}
    assert left == {"checkpoint.pt", "log.jsonl", "progress.json", "weights"}
    assert whole["num_samples"] == 4
    original = stage.train_step

    def killed(decoder, tokens, pixels, config, step, *others):
        if step == 3:
            raise KeyboardInterrupt
        return original(decoder, tokens, pixels, config, step, *others)

    monkeypatch.setattr(stage, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.train(config, tmp_path / "cut")
    monkeypatch.setattr(stage, "train_step", original)
    assert stage.train(config, tmp_path / "cut") == whole
    first, second = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, second["decoder"][key]) for key, tensor in first["decoder"].items())


def test_wrong_input_is_refused_before_the_first_step(config, tmp_path, folder):
    with pytest.raises(
        ValueError, match=r"crop centre is of pictures that are kept; with live, set live\.crop"
    ):
        replace(config, crop="centre")
    with pytest.raises(FileNotFoundError, match="no pictures of split test"):
        stage.train(replace(config, eval_split="test"), tmp_path)


def test_the_next_of_its_class_stands_for_a_picture_that_cannot_be_decoded(config, tmp_path, folder, caplog):
    places = files(folder, "train")  # three classes of three
    for i in (4, 5):
        places[i].write_bytes(b"no picture")
    split = LiveSplit.open(config, load_encoder(config.encoder), "train", None)
    order, cuts = torch.tensor([4, 8, 5]), draw_cuts(config, 1)[:3]
    _, images = split.rows(order, cuts)
    for row, index in enumerate((3, 8, 3)):
        square = place_crop(Image.open(places[index]), 8, cuts[row, :2].tolist())
        assert np.array_equal(images[row], np.asarray(square))
    account = split.pictures.account
    assert (account.num_good, account.num_bad) == (3, 3)
    assert [bad.name for bad in account.bad] == ["n1/4.png", "n1/5.png", "n1/5.png"]  # of 4 also 5 is tried
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert stage.train(config, tmp_path / "one") == stage.train(config, tmp_path / "two")
    assert "skipped n1/5.png: not a picture" in caplog.text
    with pytest.raises(TooManyBadSamples, match=r"pictures are unusable, more than the allowed 1\.00%: n1/"):
        stage.train(replace(config, num_steps=60), tmp_path / "one")
    places[3].write_bytes(b"no picture")
    with pytest.raises(
        ValueError, match=r"no picture of class 1 can be decoded, as n1/4\.png: not a picture"
    ):
        split.rows(order)
