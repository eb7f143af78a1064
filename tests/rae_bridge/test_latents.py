"""Latents of stored tokens: normalisation, exact statistics, RAE's files, round trips."""

from pathlib import Path

import pytest
import torch

from encoder.runtime.checkpoint import save_tensors
from encoder.runtime.stage import write_json
from rae_bridge.latents import CachedLatents, LatentStatistics, open_latents, to_latents, to_tokens


def latents(num=37):
    generator = torch.Generator().manual_seed(0)
    # a mean far from 0 beside a small spread: sums of squares would lose it
    return 1000 + torch.randn(num, 5, 2, 3, generator=generator, dtype=torch.float64)


def exact(data) -> LatentStatistics:
    return LatentStatistics(data.mean(0), data.var(0, correction=0))


def test_normalised_latents_have_mean_zero_and_variance_one_at_every_position():
    data = latents()
    normalised = exact(data).normalise(data)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(5, 2, 3).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        normalised.var(0, correction=0), torch.ones(5, 2, 3).double(), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("has_mean", [True, False])
@pytest.mark.parametrize("has_var", [True, False])
def test_formula_round_trip_and_file_with_any_part_missing(tmp_path, has_mean, has_var):
    mean, var = torch.randn(5, 2, 3), torch.rand(5, 2, 3)
    statistics = LatentStatistics(mean if has_mean else None, var if has_var else None)
    data = latents().float()
    expected = (data - (mean if has_mean else 0)) / ((var + 1e-5).sqrt() if has_var else 1)
    torch.testing.assert_close(statistics.normalise(data), expected)
    torch.testing.assert_close(statistics.denormalise(statistics.normalise(data)), data)
    statistics.save(tmp_path / "stat.pt")
    again = LatentStatistics.load(tmp_path / "stat.pt")
    torch.testing.assert_close(again.normalise(data), expected)
    assert (again.mean is None) == (not has_mean) and (again.var is None) == (not has_var)


def test_files_that_are_not_statistics_are_refused(tmp_path):
    torch.save({"mean": torch.zeros(3), "var": torch.ones(3)}, tmp_path / "flat.pt")
    torch.save({"ema": torch.zeros(3, 2, 2)}, tmp_path / "other.pt")
    for name in ("flat.pt", "other.pt"):
        with pytest.raises(ValueError, match="expected"):
            LatentStatistics.load(tmp_path / name)


def test_tokens_lie_row_by_row_on_the_grid():
    tokens = torch.arange(6).float()[None, :, None].expand(1, 6, 4)
    assert to_latents(tokens, 2)[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    torch.testing.assert_close(to_tokens(to_latents(tokens, 2)), tokens)


def store(folder: Path, tokens: torch.Tensor, labels: torch.Tensor) -> CachedLatents:
    """Tokens in a folder as `encoder.tokens` leaves it."""
    save_tensors(folder / "tokens.safetensors", {"tokens": tokens, "labels": labels})
    origin = {"encoder": "e", "features": "last", "fingerprint": "f"}
    write_json(folder / "index.json", {**origin, "keys": [str(i) for i in range(len(tokens))]})
    return open_latents(folder)


def test_latents_are_the_stored_tokens_on_their_grid_and_their_statistics_exact(tmp_path):
    tokens = torch.randn(600, 4, 6, generator=torch.Generator().manual_seed(0)).half()
    cache = store(tmp_path, tokens, torch.arange(600))
    assert (cache.side, cache.width, cache.has_flips) == (2, 6, False)
    assert cache.origin == {"encoder": "e", "features": "last", "fingerprint": "f"}
    torch.testing.assert_close(cache.latents(torch.tensor([3, 1])), to_latents(tokens[[3, 1]].float(), 2))
    expected, statistics = to_latents(tokens.double(), 2), cache.statistics()
    torch.testing.assert_close(statistics.mean, expected.mean(0).float())
    torch.testing.assert_close(statistics.var, expected.var(0, correction=0).float())


def test_tokens_without_a_square_grid_or_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not a square grid"):
        store(tmp_path, torch.zeros(2, 6, 3), torch.arange(2))
    with pytest.raises(ValueError, match="some pictures have no class"):
        store(tmp_path, torch.zeros(2, 4, 3), torch.arange(2) - 1)
