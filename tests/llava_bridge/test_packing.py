"""Packed rows against separate ones: same loss, same gradients, and no sample sees another."""

import pytest
import torch

from llava_bridge.batches import collate, pack_rows
from llava_bridge.data import build_dataset, read_records
from llava_bridge.labels import IGNORE
from llava_bridge.model import build
from llava_bridge.order import training_order
from llava_bridge.packing import PER_SAMPLE
from llava_bridge.pictures import CachedPictures

ROWS = [0, 3, 5, 7, 9, 12]  # the second and the fourth have no picture


@pytest.fixture(scope="module")
def pictures(llava_data):
    return CachedPictures(llava_data)


@pytest.fixture(scope="module")
def samples(llava_data, pictures, tokenizer):
    records = read_records([llava_data / "train.json"])
    data = build_dataset(records, pictures, "vicuna_v1", tokenizer, num_image_tokens=4, max_length=200)
    return [data[i] for i in ROWS]


@pytest.fixture
def model(llm):
    return build("tiny", None, llm, "eager", seed=0)[0].train()


def loss_and_gradients(model, batches, num_tokens) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=num_tokens).loss
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


PACKED = [(110, 4), (400, 1)]
TOGETHER = [("eager", None, 6), ("sdpa", None, 6)]
TOGETHER += [(attention, *rows) for attention in ("eager", "sdpa", PER_SAMPLE) for rows in PACKED]


@pytest.mark.parametrize(("attention", "pack_length", "num_rows"), TOGETHER)
def test_rows_together_give_the_loss_and_gradients_of_separate_rows(
    model, samples, pictures, attention, pack_length, num_rows
):
    num_tokens = sum(int((sample.labels != IGNORE).sum()) for sample in samples)
    alone = [collate([sample], pictures, 0) for sample in samples]
    together = collate(samples, pictures, 0, length_multiple=16, pack_length=pack_length)
    assert together["input_ids"].shape[1] % 16 == 0
    assert len(together["input_ids"]) == num_rows
    expected_loss, expected = loss_and_gradients(model, alone, num_tokens)
    model.model.language_model.set_attn_implementation(attention)
    loss, gradients = loss_and_gradients(model, [together], num_tokens)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():  # float32 sums in another order
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_mask_of_ones_beside_the_positions_would_let_samples_see_each_other(model, samples, pictures):
    batch = collate(samples, pictures, 0, pack_length=400)
    assert "attention_mask" not in batch
    right = model(**batch).loss
    wrong = model(**batch, attention_mask=torch.ones_like(batch["input_ids"])).loss
    assert abs(right - wrong) > 1e-4


def test_head_on_supervised_positions_gives_the_parents_loss(model, samples, pictures):
    batch = collate(samples, pictures, 0)
    torch.testing.assert_close(model(**batch).loss, model.eval()(**batch).loss, atol=1e-5, rtol=0)


def test_packed_rows_hold_every_sample_once_and_overflow_nowhere():
    lengths = torch.randint(5, 300, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = pack_rows(lengths, 512)
    assert sorted(sample for row in rows for sample in row) == list(range(200))
    assert all(sum(lengths[sample] for sample in row) <= 512 for row in rows)
    assert len(rows) <= 1.05 * sum(lengths) / 512 + 1


def test_modality_batches_hold_one_kind_but_for_one_in_a_group():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 500, (650,), generator=generator)
    has_picture = torch.rand(650, generator=generator) > 0.2
    order = training_order(lengths, 10, 65, seed=0, grouping="modality", has_picture=has_picture)
    assert sorted(order) == list(range(650))
    share = has_picture[torch.tensor(order)].view(-1, 10).float().mean(1)
    assert ((share > 0) & (share < 1)).sum() <= 3  # three groups of at most 320
    by_chance = training_order(lengths, 10, 65, seed=0, grouping="random")
    assert sorted(by_chance) == sorted(order)
    assert by_chance != order
