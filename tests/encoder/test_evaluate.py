"""Held-out numbers and the optimiser, in closed form."""

import math

import pytest
import torch
from torch import nn

from encoder.metrics.probes import linear_probe, recall_at_1
from encoder.metrics.psnr import psnr
from encoder.models.shapes import ViTShape
from encoder.models.vit import ViTEncoder
from encoder.training.finite import FiniteSteps
from encoder.training.optim import MuonWithAdamW, average_weights, build_adamw, rate_factor, update
from encoder.training.options import OptimConfig


def test_psnr_of_a_known_error_and_clamping():
    pixels = torch.full((2, 3, 4, 4), 0.5)
    off = pixels + 0.1
    assert psnr(pixels, off).tolist() == pytest.approx([20.0, 20.0], abs=1e-5)
    same = torch.ones(1, 3, 2, 2), torch.full((1, 3, 2, 2), 7.0)
    assert psnr(*same).item() == math.inf
    assert psnr(*same, highest=120).item() == 120


def test_recall_counts_own_rows_both_ways():
    image = torch.eye(4)
    text = image.clone()
    text[3] = torch.tensor([2.0, 0, 0, 0.1])  # nearest to picture 0, and picture 3's text goes astray
    assert recall_at_1(image, text) == (100.0, 75.0)
    assert recall_at_1(image, image * 3) == (100.0, 100.0)


def test_linear_probe_separates_what_is_linear_and_not_noise():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (400,), generator=generator)
    features = nn.functional.one_hot(labels, 4) + 0.1 * torch.randn(400, 4, generator=generator)
    assert linear_probe(features[:300], labels[:300], features[300:], labels[300:]) == 100
    noise = torch.randn(400, 4, generator=generator)
    assert linear_probe(noise[:300], labels[:300], noise[300:], labels[300:]) < 45


def test_warm_up_starts_above_zero_and_the_cosine_ends_near_it():
    config = OptimConfig(lr=1e-3, warmup_steps=10)
    factors = [rate_factor(config, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.09)))
    assert max(factors) == factors[9] and 0 < factors[-1] < 1e-3
    assert factors == [0.5 * (1 + math.cos(math.pi * i / 100)) * min(1, (i + 1) / 10) for i in range(100)]


def test_a_cosine_after_the_warm_up_falls_from_the_whole_rate_to_the_final_one():
    config = OptimConfig(lr=2e-4, final_lr=2e-5, warmup_steps=10, cosine_after_warmup=True)
    rates = [config.lr * rate_factor(config, step, 110) for step in range(111)]
    rise = [2e-4 * (step + 1) / 10 for step in range(10)]
    fall = [2e-5 + 9e-5 * (1 + math.cos(math.pi * step / 100)) for step in range(101)]
    assert rates == pytest.approx(rise + fall)
    with pytest.raises(ValueError, match=r"final_lr 0\.1 must be 0 to lr 0\.01"):
        OptimConfig(lr=0.01, final_lr=0.1, warmup_steps=0)


def test_weight_decay_acts_on_kernels_only():
    vit = ViTEncoder(ViTShape(image_size=4, width=32, layers=1, head_width=16, embed_dim=8))
    decayed, plain = build_adamw(vit, OptimConfig(lr=1e-3, warmup_steps=1, weight_decay=0.2)).param_groups
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    got = {names[id(parameter)].removeprefix("transformer.resblocks.0.") for parameter in decayed["params"]}
    mlp = {"mlp.c_fc.weight", "mlp.c_proj.weight"}
    assert got == {"conv1.weight", "proj", "attn.in_proj_weight", "attn.out_proj.weight"} | mlp
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.2, 0.0)
    assert len(decayed["params"]) + len(plain["params"]) == len(list(vit.parameters()))


def test_update_clips_and_refuses_a_loss_that_is_not_finite():
    layer = nn.Linear(3, 1)
    config = OptimConfig(lr=1e-2, warmup_steps=1, clip_norm=1.0)
    optimiser = build_adamw(layer, config)
    assert update(optimiser, 100 * layer(torch.ones(2, 3)).sum(), config, 0, 10) > 100  # before clipping
    assert layer.weight.grad is None
    before = layer.weight.clone()
    with pytest.raises(ValueError, match="nan at step 7"):
        update(optimiser, layer(torch.full((1, 3), math.nan)).sum(), config, 7, 10)
    assert torch.equal(layer.weight, before)


def test_a_step_left_out_is_as_if_it_had_not_been():
    config = OptimConfig(lr=1e-2, warmup_steps=1, weight_decay=0.1)
    inputs = [torch.full((1, 3), value) for value in (0.3, math.nan, 0.7)]
    ends = []
    for chosen in (inputs, [inputs[0], inputs[2]]):
        torch.manual_seed(0)
        layer = nn.Linear(3, 1)
        optimiser, finite = build_adamw(layer, config), FiniteSteps(allowed=1)
        for x in chosen:
            update(optimiser, layer(x).square().sum(), config, 0, 10, finite=finite)
        ends.append([*layer.parameters(), *(v for s in optimiser.state.values() for v in s.values())])
    assert finite.skipped == 0 and all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_muon_leaves_a_step_out_too():
    layer = nn.Linear(4, 4)
    optimiser = MuonWithAdamW([layer.weight], [layer.bias], OptimConfig(lr=1e-2, warmup_steps=1), 0.02)
    before = [each.detach().clone() for each in layer.parameters()]
    loss = layer(torch.full((1, 4), math.inf)).sum()
    update(optimiser, loss, OptimConfig(lr=1e-2, warmup_steps=1), 0, 10, finite=FiniteSteps(allowed=1))
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))


def test_averaged_weights_follow_the_formula():
    averaged, current = [torch.zeros(2)], [torch.ones(2)]
    average_weights(averaged, current, 0.9, step=0)  # d = 1/10
    assert averaged[0].tolist() == pytest.approx([0.9, 0.9])
    average_weights(averaged, [torch.zeros(2)], 0.9, step=1000)  # d = 0.9
    assert averaged[0].tolist() == pytest.approx([0.81, 0.81])
