"""Kept tokens decoded: the reconstructions of the same pictures, of the part that was asked for."""

from dataclasses import replace

import numpy as np
import pytest

from encoder import tokens
from encoder.options import TokensConfig
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


def test_tokens_of_another_encoder_are_refused(config, tmp_path, blind_to_pixels, invertible):
    other = replace(config, encoder=invertible.replace("Invertible", "Patch"))
    with pytest.raises(ValueError):
        decode.run(other, tmp_path)
