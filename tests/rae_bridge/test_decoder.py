"""The pixel decoder: diffusers' class on equal weights, RAE's names, its files, and its geometry."""

import json

import pytest
import torch
import torch.nn.functional as F

from encoder.runtime.checkpoint import save_tensors
from rae_bridge.config import DecoderConfig, decoder_config
from rae_bridge.decoder import PixelDecoder
from rae_bridge.release import load_decoder

SMALL = DecoderConfig(
    hidden_size=12,
    image_size=12,
    patch_size=4,
    decoder_hidden_size=16,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=24,
)
RAE_JSON = {
    "architectures": ["ViTMAEForPreTraining"],
    "hidden_act": "gelu",
    "hidden_size": 12,
    "patch_size": 4,
    "image_size": 12,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 24,
    "layer_norm_eps": 1e-12,
    "num_hidden_layers": 12,
    "num_channels": 3,
    "qkv_bias": True,
}


def random_decoder(config=SMALL):
    torch.manual_seed(0)
    decoder = PixelDecoder(config).eval()
    for name, parameter in decoder.named_parameters():
        if name != "decoder_pos_embed":
            parameter.data.normal_(std=0.2)
    return decoder


def test_pixels_equal_those_of_diffusers_autoencoder_and_its_folder_loads(tmp_path):
    """On 16 x 16 tokens: for other grids diffusers scales the positions, which RAE does not."""
    from diffusers import AutoencoderRAE

    torch.manual_seed(1)
    theirs = AutoencoderRAE(
        encoder_type="mae",
        encoder_hidden_size=64,
        encoder_patch_size=4,
        encoder_num_hidden_layers=1,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=24,
        patch_size=4,
        encoder_input_size=64,
        encoder_norm_mean=[0.1, 0.2, 0.3],
        encoder_norm_std=[0.4, 0.5, 0.6],
    ).eval()
    for parameter in theirs.decoder.parameters():
        parameter.data.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)
    ours = load_decoder(tmp_path)
    assert ours.config.image_mean == (0.1, 0.2, 0.3)
    latents = torch.randn(2, 64, 16, 16)
    expected = theirs.decode(latents).sample  # which multiplies by its default deviation, 1 + 1e-5
    tokens = (latents * (1 + 1e-5)).flatten(2).mT
    torch.testing.assert_close(ours(tokens), expected, rtol=1e-5, atol=1e-5)


def naive_pixels(state, tokens):
    """One sample, tokens (9, 12) -> pixels (3, 12, 12), from RAE's description."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    x = (
        torch.cat([state["trainable_cls_token"][0], linear("decoder_embed", tokens)])
        + state["decoder_pos_embed"][0]
    )
    for i in range(2):
        layer = f"decoder_layers.{i}"
        normed = norm(f"{layer}.layernorm_before", x)
        q, k, v = (
            linear(f"{layer}.attention.attention.{name}", normed) for name in ("query", "key", "value")
        )
        heads = [
            torch.softmax(q[:, part] @ k[:, part].T / 8**0.5, dim=-1) @ v[:, part]
            for part in (slice(0, 8), slice(8, 16))
        ]
        x = x + linear(f"{layer}.attention.output.dense", torch.cat(heads, dim=-1))
        hidden = linear(f"{layer}.intermediate.dense", norm(f"{layer}.layernorm_after", x))
        x = x + linear(f"{layer}.output.dense", hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))
    patches = linear("decoder_pred", norm("decoder_norm", x))[1:]
    pixels = torch.empty(3, 12, 12, dtype=x.dtype)
    for token in range(9):
        row, column = divmod(token, 3)
        patch = patches[token].view(4, 4, 3)  # row, column, channel
        pixels[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = patch.permute(2, 0, 1)
    std, mean = torch.tensor(SMALL.image_std), torch.tensor(SMALL.image_mean)
    return pixels * std[:, None, None] + mean[:, None, None]


def test_pixels_equal_the_naive_restatement():
    decoder = random_decoder().double()
    tokens = torch.randn(2, 9, 12, dtype=torch.float64)
    expected = torch.stack([naive_pixels(decoder.state_dict(), one) for one in tokens])
    # mean and std are given as fp32 in the naive form: 1e-7
    torch.testing.assert_close(decoder(tokens), expected, rtol=1e-6, atol=1e-6)


def test_state_dict_names_are_those_of_the_released_decoders():
    layer = (
        "layernorm_before",
        "layernorm_after",
        "intermediate.dense",
        "output.dense",
        "attention.output.dense",
    )
    layer += tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
    modules = [f"decoder_layers.{i}.{name}" for i in range(2) for name in layer]
    modules += ["decoder_embed", "decoder_norm", "decoder_pred"]
    expected = {f"{name}.{kind}" for name in modules for kind in ("weight", "bias")}
    decoder = PixelDecoder(SMALL)
    assert set(decoder.state_dict()) == expected | {"decoder_pos_embed", "trainable_cls_token"}
    assert decoder.decoder_pos_embed.shape == (1, 10, 16) and not decoder.decoder_pos_embed.requires_grad
    assert not decoder.decoder_pos_embed[0, 0].any() and not decoder.trainable_cls_token.any()


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [((768, 12, 12, 3072), 86.4), ((1024, 24, 16, 4096), 304.2), ((1152, 28, 16, 4096), 415.4)],
)
def test_named_sizes_have_the_published_parameter_counts(sizes, millions):
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = decoder_config({f"decoder_{name}": size for name, size in zip(names, sizes, strict=True)})
    with torch.device("meta"):
        decoder = PixelDecoder(config)
    assert sum(parameter.numel() for parameter in decoder.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.3
    )


def test_rae_files_load_strictly_under_rae_names(tmp_path):
    weights = random_decoder().state_dict()
    torch.save(weights, tmp_path / "model.pt")
    decoder = load_decoder(tmp_path / "model.pt", RAE_JSON)
    assert decoder.config == SMALL
    assert all(torch.equal(tensor, weights[key]) for key, tensor in decoder.state_dict().items())
    del weights["decoder_layers.1.attention.attention.key.bias"]
    save_tensors(tmp_path / "cut.safetensors", weights)
    with pytest.raises(ValueError, match=r"'decoder_layers\.1\.attention\.attention\.key\.bias' is missing"):
        load_decoder(tmp_path / "cut.safetensors", SMALL)
    with pytest.raises(ValueError, match="qkv_bias=False is not supported"):
        decoder_config(RAE_JSON | {"qkv_bias": False})
    with pytest.raises(ValueError, match="expected int"):
        decoder_config(RAE_JSON | {"patch_size": "SHOULD BE RELOADED"})  # as RAE's own files say


def test_another_token_grid_is_resized_bilinearly_after_the_embedding():
    decoder = random_decoder()
    tokens = torch.randn(2, 4, 12)
    embedded = decoder.decoder_embed(tokens).mT.reshape(2, 16, 2, 2)
    expected = F.interpolate(embedded, size=(3, 3), mode="bilinear", align_corners=False).flatten(2).mT
    torch.testing.assert_close(decoder.resize(decoder.decoder_embed(tokens)), expected)
    assert decoder(tokens).shape == (2, 3, 12, 12)
    with pytest.raises(ValueError, match="not a square grid"):
        decoder(torch.randn(1, 6, 12))


def test_saved_and_read_again_in_half_precision(tmp_path):
    decoder = random_decoder()
    decoder.save_pretrained(tmp_path, dtype=torch.float16)
    again = PixelDecoder.from_pretrained(tmp_path)
    assert again.config == SMALL and again.decoder_pred.weight.dtype == torch.float32
    for key, tensor in decoder.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor.half().float())
    assert json.loads((tmp_path / "config.json").read_text())["model"] == "pixel_decoder"


def test_bf16_autocast_keeps_pixels_in_fp32_and_close():
    decoder, tokens = random_decoder(), torch.randn(2, 9, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pixels = decoder(tokens)
    assert pixels.dtype == torch.float32
    assert (pixels - decoder(tokens)).norm() < 0.03 * decoder(tokens).norm()  # bf16 keeps 8 bits
