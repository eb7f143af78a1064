"""Latent statistics: exact, mergeable, independent of batch size; RAE's files; round trips."""

import pytest
import torch

from encoder.runtime.checkpoint import save_tensors
from encoder.runtime.stage import write_json
from rae_bridge.latents import LatentStatistics, StreamingMoments, TokenCache, to_latents, to_tokens


def latents(num=37):
    generator = torch.Generator().manual_seed(0)
    # a mean far from 0 beside a small spread: sums of squares would lose it
    return 1000 + torch.randn(num, 5, 2, 3, generator=generator, dtype=torch.float64)


def streamed(data, batch_size):
    moments = StreamingMoments()
    for batch in data.split(batch_size):
        moments.update(batch)
    return moments


@pytest.mark.parametrize("batch_size", [1, 2, 7, 36, 37, 100])
def test_streaming_statistics_equal_the_two_pass_result_for_every_batch_size(batch_size):
    data = latents()
    moments = streamed(data, batch_size)
    torch.testing.assert_close(moments.mean, data.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(moments.squares / moments.count, data.var(0, correction=0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("cut", [0, 1, 20, 37])
def test_accumulators_of_two_ranks_merge_to_that_of_one(cut):
    data = latents()
    merged = streamed(data[:cut], 4) if cut else StreamingMoments()
    merged.merge(streamed(data[cut:], 5) if cut < len(data) else StreamingMoments())
    whole = streamed(data, 37)
    assert merged.count == 37
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.squares, whole.squares, rtol=1e-9, atol=0)


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        StreamingMoments().statistics()


def test_normalised_latents_have_mean_zero_and_variance_one_at_every_position():
    data = latents()
    normalised = streamed(data, 8).statistics().normalise(data)
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


def test_token_cache_reads_what_the_token_stage_writes(tmp_path):
    tokens, labels = torch.randn(10, 4, 6).half(), torch.arange(10)
    origin = {"encoder": "e", "features": "last", "fingerprint": "f"}
    save_tensors(tmp_path / "tokens.safetensors", {"tokens": tokens, "labels": labels})
    write_json(tmp_path / "index.json", {**origin, "keys": ["a"]})
    cache = TokenCache.load(tmp_path)
    assert cache.side == 2 and cache.origin == origin
    torch.testing.assert_close(cache.latents(torch.tensor([3, 1])), to_latents(tokens[[3, 1]].float(), 2))
    expected = to_latents(tokens.double(), 2)
    torch.testing.assert_close(cache.statistics(3).mean, expected.mean(0).float())
    torch.testing.assert_close(cache.statistics(3).var, expected.var(0, correction=0).float())
    with pytest.raises(ValueError, match="not a square grid"):
        TokenCache(torch.zeros(2, 6, 3), labels[:2], origin).side  # noqa: B018 (the property raises)
    save_tensors(tmp_path / "tokens.safetensors", {"tokens": tokens, "labels": labels - 1})
    with pytest.raises(ValueError, match="some pictures have no class"):
        TokenCache.load(tmp_path)
