"""The distance between tokens against closed forms, and what must not change it."""

import numpy as np
import pytest
import scipy.linalg
import torch

from encoder.token_store import Encoded, TokenStore, TokenWriter
from harness.metrics import token_distance
from harness.metrics.config import ReferenceConfig, keys_of
from harness.metrics.numbers import class_accuracy, token_metric
from harness.metrics.token_distance import FlatTokens, relative_token_distance


def drawn(num, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, width, generator=generator, dtype=torch.float64)


def textbook(tokens, real):
    """Over all directions: Frechet distance of standardised tokens, by scipy's square root of a matrix."""
    mean, std = real.mean(0), real.std(0, unbiased=False)
    a, b = (((each - mean) / std).numpy() for each in (tokens, real))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    return distance / np.trace(cov_b)


def test_it_is_the_textbook_formula_where_all_directions_count():
    real, tokens = drawn(400, 6, 0) @ drawn(6, 6, 1) + 3, 1.3 * drawn(300, 6, 2) @ drawn(6, 6, 1) + 4
    assert relative_token_distance(tokens, real) == pytest.approx(textbook(tokens, real), rel=1e-9)


def test_the_same_tokens_are_at_0_and_always_the_mean_is_at_1():
    real = drawn(300, 40, 0)
    assert relative_token_distance(real, real) == pytest.approx(0, abs=1e-8)
    for num_directions in (5, 256):
        constant = real.mean(0).expand(100, -1)
        found = relative_token_distance(constant, real, num_directions=num_directions)
        assert found == pytest.approx(1, abs=1e-6)


def test_a_shift_and_a_shrinking_in_closed_form():
    real = drawn(5000, 20, 0)
    real = (real - real.mean(0)) / real.std(0, unbiased=False)
    # every number by c deviations: |m|^2 = 20 c^2 over a variance of 20 (5000 / 4999)
    assert relative_token_distance(real + 0.5, real) == pytest.approx(0.25, rel=1e-3)
    assert relative_token_distance(0.8 * real, real) == pytest.approx(0.2**2, rel=1e-3)


def test_neither_scale_nor_offset_of_any_number_counts():
    real, tokens = drawn(300, 30, 0), 0.9 * drawn(200, 30, 1) + 0.1
    scale, offset = 10 ** (3 * drawn(1, 30, 2)), 100 * drawn(1, 30, 3)
    one = relative_token_distance(tokens, real, num_directions=8)
    other = relative_token_distance(tokens * scale + offset, real * scale + offset, num_directions=8)
    assert one == pytest.approx(other, rel=1e-5)


def test_with_more_numbers_than_pictures_the_leading_directions_count():
    mixing, wide = drawn(4, 500, 0), 0.05
    real = drawn(80, 4, 1) @ mixing + wide * drawn(80, 500, 2)
    same = drawn(80, 4, 3) @ mixing + wide * drawn(80, 500, 4)
    other = drawn(80, 4, 5) @ drawn(4, 500, 6) + wide * drawn(80, 500, 7)
    near, far = (relative_token_distance(each, real, num_directions=4) for each in (same, other))
    assert near < 0.2 and far > 5 * near


def test_directions_are_those_of_all_real_pictures_though_they_are_sorted(monkeypatch):
    monkeypatch.setattr(token_distance, "_FIT", 60)
    real = 0.1 * drawn(400, 20, 0)
    real[:200, :10] += 5 * drawn(200, 1, 1)  # in the first class ten numbers change together,
    real[200:, 10:20] += 5 * drawn(200, 1, 2)  # in the second another ten
    lost = real.clone()
    lost[:, 10:20] = real[:, 10:20].mean(0)
    # standardised, each ten are one direction of variance 10: half of what there is is lost
    assert relative_token_distance(lost, real, num_directions=2) == pytest.approx(0.5, abs=0.02)


def test_tokens_of_a_store_are_read_in_parts_and_count_as_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(token_distance, "_CHUNK", 7)
    tokens = drawn(50, 24, 0).float().reshape(50, 4, 6)
    about = {"encoder": "e", "features": {}, "fingerprint": "f", "grid": [2, 2], "width": 6,
             "can_decode": True, "dtype": "float32", "flips": False}  # fmt: skip
    writer = TokenWriter(tmp_path, about, ["a", "b"])
    for number, rows in enumerate((slice(0, 20), slice(20, 50))):
        keys = [f"p{i}" for i in range(50)[rows]]
        labels = torch.zeros(len(keys), dtype=torch.long)
        writer.write(number, Encoded(keys=keys, tokens=tokens[rows], flipped=None, labels=labels))
    writer.finish(0.0)
    store, flat = TokenStore(tmp_path), tokens.flatten(1)
    part, real = FlatTokens.of(store, 15, 10), FlatTokens.of(store)
    assert (len(part), len(real), len(FlatTokens.of(store, 45, 10))) == (10, 50, 5)
    found = relative_token_distance(part, real)
    assert found == pytest.approx(relative_token_distance(flat[15:25], flat), rel=1e-12)
    assert found == pytest.approx(textbook(flat[15:25].double(), flat.double()), rel=1e-6)


def test_a_number_that_never_changes_in_real_tokens_is_no_error():
    real = torch.cat([drawn(50, 3, 0), torch.ones(50, 1).double()], 1)
    assert relative_token_distance(real, real) == pytest.approx(0, abs=1e-8)
    with pytest.raises(ValueError, match="the same for every picture"):
        relative_token_distance(real, torch.ones(50, 4).double())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.full((5, 3), float("inf")), "generated tokens: row 0 is not finite"),
        (torch.zeros(1, 3), "at least 2 rows"),
        (torch.zeros(5, 2), "width 2 and 3"),
    ],
)
def test_bad_tokens_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        relative_token_distance(tokens, drawn(10, 3, 0).float())


def test_its_key_says_that_no_judge_looked():
    (key,) = token_metric(drawn(20, 3, 0), drawn(20, 3, 1))
    config = ReferenceConfig(data="anywhere", prefix="scene-centric/")
    assert key == "gFD-tokens"
    assert keys_of("generation", config, has_tokens=True)[-1] == "scene-centric/gFD-tokens"
    assert "scene-centric/class-accuracy-lite0" in keys_of("generation", config)


def test_class_accuracy_counts_what_was_asked_for():
    labels = torch.arange(400) % 4
    real = 6 * torch.nn.functional.one_hot(labels, 4).double() + drawn(400, 4, 0)
    seen = 6 * torch.nn.functional.one_hot(labels, 4).double() + drawn(400, 4, 1)
    found = class_accuracy(seen, labels, real, labels)
    assert found.value > 98 and found.num_samples == 400 and found.unit == "%"
    assert class_accuracy(seen, (labels + 1) % 4, real, labels).value < 2
    shuffled = labels[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    chance = class_accuracy(seen, shuffled, real, labels)
    assert chance.value == pytest.approx(25, abs=3 * chance.stderr)
