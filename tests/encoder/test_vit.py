"""The vision towers against formulas and open_clip's own class."""

import math

import pytest
import torch
from torch import nn

from encoder.models.shapes import DecoderShape, ViTShape
from encoder.models.vit import ViTDecoder, ViTEncoder, attend, sin_cos_positions


def tower(**changes) -> ViTEncoder:
    shape = {"image_size": 6, "width": 32, "layers": 2, "head_width": 16, "embed_dim": 24} | changes
    torch.manual_seed(0)
    vit = ViTEncoder(ViTShape(**shape))
    with torch.no_grad():  # biases and the class token start at or near 0: give every tensor a part
        for parameter in vit.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return vit.eval()


def test_positions_follow_the_moco_v3_formula():
    dim, height, width = 16, 3, 5
    table = sin_cos_positions(height, width, dim)
    for y in range(height):
        for x in range(width):
            row = table[y * width + x].double()
            for i in range(dim // 4):
                omega = 10000 ** (-i / (dim // 4 - 1))
                wanted = [math.sin(x * omega), math.cos(x * omega), math.sin(y * omega), math.cos(y * omega)]
                got = [row[i + quarter * dim // 4].item() for quarter in range(4)]
                assert got == pytest.approx(wanted, abs=1e-6)  # float32 table


@pytest.mark.parametrize("changes", [
    {},
    {"image_size": 10, "patch_size": 2, "width": 48, "head_width": 12, "embed_dim": 7},
    {"image_size": 15, "patch_size": 5, "in_channels": 3},
    {"mlp_width": 40},
])  # fmt: skip
def test_tower_agrees_with_open_clip(changes):
    transformer = pytest.importorskip("open_clip.transformer", reason="the dev extra is not installed")
    vit = tower(**changes)
    shape = vit.shape
    reference = transformer.VisionTransformer(
        image_size=shape.image_size, patch_size=shape.patch_size, width=shape.width, layers=shape.layers,
        heads=shape.width // shape.head_width, mlp_ratio=(shape.mlp_width or 4 * shape.width) / shape.width,
        no_ln_pre=True, pool_type="avg", final_ln_after_pool=True, output_tokens=True,
        output_dim=shape.embed_dim, norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
    )  # fmt: skip
    patch = shape.patch_size
    reference.conv1 = nn.Conv2d(shape.in_channels, shape.width, patch, patch, bias=False)
    reference.load_state_dict(vit.state_dict(), strict=True)
    inputs = torch.randn(3, shape.in_channels, shape.image_size, shape.image_size)
    pooled, tokens = reference.eval()(inputs)
    output = vit(inputs)
    # 2e-5: the project's bound; tanh-GELU, QuickGELU or eps 1e-5 are beyond it at full size
    torch.testing.assert_close(output.z_u, tokens, atol=2e-5, rtol=0)
    torch.testing.assert_close(output.pooled, pooled, atol=2e-5, rtol=0)


def test_skip_last_stops_before_the_last_block():
    vit, inputs = tower(), torch.randn(2, 16, 6, 6)
    shorter = ViTEncoder(ViTShape(image_size=6, width=32, layers=1, head_width=16, embed_dim=24))
    shorter.load_state_dict({k: v for k, v in vit.state_dict().items() if "resblocks.1" not in k})
    torch.testing.assert_close(vit.tokens(inputs, skip_last=1), shorter.tokens(inputs))


def test_another_grid_computes_sin_cos_positions_and_refuses_a_learned_table():
    vit = tower()
    assert vit(torch.randn(1, 16, 8, 4)).z_u.shape == (1, 8, 32)
    torch.testing.assert_close(vit.positions(4, 2)[1:], sin_cos_positions(4, 2, 32))
    vit.positional_embedding += 0.1 * torch.randn_like(vit.positional_embedding)
    vit(torch.randn(1, 16, 6, 6))  # its own grid uses the table as stored
    with pytest.raises(ValueError, match="not the sin-cos one"):
        vit(torch.randn(1, 16, 8, 8))


@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (2, 16, 7, 6), (16, 6, 6)])
def test_inputs_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"takes B 16|multiple of patch size 2"):
        tower()(torch.randn(*shape))


def test_a_sample_does_not_depend_on_its_batch():
    vit, inputs = tower(), torch.randn(5, 16, 6, 6)
    torch.testing.assert_close(vit(inputs).z_u[3:4], vit(inputs[3:4]).z_u, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_written_out_attention_equals_the_fused_one_in_value_and_gradient(masked):
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril() if masked else None
    fused = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    written = attend(q, k, v, mask)
    torch.testing.assert_close(written, fused)
    weights = torch.randn_like(fused)
    wanted = torch.autograd.grad((fused * weights).sum(), (q, k, v))
    torch.testing.assert_close(torch.autograd.grad((written * weights).sum(), (q, k, v)), wanted)


def test_decoder_puts_each_token_into_its_own_square():
    decoder = ViTDecoder(DecoderShape(in_width=8, width=16, layers=0, head_width=16, out_channels=3))
    z_u = torch.zeros(1, 6, 8)
    z_u[0, 4] = torch.randn(8)  # row 1, column 1 of a 2 x 3 grid
    changed = (decoder(z_u, (2, 3)) - decoder(torch.zeros(1, 6, 8), (2, 3))).abs().sum(dim=(0, 1)) > 1e-6
    wanted = torch.zeros(4, 6, dtype=torch.bool)
    wanted[2:4, 2:4] = True
    assert torch.equal(changed, wanted)
    with pytest.raises(ValueError, match="do not fill"):
        decoder(z_u)
