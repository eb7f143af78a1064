"""Text in place of classes: text encoders from folders, the bank of texts, the model that is told them."""

import dataclasses

import pytest
import torch

from encoder.models.openvision3 import OpenVision3
from encoder.runtime.config import ROOT
from rae_bridge.blocks import Block, RotaryEmbedding
from rae_bridge.dit import build_dit
from rae_bridge.sample import Guidance, guided_velocity, sample
from rae_bridge.shapes import DiTConfig
from rae_bridge.text.bank import TextBank
from rae_bridge.text.config import TextShape
from rae_bridge.text.encoders import Text, load_text_encoder
from rae_bridge.text.model import Captioned, TextBlock, TextDiT, take_over
from tests.rae_bridge.text_worlds import write_text_encoder

SIZE = {"hidden_size": (16, 24), "depth": (2, 1), "num_heads": (2, 2), "input_size": 2, "in_channels": 6}
TEXTS = ["a red cup and a blue ball", "two fish", "a fish above the ball"]


def text_dit(conditioning="tokens", seed=0, **changes):
    """A model with random weights throughout."""
    torch.manual_seed(seed)
    shape = {**SIZE, "text_width": 8, "pooled_width": 8, "conditioning": conditioning, **changes}
    model = TextDiT(TextShape(**shape)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3) if parameter.requires_grad else None
    return model


def inputs(num=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 6, 2, 2, generator=generator), torch.rand(num, generator=generator)


@pytest.fixture
def bank(tmp_path):
    model = load_text_encoder(write_text_encoder(tmp_path / "llama", "llama"))
    return TextBank.encode(TEXTS, model)


@pytest.mark.parametrize("kind", ["t5", "clip", "llama", "own"])
def test_a_text_is_the_same_alone_as_beside_longer_ones(tmp_path, kind):
    encoder = load_text_encoder(write_text_encoder(tmp_path / kind, kind), 12)
    together, alone = encoder.encode(TEXTS), encoder.encode([TEXTS[1]])
    num = int(alone.mask.sum())
    assert num == {"own": 9}.get(kind, 2) == int(together.mask[1].sum())
    torch.testing.assert_close(together.tokens[1, :num], alone.tokens[0, :num], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.pooled[1], alone.pooled[0], atol=1e-5, rtol=1e-4)
    again = load_text_encoder(encoder.about["source"], 12)
    assert again.about == encoder.about
    other = load_text_encoder(write_text_encoder(tmp_path / "other", kind, seed=1), 12)
    assert other.about["fingerprint"] != encoder.about["fingerprint"]


def test_pooled_is_the_last_token_of_a_language_model_and_the_mean_of_t5(tmp_path):
    llama = load_text_encoder(write_text_encoder(tmp_path / "llama", "llama")).encode(TEXTS)
    torch.testing.assert_close(llama.pooled[1], llama.tokens[1, 1])
    t5 = load_text_encoder(write_text_encoder(tmp_path / "t5", "t5")).encode(TEXTS)
    torch.testing.assert_close(t5.pooled[1], t5.tokens[1, :2].mean(dim=0))


def test_our_own_tower_sees_its_pads_and_the_last_place_is_pooled(tmp_path):
    encoder = load_text_encoder(write_text_encoder(tmp_path / "own", "own"))
    text = encoder.encode(["two fish"])
    assert text.mask.all() and text.tokens.shape == (1, 9, 8)
    ids = encoder.tokenizer.contrastive_ids(["two fish"], 9)
    torch.testing.assert_close(text.pooled, encoder.tower(ids))


def test_what_is_no_text_encoder_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no config\.json; give a folder with T5"):
        load_text_encoder(str(tmp_path))
    model = OpenVision3.from_pretrained(ROOT / "weights" / "demo" / "ov3")
    model.text = None
    monkeypatch.setattr(OpenVision3, "from_pretrained", lambda folder: model)
    with pytest.raises(ValueError, match="export_text"):
        load_text_encoder("weights/demo/ov3")


def test_the_bank_gives_texts_trimmed_to_the_longest_asked_for(bank, tmp_path):
    encoder = load_text_encoder(bank.about["source"])
    for y in ([1, 2], [0], [3, 1]):
        taken, lone = bank.take(torch.tensor(y)), [encoder.encode([[*TEXTS, ""][i]]) for i in y]
        assert taken.tokens.shape[1] == max(int(each.mask.sum()) for each in lone)
        for row, each in enumerate(lone):
            num = int(each.mask.sum())
            assert taken.mask[row].tolist() == [True] * num + [False] * (taken.mask.shape[1] - num)
            torch.testing.assert_close(taken.tokens[row, :num], each.tokens[0, :num], atol=1e-6, rtol=1e-5)
            assert not taken.tokens[row, num:].any()
    assert bank.null == 3 and not bank.take(torch.tensor([3])).mask.any()  # this tokenizer: "" has no token
    with pytest.raises(IndexError):
        bank.take(torch.tensor([4]))


def test_what_padded_tokens_hold_changes_nothing():
    model, (x_t, t) = text_dit(), inputs()
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(3, 5, 8, generator=generator)
    mask = torch.arange(5) < torch.tensor([5, 2, 0])[:, None]
    pooled = torch.zeros(3, 8)
    first = model(x_t, t, Text(tokens, mask, pooled))
    other = torch.where(mask[..., None], tokens, 1e3 * torch.randn(3, 5, 8, generator=generator))
    torch.testing.assert_close(model(x_t, t, Text(other, mask, pooled)), first)
    trimmed = model(x_t[1:2], t[1:2], Text(tokens[1:2, :2], mask[1:2, :2], pooled[1:2]))
    torch.testing.assert_close(trimmed, first[1:2], atol=1e-3, rtol=1e-4)
    seen = torch.where(mask[..., None], -tokens, tokens)
    assert not torch.allclose(model(x_t, t, Text(seen, mask, pooled))[:2], first[:2])


@pytest.mark.parametrize("conditioning", ["tokens", "pooled", "both"])
def test_swapped_captions_swap_outputs(bank, conditioning):
    told, (x_t, t) = Captioned(text_dit(conditioning), bank), inputs(2)
    x_t, t = x_t[:1].expand(2, -1, -1, -1), t[:1].expand(2)
    out, swapped = told(x_t, t, torch.tensor([0, 2])), told(x_t, t, torch.tensor([2, 0]))
    torch.testing.assert_close(out, swapped.flip(0))
    assert not torch.allclose(out[0], out[1])


def test_guidance_of_1_is_the_text_and_of_0_the_empty_one(bank):
    told, (x_t, _) = Captioned(text_dit(), bank), inputs()
    y, null = torch.tensor([0, 1, 2]), torch.full((3,), bank.null)
    times = torch.full((3,), 0.4)
    for scale, expected in ((1.0, y), (0.0, null)):
        guided = guided_velocity(told, x_t, 0.4, y, Guidance(kind="cfg", scale=scale))
        # a pass of six and one of three: another order of sums, on some processors 3e-6
        torch.testing.assert_close(guided, told(x_t, times, expected), atol=1e-5, rtol=1e-4)
    steps = {"num_steps": 3, "shift": 1.5}
    plain = sample(told, x_t, y, **steps)
    torch.testing.assert_close(sample(told, x_t, y, **steps, guidance=Guidance(kind="cfg", scale=1.0)), plain)
    none = sample(told, x_t, y, **steps, guidance=Guidance(kind="cfg", scale=0.0))
    torch.testing.assert_close(none, sample(told, x_t, null, **steps), atol=1e-5, rtol=1e-4)


def test_pooled_text_alone_cannot_see_the_tokens(bank):
    model, (x_t, t) = text_dit("pooled"), inputs()
    assert not any(isinstance(block, TextBlock) for block in model.blocks)
    text = bank.take(torch.tensor([0, 1, 2]))
    other = dataclasses.replace(text, tokens=-text.tokens)
    assert torch.equal(model(x_t, t, other), model(x_t, t, text))
    other = dataclasses.replace(text, pooled=-text.pooled)
    assert not torch.allclose(model(x_t, t, other), model(x_t, t, text))


@pytest.mark.parametrize("use_qknorm", [False, True])
def test_without_visible_text_a_model_that_took_over_a_class_model_is_that_model(use_qknorm):
    torch.manual_seed(0)
    classes = build_dit(DiTConfig(**SIZE, num_classes=5, use_qknorm=use_qknorm)).eval()
    for parameter in classes.parameters():
        parameter.data.normal_(std=0.3) if parameter.requires_grad else None
    model = text_dit(use_qknorm=use_qknorm)
    take_over(model, classes.config, classes.state_dict())
    x_t, t = inputs()
    hidden = Text(torch.randn(3, 4, 8), torch.zeros(3, 4, dtype=torch.bool), torch.zeros(3, 8))
    expected = classes(x_t, t, torch.full((3,), 5))  # its null class
    torch.testing.assert_close(model(x_t, t, hidden), expected, atol=1e-6, rtol=1e-5)
    seen = dataclasses.replace(hidden, mask=~hidden.mask)
    assert not torch.allclose(model(x_t, t, seen), expected)  # new keys take attention, whatever they hold
    with pytest.raises(ValueError, match=r"another: depth=\(2, 1\), not \(1, 1\)"):
        take_over(text_dit(depth=(1, 1)), classes.config, classes.state_dict())


def test_a_text_block_attends_as_the_formula_says():
    """One head in float64: softmax over image keys turned by their places and text keys that are not."""
    torch.manual_seed(0)
    block = TextBlock(8, 1, 4.0, use_qknorm=False).double()
    rope = RotaryEmbedding(8, 2).double()
    x, mask = torch.randn(2, 7, 8, dtype=torch.double), torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:] = False
    q, k, v = block.attn.qkv(x).chunk(3, dim=-1)
    turn = lambda each: torch.cat([rope(each[:, None, :4])[:, 0], each[:, 4:]], dim=1)  # noqa: E731
    scores = turn(q) @ turn(k).transpose(1, 2) / 8**0.5
    weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(dim=-1)
    torch.testing.assert_close(block.attn(x, rope, mask), block.attn.proj(weights @ v))
    plain = Block(8, 1, 4.0, use_qknorm=False).double()
    plain.load_state_dict(block.state_dict())
    condition = torch.randn(2, 1, 8, dtype=torch.double)
    torch.testing.assert_close(
        block(x[:, :4], condition, rope, torch.ones(2, 4, dtype=torch.bool)), plain(x[:, :4], condition, rope)
    )


def test_text_needs_a_head_and_texts_of_the_models_width(bank):
    with pytest.raises(ValueError, match="needs a DiT-DH"):
        TextShape(hidden_size=(16,), depth=(1,), num_heads=(2,), text_width=8, pooled_width=8)
    with pytest.raises(ValueError, match="takes texts of 12 and 8 numbers"):
        Captioned(text_dit(text_width=12), bank)
