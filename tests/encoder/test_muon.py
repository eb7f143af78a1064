"""Muon in fp32 against torch's, whose products are in bf16, and against the factorisation it stands for."""

import copy

import pytest
import torch

from encoder.training.muon import Muon, orthogonalise

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's, torch's default


@pytest.fixture
def without_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_it_turns_a_matrix_into_its_orthogonal_factor(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = orthogonalise(matrix, COEFFICIENTS, 5, 1e-7)
    spread = u.T @ turned @ v.T  # diagonal, its entries near 1: the singular values that are left
    values = spread.diagonal()
    assert values.min() > 0.6 and values.max() < 1.3
    assert (spread - torch.diag(values)).abs().max() < 1e-4


@pytest.mark.parametrize("settings", [{}, {"nesterov": False}, {"weight_decay": 0.1, "momentum": 0.8}])
def test_steps_are_torch_s_but_for_rounding(without_bf16, settings):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((12, 6), (6, 12))]
    begun, theirs = [each.detach().clone() for each in weights], copy.deepcopy(weights)
    settings = {"lr": 0.02, "weight_decay": 0.0} | settings
    ours, torchs = Muon(weights, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for mine, other in zip(weights, theirs, strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
        ours.step()
        torchs.step()
    for mine, other, first in zip(weights, theirs, begun, strict=True):
        moved = (other - first).abs().max()
        assert moved > 0.01 and (mine - other).abs().max() < 0.03 * moved  # bf16 has three digits
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"])
               for a, b in zip(ours.state.values(), torchs.state.values(), strict=True))  # fmt: skip
    torchs.load_state_dict(ours.state_dict())  # and either takes over from the other


def test_with_the_instructions_it_is_torch_s_own_step(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    torch.manual_seed(0)
    mine = torch.nn.Parameter(torch.randn(4, 6))
    other = torch.nn.Parameter(mine.detach().clone())
    mine.grad, other.grad = torch.ones(4, 6), torch.ones(4, 6)
    Muon([mine], lr=0.1).step()
    torch.optim.Muon([other], lr=0.1).step()
    assert torch.equal(mine, other)
