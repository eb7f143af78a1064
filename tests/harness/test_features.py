"""The judge: real weights from the package, order of distortions, independence of the batch."""

import numpy as np
import torch
from torch.nn import functional
from torch.testing import assert_close

from encoder.metrics.lite0 import WIDTH, Lite0
from harness.metrics.features import extract
from harness.metrics.fid import distance, moments_of


def pictures(num=24, seed=0):
    """Smooth colour fields, N 64 64 3 uint8."""
    noise = torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth = functional.interpolate(noise, (64, 64), mode="bicubic").clamp(0, 1)
    return (smooth * 255).byte().permute(0, 2, 3, 1).numpy()


def test_features_do_not_depend_on_the_batch():
    network = Lite0()
    done = []
    whole = extract(network, pictures(6), report=done.append)
    parts = extract(network, pictures(6), batch_size=4)
    assert whole.pooled.shape == (6, WIDTH)
    assert whole.logits.shape == (6, 1000)
    assert_close(
        whole.pooled, parts.pooled, atol=1e-4, rtol=1e-4
    )  # float32 convolutions sum in another order
    assert done == [6]


def test_the_judge_orders_distortions():
    network, real = Lite0(), pictures()
    noise = np.random.RandomState(0).randn(*real.shape)
    seen = moments_of(extract(network, real).pooled)
    distances = [
        distance(
            moments_of(extract(network, (real + level * noise).clip(0, 255).astype(np.uint8)).pooled), seen
        )
        for level in (0, 5, 40)
    ]
    assert distances[0] < 1e-3 < distances[1] < distances[2]
