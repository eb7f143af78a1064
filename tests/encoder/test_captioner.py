"""The parallel caption decoder: who sees what, against a plain masked transformer, and in the objective."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from encoder.data.batch import Batch
from encoder.models.openvision3 import OpenVision3
from encoder.models.shapes import CaptionerShape, DecoderShape, OpenVision3Shape, TextShape, ViTShape
from encoder.models.text import ParallelCaptioner
from encoder.training.objective import understanding_terms

SHAPE = OpenVision3Shape(
    encoder=ViTShape(image_size=8, width=32, layers=1, head_width=16, embed_dim=24),
    decoder=DecoderShape(in_width=32, width=32, layers=1, head_width=16),
    text=TextShape(context_length=8, width=48, layers=1, head_width=16),
    captioner=CaptionerShape(kind="parallel", context_length=10, width=32, layers=2, head_width=16),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return OpenVision3(SHAPE).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    alt, sentence = torch.randint(3, 60, (2, 2, 8), generator=generator)
    caption_ids = torch.randint(3, 60, (2, 7), generator=generator)
    caption_ids[1, 5:] = 0
    return Batch(torch.empty(0), None, (alt, sentence), caption_ids, 0)


def plain_logits(captioner: ParallelCaptioner, z_u, text_tokens):
    """The same decoder from its parameters, one row of attention at a time, in float64."""
    p = {name: value.double() for name, value in captioner.state_dict().items()}
    image, text = z_u.double() @ p["image_proj.weight"].T, text_tokens.double() @ p["text_proj.weight"].T
    x = torch.cat([image, text, p["queries"].expand(len(z_u), -1, -1)], dim=1)
    num_prefix, width = image.shape[1] + text.shape[1], x.shape[2]
    for index in range(captioner.shape.layers):
        b = {name.split(".", 3)[3]: value for name, value in p.items() if f"resblocks.{index}." in name}
        norm = F.layer_norm(x, (width,), b["ln_1.weight"], b["ln_1.bias"], 1e-6)
        q, k, v = (norm @ b["attn.in_proj_weight"].T + b["attn.in_proj_bias"]).chunk(3, dim=-1)
        rows = []
        for row in range(x.shape[1]):
            seen = num_prefix if row < num_prefix else row + 1
            heads = []
            for head in range(width // 16):
                at = slice(16 * head, 16 * head + 16)
                weights = (k[:, :seen, at] @ q[:, row, at, None] / 4).softmax(dim=1)
                heads.append((weights * v[:, :seen, at]).sum(dim=1))
            rows.append(torch.cat(heads, dim=-1))
        x = x + torch.stack(rows, dim=1) @ b["attn.out_proj.weight"].T + b["attn.out_proj.bias"]
        norm = F.layer_norm(x, (width,), b["ln_2.weight"], b["ln_2.bias"], 1e-6)
        hidden = F.gelu(norm @ b["mlp.c_fc.weight"].T + b["mlp.c_fc.bias"], approximate="tanh")
        x = x + hidden @ b["mlp.c_proj.weight"].T + b["mlp.c_proj.bias"]
    x = F.layer_norm(x[:, num_prefix:], (width,), p["ln_final.weight"], p["ln_final.bias"], 1e-6)
    return x @ p["head.weight"].T


def test_it_equals_a_plain_masked_transformer_and_fewer_places_change_nothing(model):
    z_u, text_tokens = torch.randn(2, 16, 32), torch.randn(2, 7, 48)
    with torch.no_grad():
        logits = model.captioner(z_u, text_tokens, 10)
        wanted = plain_logits(model.captioner, z_u, text_tokens)
        torch.testing.assert_close(logits.double(), wanted, atol=2e-5, rtol=1e-4)  # fp32 against fp64
        torch.testing.assert_close(model.captioner(z_u, text_tokens, 6), logits[:, :6], atol=1e-5, rtol=1e-4)


def test_a_query_reaches_its_own_and_later_places_only(model):
    z_u, text_tokens = torch.randn(1, 16, 32), torch.randn(1, 7, 48)
    with torch.no_grad():
        logits = model.captioner(z_u, text_tokens, 10)
        moved = torch.nn.Parameter(model.captioner.queries.clone())
        moved[6] += 1
        other = torch.func.functional_call(model.captioner, {"queries": moved}, (z_u, text_tokens, 10))
    difference = (other - logits).abs().amax(dim=(0, 2))
    assert difference[:6].max() == 0 and difference[6:].min() > 0


def test_the_alt_text_decides_the_caption_the_sentence_and_the_true_words_do_not(model, batch):
    z_u, pooled = torch.randn(2, 16, 32), torch.randn(2, 24)
    seen = []
    handle = model.captioner.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    alt, sentence = batch.text_ids
    try:
        terms = understanding_terms(model, z_u, pooled, batch)
        understanding_terms(model, z_u, pooled, replace(batch, text_ids=(alt, sentence + 1)))
        understanding_terms(model, z_u, pooled, replace(batch, text_ids=(alt + 1, sentence)))
        understanding_terms(model, z_u, pooled, replace(batch, caption_ids=batch.caption_ids.flip(1)))
    finally:
        handle.remove()
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[3])
    assert not torch.allclose(seen[0], seen[2])
    targets = batch.caption_ids[:, 1:]
    nll = -seen[0].log_softmax(dim=-1).gather(2, targets[..., None])[..., 0]
    torch.testing.assert_close(terms["caption"], nll[targets != 0].mean())
    terms["caption"].backward()
    assert model.text.token_embedding.weight.grad.abs().sum() > 0  # the text encoder learns from it as well


def test_it_saves_and_loads(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = OpenVision3.from_pretrained(tmp_path)
    assert isinstance(again.captioner, ParallelCaptioner)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
