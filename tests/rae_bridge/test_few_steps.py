"""What a student learns: separated modes, where transitions beat a flow in few steps (arXiv:2512.12465)."""

import pytest
import torch

from encoder.runtime import checkpoint
from encoder.runtime.stage import write_json
from encoder.training.options import OptimConfig
from rae_bridge import train
from rae_bridge.config import DiTOptimConfig, DiTSize, TrainDiTConfig
from rae_bridge.distill import distill
from rae_bridge.distillation.config import DistillConfig, DistributionConfig, MatchingConfig
from rae_bridge.generate import TrainedFlow
from rae_bridge.sample import sample, sample_transitions, time_grid

NUM_MODES, CHANNELS = 4, 4


def modes():
    generator = torch.Generator().manual_seed(3)
    return torch.nn.functional.normalize(torch.randn(NUM_MODES, CHANNELS, generator=generator), dim=1) * 4


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A teacher that learnt four modes (std 0.3) of one class, in one token; its tokens."""
    tmp_path = tmp_path_factory.mktemp("mixture")
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(NUM_MODES, (4096,), generator=generator)
    points = modes()[which] + 0.3 * torch.randn(4096, CHANNELS, generator=generator)
    tokens, labels = tmp_path / "tokens", torch.zeros(4096, dtype=torch.long)
    tokens.mkdir()
    checkpoint.save_tensors(
        tokens / "tokens.safetensors", {"tokens": points[:, None].half(), "labels": labels}
    )
    origin = {"encoder": "e", "features": "last", "fingerprint": "f"}
    write_json(tokens / "index.json", {**origin, "keys": [str(i) for i in range(4096)]})
    size = DiTSize(hidden_size=(48, 48), depth=(2, 2), num_heads=(2, 2))
    config = TrainDiTConfig(
        tokens=str(tokens), num_classes=1, num_steps=500, batch_size=128, size=size, ema_share=0.1,
        optim=DiTOptimConfig(lr=3e-3, final_lr=3e-4, decay_steps=(200, 500)), log_steps=500,
    )  # fmt: skip
    (tmp_path / "teacher").mkdir()
    train.train(config, tmp_path / "teacher")
    return str(tmp_path / "teacher" / "weights"), str(tokens)


def drawn(folder, num_steps, num=1024):
    """Points (num, CHANNELS) in the data's own scale."""
    flow = TrainedFlow.load(folder)
    noise, inner = torch.randn(2, num, CHANNELS, 1, 1, generator=torch.Generator().manual_seed(9))
    y = torch.zeros(num, dtype=torch.long)
    if flow.student is None:
        latents = sample(flow.model, noise, y, num_steps=num_steps, shift=1.0)
    else:
        inner = torch.stack([inner.roll(i, 0) for i in range(num_steps)])
        grid = time_grid(flow.student["inner_steps"], 1.0, "zero")
        settings = {"shift": 1.0, "inner_noise": inner, "inner_times": grid}
        latents = sample_transitions(flow.model, noise, y, num_steps=num_steps, **settings)
    return flow.statistics.denormalise(latents).flatten(1)


def far(points):
    """The share of points that lie at no mode (over 4 standard deviations off); a mode's largest error."""
    distances = torch.cdist(points, modes())
    nearest = distances.argmin(1)
    shares = torch.bincount(nearest, minlength=NUM_MODES) / len(points)
    return float((distances.amin(1) > 1.2).float().mean()), float((shares - 1 / NUM_MODES).abs().max())


def test_transitions_beat_the_flow_on_separated_modes_at_two_steps(mixture, tmp_path):
    teacher, tokens = mixture
    config = DistillConfig(
        teacher=teacher, tokens=tokens, method="tmd", stage=1, num_steps=300, batch_size=128, steps=2,
        inner_steps=4, optim=OptimConfig(lr=2e-3, warmup_steps=20), ema_share=0.1, log_steps=300,
        matching=MatchingConfig(warmup_steps=100),
    )  # fmt: skip
    (tmp_path / "tmd").mkdir()
    distill(config, tmp_path / "tmd")
    many, few, transitions = (
        far(drawn(folder, steps))
        for folder, steps in ((teacher, 50), (teacher, 2), (tmp_path / "tmd/weights", 2))
    )
    assert many[0] < 0.15  # the teacher knows the modes
    assert few[0] > 2 * many[0]  # and misses them in two steps
    assert transitions[0] < 0.5 * few[0] and transitions[1] < 0.1  # its student does not, and loses none


def test_stage_2_brings_one_transition_to_the_modes_and_loses_none(mixture, tmp_path):
    teacher, tokens = mixture
    common = {"teacher": teacher, "tokens": tokens, "method": "tmd", "batch_size": 128, "steps": 1}
    common |= {"inner_steps": 2, "ema_share": 0.1, "log_steps": 300}
    first = DistillConfig(
        stage=1, num_steps=300, optim=OptimConfig(lr=2e-3, warmup_steps=20),
        matching=MatchingConfig(warmup_steps=100), **common,
    )  # fmt: skip
    second = DistillConfig(
        stage=2, student=str(tmp_path / "first" / "weights"), num_steps=120,
        optim=OptimConfig(lr=1e-3, warmup_steps=10),
        distribution=DistributionConfig(critic_optim=OptimConfig(lr=3e-3, warmup_steps=0)), **common,
    )  # fmt: skip
    off, worst = {}, {}
    for name, config in (("first", first), ("second", second)):
        (tmp_path / name).mkdir()
        distill(config, tmp_path / name)
        off[name], worst[name] = far(drawn(tmp_path / name / "weights", 1, num=2048))
    assert off["first"] > 0.3  # one draw of stage 1 alone leaves much between the modes
    assert off["second"] < 0.6 * off["first"] and worst["second"] < 0.1
