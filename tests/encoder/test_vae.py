"""The frozen VAE: ranges, scale, shift, taef1's offset, and what it refuses."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from encoder.models.shapes import VaeShape
from encoder.models.vae import FLUX_SCALE, FLUX_SHIFT, FrozenVAE, load_vae
from encoder.training.train_vae import build_codec


def codec(scale: float = FLUX_SCALE, shift: float = FLUX_SHIFT) -> AutoencoderKL:
    torch.manual_seed(0)
    built = build_codec(VaeShape(block_out_channels=(8, 8, 8, 8), norm_num_groups=4))
    built.register_to_config(scaling_factor=scale, shift_factor=shift)
    return built.eval()


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("subtract_shift", [False, True])
def test_z_vae_is_the_scaled_posterior_mean_and_the_shift_is_a_choice(pixels, subtract_shift):
    built = codec()
    with torch.no_grad():
        mean = built.encode(pixels * 2 - 1).latent_dist.mean
        picture = (built.decode(mean).sample + 1) / 2
    vae = FrozenVAE(built, subtract_shift=subtract_shift)
    wanted = (mean - FLUX_SHIFT) * FLUX_SCALE if subtract_shift else mean * FLUX_SCALE
    z_vae = vae.encode(pixels)
    torch.testing.assert_close(z_vae, wanted)
    torch.testing.assert_close(vae.decode(z_vae), picture, atol=1e-5, rtol=1e-5)  # the inverse, either way
    assert (vae.channels, vae.downsample, z_vae.shape) == (16, 8, (2, 16, 4, 2))


def taef1() -> AutoencoderTiny:
    torch.manual_seed(0)
    widths, depth = (8, 8, 8, 8), (1, 1, 1, 1)
    return AutoencoderTiny(
        latent_channels=16, encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        num_encoder_blocks=depth, num_decoder_blocks=depth, scaling_factor=1.0, shift_factor=0.0,
    ).eval()  # fmt: skip


def test_taef1_is_offset_to_stand_for_mean_times_scale(pixels, tmp_path):
    tiny = taef1()
    plain, shifted = FrozenVAE(tiny, subtract_shift=True), FrozenVAE(tiny)
    difference = shifted.encode(pixels) - plain.encode(pixels)
    torch.testing.assert_close(difference, torch.full_like(difference, 0.0419), atol=1e-4, rtol=0)
    torch.testing.assert_close(plain.decode(plain.encode(pixels)), shifted.decode(shifted.encode(pixels)))
    tiny.save_pretrained(tmp_path)
    for source, wanted in ((str(tmp_path), shifted), (f"{tmp_path}+shift", plain)):
        assert load_vae(source).offset == wanted.offset
        torch.testing.assert_close(load_vae(source).encode(pixels), wanted.encode(pixels))


def test_it_is_frozen_but_gradients_pass_through_decode(pixels):
    vae = FrozenVAE(codec()).train()
    assert not vae.training and not vae.codec.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert not vae.encode(pixels.requires_grad_()).requires_grad
    z_vae = torch.randn(1, 16, 2, 2, requires_grad=True)
    vae.decode(z_vae).sum().backward()
    assert z_vae.grad.abs().sum() > 0


def test_a_folder_a_pipeline_folder_and_fp16_weights_load(tmp_path, pixels):
    built = codec()
    built.half().save_pretrained(tmp_path / "vae")
    vae = load_vae(tmp_path / "vae")
    assert vae.dtype == torch.float32 and vae.scale == FLUX_SCALE
    torch.testing.assert_close(vae.encode(pixels), load_vae(tmp_path).encode(pixels))
    torch.testing.assert_close(vae.encode(pixels), FrozenVAE(codec()).encode(pixels), atol=1e-2, rtol=1e-2)


def test_what_cannot_be_used_is_named(tmp_path, pixels):
    vae = FrozenVAE(codec())
    with pytest.raises(ValueError, match="multiple of 8"):
        vae.encode(pixels[:, :, :20])
    with pytest.raises(ValueError, match="B 3 H W"):
        vae.encode(pixels[0])
    with pytest.raises(ValueError, match="B 16 h w"):
        vae.decode(torch.zeros(1, 4, 2, 2))
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_vae(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(ValueError, match="VQModel"):
        load_vae(tmp_path)
    with pytest.raises(ValueError, match="not taef1"):
        FrozenVAE(AutoencoderTiny(latent_channels=4))
