"""What processes send each other: formulas against messages counted one by one; medians over turns."""

import math
import sys
from pathlib import Path

import pytest
import torch

from encoder.runtime.config import ROOT, load
from encoder.training.recipe import RecipeConfig

sys.path.insert(0, str(ROOT / "bench"))
import _exchange
import processes

sys.path.remove(str(ROOT / "bench"))


def ring_all_reduce(values: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """The sum over rows (n V) of an all-reduce by a ring, in every row, and the values that each row sent."""
    n = len(values)
    parts, sent = [list(row.chunk(n)) for row in values], [0] * n
    for is_gathering in (False, True):
        for step in range(n - 1):
            messages = []
            for rank in range(n):
                number = (rank - step + is_gathering) % n
                messages.append(((rank + 1) % n, number, parts[rank][number].clone()))
                sent[rank] += len(parts[rank][number])
            for receiver, number, part in messages:
                parts[receiver][number] = part if is_gathering else parts[receiver][number] + part
    return torch.stack([torch.cat(row) for row in parts]), sent


@pytest.mark.parametrize("n", [2, 3, 8])
def test_all_reduce_sends_what_a_ring_sends(n):
    values = torch.randn(n, 5 * n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    summed, sent = ring_all_reduce(values)
    torch.testing.assert_close(summed, values.sum(dim=0).expand(n, -1))
    assert [4 * each for each in sent] == [_exchange.all_reduce_bytes(5 * n, 4, n)] * n
    assert 2 * _exchange.all_gather_bytes(5 * n, 4, n) == _exchange.all_reduce_bytes(5 * n, 4, n)


def test_one_process_sends_nothing():
    assert _exchange.all_reduce_bytes(10, 4, 1) == _exchange.all_gather_bytes(10, 4, 1) == 0


@pytest.mark.parametrize(("c", "first", "last"), [(-1.0, 1, 2), (-0.5, 2, 16), (0.25, 1, 3)])
def test_exponent_through_two_points(c, first, last):
    seconds = {n: 3.0 * n**c for n in (last, first)}
    assert math.isclose(_exchange.exponent(seconds), c)
    with pytest.raises(ValueError, match="goes through 2 points, got 3"):
        _exchange.exponent(seconds | {5: 1.0})


def test_features_of_the_contrastive_loss_are_of_all_texts():
    config = load(RecipeConfig, ROOT / "configs/recipes/paper_b.yaml").configs(Path("."))["pretrain_128"]
    values = 8192 * (768 + 2 * 768)  # a picture, its alt text and a sentence of its caption
    assert _exchange.contrastive_bytes(config, 2) == values * 4 / 2 + values * 4


def test_a_step_is_the_median_over_turns_without_their_first_steps():
    first = [
        {"wall": [0, 9, 10, 11], "cpu": [0, 8, 10, 12], "sent": [0, 50, 150, 250]},
        {"wall": [0, 9, 12, 15], "cpu": [5, 9, 12, 15], "sent": [0, 50, 150, 250]},
    ]
    later = [
        {"wall": [7, 9, 109, 110], "cpu": [0, 8, 10, 12], "sent": [0, 1, 101, 201]},
        {"wall": [7, 9, 109, 112], "cpu": [0, 9, 12, 15], "sent": [0, 1, 101, 201]},
    ]
    spent = processes.spent([first, later])
    assert spent == processes.Spent(wall=2.0, cpu=5.0, sent=50.0)  # steps of 2, 2, 100 and 2 seconds


def test_two_processes_of_a_launch_know_their_places():
    places = processes.launch_places(2)
    assert [place["RANK"] for place in places] == ["0", "1"]
    assert len({place["MASTER_PORT"] for place in places}) == 1
    assert {place["WORLD_SIZE"] for place in places} == {"2"}
