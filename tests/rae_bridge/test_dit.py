"""DiT-DH and LightningDiT against naive re-statements of RAE's description."""

import math
from dataclasses import replace

import pytest
import torch

from rae_bridge.blocks import RotaryEmbedding
from rae_bridge.config import DIT_SIZES, DiTConfig
from rae_bridge.dit import DiT, DiTDH, LightningDiT, build_dit

SIDE, CHANNELS, CLASSES = 3, 6, 5
DH = DiTConfig(
    hidden_size=(16, 24),
    depth=(2, 2),
    num_heads=(2, 3),
    input_size=SIDE,
    in_channels=CHANNELS,
    num_classes=CLASSES,
)
PLAIN = replace(DH, hidden_size=(16,), depth=(2,), num_heads=(2,))
VARIANTS = [
    DH,
    replace(DH, use_qknorm=True),
    replace(DH, hidden_size=(16, 16), num_heads=(2, 4)),
    PLAIN,
    replace(PLAIN, use_qknorm=True),
]


def random_model(config: DiTConfig) -> DiT:
    """A float64 model with every learnable tensor random: as initialised, adaLN hides most layers."""
    torch.manual_seed(0)
    model = build_dit(config).double().eval()
    for name, parameter in model.named_parameters():
        if name != "pos_embed":
            parameter.data.normal_(std=0.3)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(3, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return x_t, torch.rand(3, generator=generator, dtype=torch.float64), torch.tensor([0, 4, CLASSES])


def linear(state, name, x):
    return x @ state[f"{name}.weight"].flatten(1).T + state[f"{name}.bias"]


def silu(x):
    return x / (1 + torch.exp(-x))


def rms(x, gain):
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * gain


def rotate(x):
    """x (N, d): channel pairs as complex numbers; first half turns by the row, second half by the column."""
    num_tokens, width = x.shape
    axis = width // 2
    turned = torch.empty_like(x)
    for token in range(num_tokens):
        for half, position in enumerate(divmod(token, SIDE)):
            for pair in range(axis // 2):
                i = half * axis + 2 * pair
                angle = position * 10000 ** (-2 * pair / axis)
                value = complex(x[token, i], x[token, i + 1]) * complex(math.cos(angle), math.sin(angle))
                turned[token, i], turned[token, i + 1] = value.real, value.imag
    return turned


def naive_block(state, name, x, condition, num_heads, use_qknorm):
    """One sample: x (N, D), condition (1 or N, D)."""
    modulation = linear(state, f"{name}.adaLN_modulation.1", silu(condition))
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.split(x.shape[-1], dim=-1)
    q, k, v = linear(
        state, f"{name}.attn.qkv", rms(x, state[f"{name}.norm1.weight"]) * (1 + scale1) + shift1
    ).split(x.shape[-1], dim=-1)
    heads = []
    for q_h, k_h, v_h in zip(
        q.chunk(num_heads, -1), k.chunk(num_heads, -1), v.chunk(num_heads, -1), strict=True
    ):
        if use_qknorm:
            q_h, k_h = (
                rms(q_h, state[f"{name}.attn.q_norm.weight"]),
                rms(k_h, state[f"{name}.attn.k_norm.weight"]),
            )
        scores = rotate(q_h) @ rotate(k_h).T / math.sqrt(q_h.shape[-1])
        heads.append(torch.softmax(scores, dim=-1) @ v_h)
    x = x + gate1 * linear(state, f"{name}.attn.proj", torch.cat(heads, -1))
    gate, value = linear(
        state, f"{name}.mlp.w12", rms(x, state[f"{name}.norm2.weight"]) * (1 + scale2) + shift2
    ).chunk(2, dim=-1)
    return x + gate2 * linear(state, f"{name}.mlp.w3", silu(gate) * value)


def naive_velocity(state, config, x_t, t, y):
    """One sample, DiT-DH or LightningDiT: x_t (C, h, w) -> velocity (C, h, w)."""
    tokens = x_t.flatten(1).T  # N C
    phase = 2 * math.pi * t * state["t_embedder.W"]
    time = linear(state, "t_embedder.mlp.0", torch.cat([torch.sin(phase), torch.cos(phase)]))
    time = linear(state, "t_embedder.mlp.2", silu(time))
    label = state["y_embedder.embedding_table.weight"][y]

    def blocks(x, condition, part):
        for i in range(config.depth[part]):
            name = f"blocks.{i + part * config.depth[0]}"
            x = naive_block(state, name, x, condition, config.num_heads[part], config.use_qknorm)
        return x

    if len(config.hidden_size) == 1:
        condition = (time + label)[None]
        x = blocks(linear(state, "x_embedder.proj", tokens) + state["pos_embed"][0], condition, 0)
    else:
        s = linear(state, "s_embedder.proj", tokens) + state["pos_embed"][0]
        s = silu(time[None] + blocks(s, silu(time + label)[None], 0))
        condition = linear(state, "s_projector", s) if config.hidden_size[0] != config.hidden_size[1] else s
        x = blocks(linear(state, "x_embedder.proj", tokens), condition, 1)
    shift, scale = linear(state, "final_layer.adaLN_modulation.1", silu(condition)).chunk(2, dim=-1)
    x = linear(
        state, "final_layer.linear", rms(x, state["final_layer.norm_final.weight"]) * (1 + scale) + shift
    )
    return x.T.reshape(x_t.shape)


@pytest.mark.parametrize("config", VARIANTS)
def test_velocity_equals_the_naive_restatement(config):
    model = random_model(config)
    x_t, t, y = batch()
    expected = torch.stack(
        [naive_velocity(model.state_dict(), config, *one) for one in zip(x_t, t, y, strict=True)]
    )
    # float64, but the rotary tables are stored in float32: 1e-7 of relative error in each angle's sine
    torch.testing.assert_close(model(x_t, t, y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [DH, PLAIN])
def test_predicted_latents_become_the_velocity_and_survive_the_file(config, tmp_path):
    model = random_model(config)
    other = build_dit(replace(config, prediction="latents")).double().eval()
    other.load_state_dict(model.state_dict())  # the tensors are the same, only their meaning is not
    x_t, t, y = batch()
    t[0] = 0.01
    bound = t.clamp(min=0.05)[:, None, None, None]
    torch.testing.assert_close(other(x_t, t, y), (x_t - model(x_t, t, y)) / bound)
    other.save_pretrained(tmp_path / "dit")
    assert DiT.from_pretrained(tmp_path / "dit").config.prediction == "latents"


def test_fixed_positions_say_the_column_first():
    table = build_dit(DH).pos_embed[0].double()
    for token in range(SIDE * SIDE):
        row, column = divmod(token, SIDE)
        frequencies = 10000 ** (-torch.arange(4).double() / 4)
        expected = [
            torch.sin(column * frequencies),
            torch.cos(column * frequencies),
            torch.sin(row * frequencies),
            torch.cos(row * frequencies),
        ]
        torch.testing.assert_close(table[token], torch.cat(expected), rtol=0, atol=1e-6)


def block_names(i, *, qk_norm=False):
    linears = ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3", "adaLN_modulation.1")
    norms = ("norm1", "norm2", "attn.q_norm", "attn.k_norm") if qk_norm else ("norm1", "norm2")
    return {f"blocks.{i}.{name}.weight" for name in norms} | pairs(
        *(f"blocks.{i}.{name}" for name in linears)
    )


def pairs(*names):
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


def test_state_dict_names_are_those_of_the_released_checkpoints():
    shared = {
        "pos_embed",
        "t_embedder.W",
        "y_embedder.embedding_table.weight",
        "final_layer.norm_final.weight",
    } | pairs(
        "x_embedder.proj",
        "t_embedder.mlp.0",
        "t_embedder.mlp.2",
        "final_layer.linear",
        "final_layer.adaLN_modulation.1",
    )
    head = pairs("s_embedder.proj", "s_projector") | {
        f"{part}_feat_rope.freqs_{kind}" for part in ("enc", "dec") for kind in ("cos", "sin")
    }
    blocks = set().union(*(block_names(i) for i in range(4)))
    assert set(build_dit(DH).state_dict()) == shared | head | blocks
    blocks = set().union(*(block_names(i, qk_norm=True) for i in range(2)))
    rope = {"feat_rope.freqs_cos", "feat_rope.freqs_sin"}
    assert set(build_dit(replace(PLAIN, use_qknorm=True)).state_dict()) == shared | rope | blocks
    assert "s_projector.weight" not in build_dit(VARIANTS[2]).state_dict()
    assert build_dit(DH).x_embedder.proj.weight.shape == (24, CHANNELS, 1, 1)
    assert build_dit(DH).enc_feat_rope.freqs_cos.shape == (SIDE * SIDE, 8)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("DiT-S", 33.7),
        ("DiT-B", 131.9),
        ("DiT-L", 459.9),
        ("DiT-XL", 677.3),
        ("DiTDH-S", 196.5),
        ("DiTDH-B", 294.3),
        ("DiTDH-L", 621.7),
        ("DiTDH-XL", 838.7),
    ],
)
def test_named_sizes_have_the_published_parameter_counts(name, millions):
    size = DIT_SIZES[name]
    with torch.device("meta"):
        model = build_dit(DiTConfig(hidden_size=size.hidden_size, depth=size.depth, num_heads=size.num_heads))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.06
    )


def test_a_new_model_predicts_zero_and_freezes_positions_and_frequencies():
    for config in (DH, PLAIN):
        model = build_dit(config)
        x_t, t, y = (tensor.float() if tensor.is_floating_point() else tensor for tensor in batch())
        assert not model(x_t, t, y).any()
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {"pos_embed", "t_embedder.W"}


def test_bf16_autocast_keeps_the_velocity_in_fp32_and_close():
    for config in (DH, PLAIN):
        model = random_model(config).float()
        x_t, t, y = (tensor.float() if tensor.is_floating_point() else tensor for tensor in batch())
        expected = model(x_t, t, y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            velocity = model(x_t, t, y)
        assert velocity.dtype == torch.float32
        # bf16 keeps 8 bits: about 1 % after four blocks
        assert (velocity - expected).norm() < 0.03 * expected.norm()
        assert len(velocity.bfloat16().float().sub(velocity).unique()) > 1  # not rounded to bf16 at the end


def test_the_two_classes_and_refusals():
    assert isinstance(build_dit(DH), DiTDH)
    assert isinstance(build_dit(PLAIN), LightningDiT)
    with pytest.raises(ValueError, match="must be a multiple of 4 x num_heads = 12"):
        replace(DH, hidden_size=(16, 22))
    with pytest.raises(ValueError, match="two entries each"):
        replace(DH, depth=(2,))


def test_the_rotary_form_that_is_compiled_gives_what_the_other_does(monkeypatch):
    rope = RotaryEmbedding(8, SIDE)
    x = torch.randn(2, 4, SIDE * SIDE, 8, generator=torch.Generator().manual_seed(2))
    uncompiled = rope(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rope(x), uncompiled)  # fp32, another order


@pytest.mark.parametrize("config", [config for config in VARIANTS if len(config.hidden_size) == 2])
def test_the_model_is_its_head_on_its_backbone(config):
    model, (x_t, t, y) = random_model(config), batch()
    condition, taps = model.backbone(x_t, t, y, taps=(1, 0))
    assert condition.shape == (3, SIDE * SIDE, config.hidden_size[0])
    said = model.head(condition, model.embed(x_t))  # B N C
    assert torch.equal(said.mT.reshape(x_t.shape), model(x_t, t, y))
    # the last block's output, with the time, is what the head is given; the first one's leads to it
    time = model.t_embedder(t)[:, None]
    assert torch.equal(condition, torch.nn.functional.silu(time + taps[0]))
    given = silu(time + model.y_embedder(y)[:, None])
    torch.testing.assert_close(taps[0], model.blocks[1](taps[1], given, model.enc_feat_rope))
    other = model.backbone(x_t, t, torch.tensor([1, 1, 1]))[0]  # the class reaches the head by this alone
    assert torch.equal(
        model.head(other, model.embed(x_t)).mT.reshape(x_t.shape), model(x_t, t, torch.tensor([1, 1, 1]))
    )
    with pytest.raises(ValueError, match=r"taps \[2\] must be blocks of the backbone, 0 to 1"):
        model.backbone(x_t, t, y, taps=(2,))
