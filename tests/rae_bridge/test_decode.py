"""Kept tokens decoded: the reconstructions of the same pictures, of the part that was asked for."""

import json
from dataclasses import replace

import numpy as np
import pytest

from encoder import tokens
from encoder.options import TokensConfig
from encoder.runtime.stage import write_json
from rae_bridge import decode, reconstruct
from rae_bridge.config import DecodeConfig, ReconstructConfig


@pytest.fixture
def config(tmp_path, invertible, pictures) -> DecodeConfig:
    """Of the train pictures' tokens, in fp32."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    tokens.run(TokensConfig(encoder=invertible, data=str(pictures), dtype="fp32", shard_size=10), folder)
    return DecodeConfig(encoder=invertible, tokens=str(folder), batch_size=4)


def decoded(config, folder):
    folder.mkdir()
    result = decode.run(config, folder)
    with np.load(folder / decode.DECODED) as archive:
        return result, archive["arr_0"], archive["labels"]


def test_they_are_the_reconstructions_of_the_pictures_with_their_classes(
    config, tmp_path, pictures, invertible
):
    result, images, labels = decoded(config, tmp_path / "out")
    (tmp_path / "rec").mkdir()
    reconstruct.run(
        ReconstructConfig(encoder=invertible, data=str(pictures), split="train"), tmp_path / "rec"
    )
    with np.load(tmp_path / "rec" / "reconstructions.npz") as archive:
        assert np.abs(images.astype(int) - archive["arr_0"]).max() <= 1
        assert np.array_equal(labels, archive["labels"])
    assert result["num_samples"] == 24
    _, part, some = decoded(replace(config, first=9, limit=7), tmp_path / "part")
    assert np.array_equal(part, images[9:16]) and np.array_equal(some, labels[9:16])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": 20, "limit": 5}, "holds 24 pictures, asked for 20 to 25"),
        ({"first": 24}, "asked for 24 to 24"),
    ],
)
def test_more_than_there_is_is_refused(config, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        decode.run(replace(config, **changes), tmp_path)
    with pytest.raises(ValueError, match="limit 0 1 or more"):
        replace(config, limit=0)


def test_a_killed_run_goes_on_with_the_batches_that_are_missing(config, tmp_path, monkeypatch):
    _, whole, _ = decoded(config, tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["decoded.npz", "progress.json"]
    original, made = decode.to_images, []

    def killed(pixels, rounding):
        made.append(len(pixels))
        if len(made) == 4:
            raise KeyboardInterrupt
        return original(pixels, rounding)

    monkeypatch.setattr(decode, "to_images", killed)
    with pytest.raises(KeyboardInterrupt):
        decoded(config, tmp_path / "cut")
    decode.run(config, tmp_path / "cut")
    assert made == [4] * 7  # three batches, the one that was lost, and the other three of six
    with np.load(tmp_path / "cut" / decode.DECODED) as archive:
        assert np.array_equal(archive["arr_0"], whole)
    assert not (tmp_path / "cut" / "parts").exists()


def test_tokens_of_another_encoder_are_refused(config, tmp_path):
    index = json.loads((tmp_path / "tokens" / "index.json").read_text())
    write_json(tmp_path / "tokens" / "index.json", index | {"fingerprint": "0" * 64})
    with pytest.raises(ValueError, match=r"tokens knows tokens of .*000000000000.*, the encoder gives those"):
        decode.run(config, tmp_path)
    assert not (tmp_path / "parts").exists()
