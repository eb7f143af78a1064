"""OpenVision 3 without a VAE (the paper's study), and encoders named by a YAML file of one's own."""

import pytest
import torch

from encoder import load_encoder
from encoder.models.openvision3 import OpenVision3
from encoder.models.shapes import DecoderShape, OpenVision3Shape, ViTShape
from encoder.models.vae import load_vae

SHAPE = OpenVision3Shape(
    encoder=ViTShape(
        image_size=32, patch_size=16, in_channels=3, width=32, layers=1, head_width=16, embed_dim=16
    ),
    decoder=DecoderShape(in_width=32, width=32, layers=1, head_width=16, patch_size=16, out_channels=3),
)


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    OpenVision3(SHAPE).save_pretrained(tmp_path / "weights")
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: without VAE\nsource: {tmp_path}/weights\nvae: pixels\n")
    return path


def test_pixels_come_back_as_they_went_in():
    pixels = torch.rand(2, 3, 10, 14, generator=torch.Generator().manual_seed(1))
    codec = load_vae("pixels")
    z_vae = codec.encode(pixels)
    torch.testing.assert_close(z_vae, 2 * pixels - 1)
    torch.testing.assert_close(codec.decode(z_vae), pixels)
    for wrong in (pixels[0], pixels[:, :1]):
        with pytest.raises(ValueError, match=r"must be B 3"):
            codec.encode(wrong)
        with pytest.raises(ValueError, match=r"must be B 3"):
            codec.decode(wrong)


def test_an_encoder_on_pixels_loads_from_its_own_file_and_decodes(file):
    encoder = load_encoder(str(file))
    assert (encoder.name, encoder.image_size, encoder.num_tokens) == ("without VAE", 32, 4)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = OpenVision3.from_pretrained(file.parent / "weights").eval()
    z_u = encoder.encode(pixels)
    torch.testing.assert_close(z_u, model.encoder(2 * pixels - 1).z_u.detach())
    expected = (model.decoder(z_u).detach().clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(encoder.decode(z_u), expected)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no encoder 'nowhere\.yaml'"):
        load_encoder("nowhere.yaml")
