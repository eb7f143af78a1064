"""The faster ways to attend in training against the plain ones: same loss, same gradients."""

import pytest
import torch

from llava_bridge.attention import WIDE, attend_in_fp32, choose_attention, shared_length
from llava_bridge.batches import collate
from llava_bridge.config import LlavaConfig
from llava_bridge.data import build_dataset, read_records
from llava_bridge.labels import IGNORE
from llava_bridge.model import build
from llava_bridge.packing import attend_per_sample
from llava_bridge.pictures import CachedPictures

PICTURE = 9
STAGE = {"stage": 2, "encoder": "tiny", "data": ["a.json"], "tokens": "t", "init": "m", "batch_size": 4}


@pytest.fixture(scope="module")
def batch(llava_data, tokenizer):
    pictures = CachedPictures(llava_data)
    records = read_records([llava_data / "train.json"])
    data = build_dataset(records, pictures, "vicuna_v1", tokenizer, num_image_tokens=4, max_length=200)
    return collate([data[i] for i in (0, 3, 5, 7)], pictures, 0, length_multiple=16)  # 3 has no picture


def loss_and_gradients(llm, batch, config, dtype):
    model = build("tiny", None, llm, config.attention, seed=0)[0].to(dtype).train()
    choose_attention(model, config, zero_stage=2)
    loss = model(**batch, num_items_in_batch=7).loss
    loss.backward()
    return model, loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_a_beginning_run_once_gives_the_gradients_of_every_row_for_itself(llm, batch):
    """Gradient checkpointing as a setting switches the sharing off; the model itself is not checkpointed."""
    given = {"precision": "fp32", "learning_rate": 1e-3}
    plain = LlavaConfig(**STAGE, **given, attention="eager", gradient_checkpointing=True)
    shared = LlavaConfig(**STAGE, **given, attention="sdpa")
    model, expected_loss, expected = loss_and_gradients(llm, batch, plain, torch.float32)
    assert not model.shares_beginnings
    model, loss, gradients = loss_and_gradients(llm, batch, shared, torch.float32)
    length = shared_length(batch["input_ids"], batch["labels"], model.config.image_token_index)
    assert model.shares_beginnings and length > 20  # the system prompt, a character a token
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():  # sums of a few hundred fp32 terms in another order
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_bf16_on_a_cpu_attends_in_fp32_and_saves_no_such_setting(llm, batch, tmp_path):
    config = LlavaConfig(**STAGE, learning_rate=1e-3, attention="sdpa")
    exact = loss_and_gradients(llm, batch, config, torch.float32)[1]
    model, loss, _ = loss_and_gradients(llm, batch, config, torch.bfloat16)
    if not torch.cuda.is_available():
        assert model.model.language_model.config._attn_implementation == WIDE
    assert loss == pytest.approx(exact, rel=2e-2)  # bf16 has 8 bits
    model.config.save_pretrained(tmp_path)
    assert WIDE not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("rows", "supervised", "expected"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 5]], [], 3),
        ([[1, 2, PICTURE, 4], [1, 2, PICTURE, 4]], [], 2),  # pictures differ under one placeholder
        ([[1, 2, 3, 4], [1, 2, 3, 5]], [2], 1),  # token 1 says token 2
        ([[1, 2, 3, 4], [1, 2, 3, 4]], [], 3),  # one token stays
        ([[1, 2, 3, 4]], [], 0),  # nothing to share
        ([[1, 2], [2, 2]], [], 0),
        ([[1, *range(2, 30)], [1, *range(3, 31)]], [], 0),  # one token of 29
    ],
)
def test_shared_length_ends_before_pictures_and_supervised_tokens(rows, supervised, expected):
    labels = torch.full((len(rows), len(rows[0])), IGNORE)
    labels[:, supervised] = 5
    assert shared_length(torch.tensor(rows), labels, PICTURE) == expected


@pytest.mark.parametrize(
    ("change", "zero_stage"),
    [({"compile": True}, 2), ({"lora_rank": 4}, 2), ({"gradient_checkpointing": True}, 2), ({}, 3)],
)
def test_beginnings_are_not_shared_where_a_layer_may_not_run_twice(llm, change, zero_stage):
    model = build("tiny", None, llm, "eager", seed=0)[0]
    choose_attention(model, LlavaConfig(**STAGE, learning_rate=1e-3, **change), zero_stage)
    assert not model.shares_beginnings


def test_attention_stays_fp32_under_autocast():
    """The trainer autocasts to bf16 without DeepSpeed: only what leaves may be rounded."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 24, 8, generator=generator).bfloat16() for _ in range(3))
    module = torch.nn.Module()
    exact = torch.nn.functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), is_causal=True
    ).transpose(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        whole = attend_in_fp32(module, query, key, value, None, is_causal=True)[0]
        packed = attend_per_sample(module, query, key, value, None, sample_lengths=[24])[0]
    assert torch.equal(whole, exact.bfloat16())
    assert torch.equal(packed, exact.bfloat16())
