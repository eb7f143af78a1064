"""Training of the pixel decoder on a tiny encoder: its losses and noise, resume, and that it learns."""

import io
import json
import math
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from encoder.data.shards import load_images
from encoder.runtime import checkpoint
from encoder.runtime.ranks import Ranks
from encoder.training.options import OptimConfig
from rae_bridge import decoder_data, squares
from rae_bridge import train_decoder as stage
from rae_bridge.codec import load_codec
from rae_bridge.config import DecoderSize, TrainDecoderConfig
from rae_bridge.decoder import PixelDecoder

SIZE = DecoderSize(
    decoder_hidden_size=32,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=64,
)


@pytest.fixture
def config(pictures, blind_to_pixels) -> TrainDecoderConfig:
    return TrainDecoderConfig(
        encoder=blind_to_pixels,
        data=str(pictures),
        num_steps=6,
        batch_size=8,
        size=SIZE,
        optim=OptimConfig(lr=3e-3, warmup_steps=2),
        perceptual_weight=0.0,
        log_steps=3,
        checkpoint_steps=3,
    )


def folder(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


@pytest.mark.parametrize(
    ("noise", "mean_sigma"), [("uniform", 0.4), ("half_normal", 0.8 * (2 / torch.pi) ** 0.5)]
)
def test_noise_has_one_sigma_a_sample_of_the_named_distribution(config, noise, mean_sigma):
    tokens = torch.zeros(4000, 16, 20)
    noised = stage.noise_tokens(tokens, replace(config, noise=noise), step=0)
    sigmas = noised.std(dim=(1, 2))
    assert sigmas.mean() == pytest.approx(mean_sigma, rel=0.03)
    assert sigmas.max() < 0.95 or noise == "half_normal"
    assert torch.equal(noised, stage.noise_tokens(tokens, replace(config, noise=noise), step=0))
    assert not torch.equal(noised, stage.noise_tokens(tokens, replace(config, noise=noise), step=1))
    assert not stage.noise_tokens(tokens, replace(config, noise=noise, tau=0.0), step=0).any()


def test_loss_is_pixel_l1_in_minus_one_to_one_plus_the_weighted_perceptual_term(config):
    config = replace(config, tau=0.0, perceptual_weight=0.5, perceptual_from=0.5, perceptual_fraction=0.25)
    decoder = stage.build_decoder(config, stage.load_for_generation(config.encoder))
    tokens, pixels = torch.randn(8, 4, 48), torch.rand(8, 3, 8, 8)
    seen = []

    def perceptual(hat, real):
        seen.append(len(hat))
        return (hat - real).square().mean()

    early = stage.train_step(decoder, tokens, pixels, config, 2, perceptual)
    late = stage.train_step(decoder, tokens, pixels, config, 3, perceptual)
    difference = decoder(tokens) - pixels
    torch.testing.assert_close(early["loss"], 2 * difference.abs().mean())
    expected = 2 * difference.abs().mean() + 0.5 * difference[:2].square().mean()
    torch.testing.assert_close(late["loss"], expected)
    assert seen == [2]  # a quarter of 8, and only from half of the steps on


def test_a_killed_run_goes_on_to_the_same_last_bit(config, tmp_path, monkeypatch):
    whole = stage.train(config, folder(tmp_path, "whole"))
    original = stage.train_step

    def killed(decoder, tokens, pixels, config, step, *others):
        if step == 4:
            raise KeyboardInterrupt
        return original(decoder, tokens, pixels, config, step, *others)

    cut = folder(tmp_path, "cut")
    monkeypatch.setattr(stage, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.train(config, cut)
    monkeypatch.setattr(stage, "train_step", original)
    assert stage.train(config, cut) == whole
    first, second = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    for part in ("decoder", "averaged"):
        assert all(torch.equal(tensor, second[part][key]) for key, tensor in first[part].items())


def test_tensorboard_shows_what_the_log_holds(config, tmp_path, tensorboard_holds_the_log):
    stage.train(replace(config, num_steps=3, log_steps=1, trackers=["tensorboard"]), tmp_path)
    tensorboard_holds_the_log(tmp_path, [1, 2, 3])


def test_it_learns_pictures_and_its_folder_makes_a_codec(config, tmp_path, blind_to_pixels, pictures):
    optim = OptimConfig(lr=1e-2, warmup_steps=10)
    config = replace(config, num_steps=200, batch_size=24, tau=0.1, optim=optim, ema_decay=0.9)
    out_dir = folder(tmp_path, "out")
    scores = stage.train(replace(config, checkpoint_steps=200, log_steps=100), out_dir)
    assert scores["psnr"] > 15 and scores["num_samples"] == 5  # on held-out pictures; a grey one has about 9
    weights = out_dir / "weights"
    assert (
        checkpoint.load_tensors(weights / "model.safetensors")["decoder_pred.weight"].dtype == torch.float16
    )
    card = yaml.safe_load((weights / "card.yaml").read_text())
    assert card["scores"]["psnr"] == pytest.approx(scores["psnr"], abs=1e-3)
    codec = load_codec(blind_to_pixels, decoder=str(weights))
    images = torch.as_tensor(load_images(pictures, "val")[0])
    tokens = codec.encode(stage.to_pixels(images))
    decoder = PixelDecoder.from_pretrained(weights)
    torch.testing.assert_close(codec.reconstruct(images), decoder(tokens).clamp(0, 1))


def prepared(config, out_dir, limit=None):
    encoder = stage.load_for_generation(config.encoder)
    return decoder_data.prepare_split(config, encoder, Ranks(0, 1, "cpu"), out_dir, "train", limit)


def test_a_split_is_its_pictures_in_order_whatever_the_files(config, tmp_path, pictures, monkeypatch):
    images = torch.as_tensor(load_images(pictures, "train", image_size=8)[0])
    tokens = stage.load_for_generation(config.encoder).encode(stage.to_pixels(images)).half()
    whole = prepared(config, folder(tmp_path, "whole"))
    monkeypatch.setattr(decoder_data, "CHUNK", 7)
    parts = prepared(config, folder(tmp_path, "parts"))
    assert len(whole.images) == 1 and [len(part) for part in parts.images] == [7, 7, 7, 3]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for split in (whole, parts):
        assert len(split) == 24
        read = split.rows(order)
        assert torch.equal(read[1], images[order])
        torch.testing.assert_close(read[0], tokens[order], rtol=1e-3, atol=1e-3)  # halves, by other batches
    assert len(prepared(config, folder(tmp_path, "few"), limit=9)) == 9


def test_files_that_are_there_are_not_made_again(config, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder_data, "CHUNK", 7)
    prepared(config, tmp_path)
    (tmp_path / "train" / "00002.safetensors").unlink()
    read, original = [], squares.TarPictures.read

    def counted(pictures, part):
        read.append(part)
        return original(pictures, part)

    monkeypatch.setattr(squares.TarPictures, "read", counted)
    assert len(prepared(config, tmp_path)) == 24
    assert read == [range(14, 21)]


def test_oblong_pictures_are_squashed_or_cropped(config, tmp_path):
    write_oblong(tmp_path / "oblong" / "train")
    config = replace(config, data=str(tmp_path / "oblong"))
    squashed = prepared(config, folder(tmp_path, "squash")).rows(torch.tensor([0]))[1][0]
    centre = prepared(replace(config, crop="centre"), folder(tmp_path, "centre")).rows(torch.tensor([0]))[1][
        0
    ]
    assert centre.eq(100).all()  # the middle third alone
    assert squashed[:, 0].eq(0).all() and squashed[:, -1].eq(200).all()


def write_oblong(place):
    """One picture of 24 x 8 px: black, grey and bright thirds."""
    place.mkdir(parents=True)
    pixels = np.repeat(np.array([0, 100, 200], np.uint8), 8)[None, :, None].repeat(8, 0).repeat(3, 2)
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, "png")
    with tarfile.open(place / "00000.tar", "w") as shard:
        contents = (("png", picture.getvalue()), ("txt", b"thirds"), ("json", b'{"label": 0}'))
        for suffix, content in contents:
            member = tarfile.TarInfo(f"0.{suffix}")
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))


def test_folders_of_classes_are_read_too(config, tmp_path):
    for name, grey in (("a", 0), ("b", 100)):
        (tmp_path / "set" / "train" / name).mkdir(parents=True)
        pixels = np.full((8, 24, 3), grey, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / "train" / name / "0.png")
    split = prepared(replace(config, data=str(tmp_path / "set")), tmp_path)
    assert split.rows(torch.tensor([1, 0]))[1].flatten(1).unique(dim=1).tolist() == [[100], [0]]
    assert len(prepared(replace(config, data=str(tmp_path / "set")), folder(tmp_path, "few"), limit=1)) == 1


def test_a_step_that_is_not_finite_is_left_out_or_stops_the_run(config, tmp_path, monkeypatch):
    original = stage.noise_tokens

    def spoilt(tokens, config, step, part=None):
        return original(tokens, config, step, part) * (math.nan if step == 4 else 1)

    monkeypatch.setattr(stage, "noise_tokens", spoilt)
    with pytest.raises(ValueError, match="loss is nan at step 4"):
        stage.train(config, folder(tmp_path, "stopped"))
    assert checkpoint.load(tmp_path / "stopped" / "checkpoint.pt")["step"] == 3
    scores = stage.train(replace(config, skip_non_finite=1), folder(tmp_path, "skipped"))
    assert checkpoint.load(tmp_path / "skipped" / "checkpoint.pt")["skipped"] == 1
    assert math.isfinite(scores["psnr"])


def test_a_decoder_for_other_tokens_is_refused(config, tmp_path, blind_to_pixels):
    out_dir = folder(tmp_path, "out")
    stage.train(replace(config, features="last_norm"), out_dir)
    with pytest.raises(
        ValueError, match=r"weights knows tokens of patches \(last_norm, .*make one of them anew"
    ):
        load_codec(blind_to_pixels, decoder=str(out_dir / "weights"))
    origin = json.loads((out_dir / "weights" / "tokens.json").read_text())
    assert origin["features"] == "last_norm" and len(origin["fingerprint"]) == 64


def test_wrong_input_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match=r"grid \(2, 2\) does not divide 9 x 9"):
        stage.build_decoder(replace(config, image_size=9), stage.load_for_generation(config.encoder))
    with pytest.raises(ValueError, match="perceptual_fraction"):
        replace(config, perceptual_fraction=0.0)
    with pytest.raises(FileNotFoundError, match="no pictures of split train"):
        stage.train(replace(config, data=str(tmp_path / "nowhere")), tmp_path)
