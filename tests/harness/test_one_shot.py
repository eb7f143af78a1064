"""The table of one shots: closed forms of a silent model, a student before training, a wrong folder."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from encoder.runtime.config import ROOT
from harness.one_shot import SAMPLES, one_shots
from rae_bridge.dit import build_dit
from rae_bridge.generate import TrainedFlow
from rae_bridge.latents import LatentStatistics
from rae_bridge.shapes import DiTConfig, TransitionShape
from rae_bridge.transition import TransitionDiT, start_from

SHAPE = DiTConfig(
    hidden_size=(32, 32), depth=(1, 1), num_heads=(2, 2), input_size=2, in_channels=4, num_classes=3,
    class_dropout_prob=0.0,
)  # fmt: skip


@pytest.fixture
def silent(tmp_path):
    """A DiT-DH before training, whose velocity is 0 everywhere, and 2,000 standard normal latents."""
    statistics = LatentStatistics(torch.zeros(4, 2, 2), torch.ones(4, 2, 2))
    real = torch.randn(2000, 4, 2, 2, generator=torch.Generator().manual_seed(4))
    return TrainedFlow(build_dit(SHAPE).eval(), statistics, 1.0, None, tmp_path), real


def test_what_is_not_denoised_has_the_spread_of_what_was_mixed(silent):
    flow, real = silent
    *rows, samples = one_shots(flow, real, torch.zeros(2000, dtype=torch.long), num_steps=4)
    assert [row.t for row in rows] == [1.0, 0.75, 0.5, 0.25] and samples.t == SAMPLES
    for row in rows:
        variance = row.t**2 + (1 - row.t) ** 2  # of x_t itself
        assert row.spread == pytest.approx(variance, abs=0.02) and row.mean < 0.002
        assert row.distance == pytest.approx((1 - variance**0.5) ** 2, abs=0.01)
    assert samples.spread == pytest.approx(1, abs=0.02) and samples.distance < 0.01  # the noise itself


def test_a_student_before_training_says_what_its_teacher_says(silent):
    flow, real = silent
    student = TransitionDiT(TransitionShape(**dataclasses.asdict(SHAPE)))
    start_from(student, flow.model.state_dict())
    about = {"inner_steps": 2}
    y = torch.zeros(2000, dtype=torch.long)
    ours = one_shots(dataclasses.replace(flow, model=student.eval(), student=about), real, y, num_steps=2)
    for row, expected in zip(ours, one_shots(flow, real, y, num_steps=2), strict=True):
        for key in ("distance", "mean", "spread"):
            assert getattr(row, key) == pytest.approx(getattr(expected, key), abs=1e-5)


def test_a_moved_mean_is_told_from_a_narrow_spread(silent):
    flow, real = silent
    with torch.no_grad():  # the head's last layer: a velocity of 0.3 in every channel, whatever is seen
        flow.model.final_layer.linear.bias.fill_(0.3)
    first = one_shots(flow, real, torch.zeros(2000, dtype=torch.long), num_steps=1)[0]
    assert first.mean == pytest.approx(0.09, abs=0.01) and first.spread == pytest.approx(1, abs=0.02)
    assert first.distance == pytest.approx(0.09, abs=0.015)


@pytest.mark.parametrize(
    "words, said",
    [([], "no_model"), (["--steps", "0"], "--steps 0 must be 1 or more"), (["--num", "1"], "2 or more")],
)
def test_a_wrong_folder_or_number_ends_in_one_line(tmp_path, words, said):
    folder = str(tmp_path / "no_model")
    words = [sys.executable, "-m", "harness.one_shot", folder, "--tokens", folder, *words]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1 and ended.stderr.startswith("error: ") and said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
