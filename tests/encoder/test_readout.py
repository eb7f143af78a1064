"""The readout of several facts: a softmax regression's own optimum, chance on labels that mean nothing, what
one layer cannot read and two can."""

import pytest
import torch
from torch.nn import functional

from encoder.metrics.readout import UNDEFINED, ReadoutConfig, fit_readout


def gaussians(num, seed=0):
    """Three classes whose means lie 1.5 deviations from the middle, in eight dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    means = 1.5 * torch.eye(3, 8)
    return torch.randn(num, 8, generator=generator) + means[labels], labels


def softmax_regression(features, labels, num_steps=2000):
    """The maximum-likelihood softmax regression by full-batch gradient descent, in float64."""
    x = torch.cat([features.double(), torch.ones(len(features), 1).double()], 1)
    weights = torch.zeros(x.shape[1], 3, dtype=torch.float64)
    targets = functional.one_hot(labels, 3).double()
    for _ in range(num_steps):
        weights -= 0.5 * x.T @ ((x @ weights).softmax(1) - targets) / len(x)
    return lambda new: (torch.cat([new.double(), torch.ones(len(new), 1).double()], 1) @ weights).softmax(1)


def test_it_finds_the_maximum_likelihood_of_a_softmax_regression():
    features, labels = gaussians(1500)
    new, _ = gaussians(300, seed=1)
    config = ReadoutConfig(num_epochs=150, batch_size=100, weight_decay=0.0, learning_rate=1e-2)
    ours = fit_readout(features, labels[:, None], [3], config).probabilities(new)[0]
    theirs = softmax_regression(features, labels)(new)
    assert (ours - theirs).abs().mean() < 0.01
    assert (ours.argmax(1) == theirs.argmax(1)).double().mean() > 0.98


def test_standardising_makes_scale_and_offset_of_a_feature_nothing():
    features, labels = gaussians(300)
    scale = torch.tensor([1e3, 1e-3, 1, 1, 50, 1, 1, 1])
    config = ReadoutConfig(num_epochs=5)
    one = fit_readout(features, labels[:, None], [3], config).probabilities(features)[0]
    moved = features * scale + 7
    other = fit_readout(moved, labels[:, None], [3], config).probabilities(moved)[0]
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)  # float32 of 1e3-fold features


def test_labels_that_mean_nothing_are_read_by_chance():
    features, _ = gaussians(2000)
    labels = torch.randint(4, (2000, 1), generator=torch.Generator().manual_seed(5))
    readout = fit_readout(features[:1000], labels[:1000], [4], ReadoutConfig())
    right = (readout.probabilities(features[1000:])[0].argmax(1) == labels[1000:, 0]).double().mean()
    assert right == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / 1000) ** 0.5)


def test_an_exclusive_or_takes_the_hidden_layer():
    features = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    labels = ((features[:, 0] > 0) ^ (features[:, 1] > 0)).long()[:, None]

    def right(hidden):
        config = ReadoutConfig(hidden=hidden, num_epochs=30, learning_rate=1e-2)
        readout = fit_readout(features[:2000], labels[:2000], [2], config)
        return (readout.probabilities(features[2000:])[0].argmax(1) == labels[2000:, 0]).double().mean()

    assert right(0) < 0.6 and right(32) > 0.9


def test_what_is_undefined_teaches_nothing_about_its_fact():
    features, labels = gaussians(600)
    unknown = labels.clone()
    unknown[::2] = UNDEFINED
    config = ReadoutConfig(num_epochs=8, batch_size=50, learning_rate=1e-2)
    both = fit_readout(features, torch.stack([labels, unknown], 1), [3, 3], config)
    assert (both.probabilities(features)[1].argmax(1) == labels).double().mean() > 0.7
    nothing = fit_readout(features, torch.full((600, 1), UNDEFINED), [3], config)
    assert nothing.probabilities(features)[0].std(dim=0).max() < 0.5  # it stays as drawn


def test_the_same_seed_gives_the_same_readout_and_leaves_the_callers_draws_alone():
    features, labels = gaussians(200)
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    one, two = (fit_readout(features, labels[:, None], [3], ReadoutConfig(hidden=8), seed=4) for _ in "ab")
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(one.probabilities(features)[0], two.probabilities(features)[0])


@pytest.mark.parametrize(
    ("features", "facts", "message"),
    [
        (torch.full((4, 2), float("nan")), torch.zeros(4, 1, dtype=torch.long), "row 0 is not finite"),
        (
            torch.zeros(4, 2),
            torch.zeros(3, 1, dtype=torch.long),
            r"\(3, 1\), expected 4 samples x 1",
        ),
        (torch.zeros(4, 2), torch.full((4, 1), 3), "fact 0 has values 3 to 3; it can have 0 to 2"),
        (torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.long), "at least 2 rows"),
    ],
)
def test_bad_input_is_refused(features, facts, message):
    with pytest.raises(ValueError, match=message):
        fit_readout(features, facts, [3], ReadoutConfig())
