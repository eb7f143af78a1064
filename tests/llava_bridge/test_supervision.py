"""Attention sample by sample and cross-entropy part by part, against their plain formulas."""

from types import SimpleNamespace

import pytest
import torch

from llava_bridge.loss import summed_loss
from llava_bridge.packing import attend_per_sample, sample_lengths


def masked_attention(query, key, value, sample_of):
    """The whole block-diagonal causal mask, written out; two query heads for each head of key and value."""
    key, value = (x.repeat_interleave(2, 1) for x in (key, value))
    length = query.shape[2]
    allowed = (sample_of[:, :, None] == sample_of[:, None]) & torch.ones(length, length).tril().bool()
    scores = (query @ key.transpose(2, 3) * 0.3).masked_fill(~allowed[:, None], float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def test_attention_per_sample_is_the_block_diagonal_mask_in_value_and_gradient():
    generator = torch.Generator().manual_seed(0)
    heads = [
        torch.randn(2, num_heads, 12, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for num_heads in (4, 2, 2)
    ]
    lengths = [[5, 1, 6], [9, 3]]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    assert sample_lengths(positions) == [5, 1, 6, 9, 3]
    sample_of = torch.tensor([[0] * 5 + [1] + [2] * 6, [0] * 9 + [1] * 3])
    module = SimpleNamespace(num_key_value_groups=2)
    ours = attend_per_sample(module, *heads, None, sample_lengths(positions), scaling=0.3)[0]
    expected = masked_attention(*heads, sample_of)
    torch.testing.assert_close(ours, expected)
    weight = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        *(torch.autograd.grad((x * weight).sum(), heads) for x in (ours, expected)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_attention_per_sample_refuses_rows_that_are_not_packed():
    heads = [torch.zeros(1, 1, 3, 4)] * 3
    with pytest.raises(ValueError, match="takes packed rows"):
        attend_per_sample(None, *heads, None)
    with pytest.raises(ValueError, match="takes packed rows"):
        attend_per_sample(None, *heads, torch.ones(1, 1, 3, 3), [3])
    with pytest.raises(ValueError, match="must start at position 0"):
        sample_lengths(torch.tensor([[0, 1, 2], [3, 4, 5]]))


@pytest.mark.parametrize("num_positions", [0, 1, 7, 8, 23])
def test_loss_in_parts_is_the_loss_of_all_positions(num_positions):
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(6, 10, bias=False).double()
    hidden = torch.randn(num_positions, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(10, (num_positions,), generator=generator)
    logits = hidden @ head.weight.T
    expected = (logits.logsumexp(1) - logits[torch.arange(num_positions), targets]).sum()
    in_parts = summed_loss(head, hidden, targets, max_logits=80)
    torch.testing.assert_close(in_parts.double(), expected, atol=1e-5, rtol=1e-6)  # float32 inside
    inputs = [hidden, head.weight]
    for one, other in zip(*(torch.autograd.grad(x, inputs) for x in (in_parts, expected)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
