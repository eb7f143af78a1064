"""The control without pictures: zeros, as many as tokens, and sizes that are whole numbers of these."""

import pytest
import torch

from encoder import load_encoder
from encoder.frozen import BlindEncoder
from encoder.runtime.config import ConfigError


def test_blind_gives_zeros_by_name_and_by_class():
    for encoder in (load_encoder("blind"), BlindEncoder()):
        assert encoder.encode(torch.rand(2, 3, 64, 64)).abs().max() == 0
    assert load_encoder("blind").name == "blind"


@pytest.mark.parametrize(
    ("size", "remedy"), [(250, "give 240 or 256"), (15, "give 16 or 32"), (-16, "give 16 or")]
)
def test_blind_refuses_a_size_that_is_no_whole_number_of_tokens(tmp_path, size, remedy):
    assert BlindEncoder(image_size=272).encode(torch.rand(1, 3, 9, 9)).shape == (1, 17**2, 192)
    with pytest.raises(ValueError, match=rf"image_size {size} of a blind .* multiple of 16 px.*{remedy}"):
        BlindEncoder(image_size=size)
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nsource: module:encoder.frozen:BlindEncoder\nimage_size: {max(size, 15)}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: image_size \d+ of a blind encoder"):
        load_encoder(path)
