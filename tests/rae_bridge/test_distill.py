"""The stage `rae_bridge.distill`: who may be whose student, resume, ratios, several processes."""

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT, dump
from encoder.runtime.stage import main, write_json
from encoder.training.options import OptimConfig
from rae_bridge import distill as stage
from rae_bridge.distillation import stages
from rae_bridge.distillation.config import DistillConfig, DistributionConfig, MatchingConfig
from rae_bridge.dit import DiTDH, build_dit
from rae_bridge.generate import TrainedFlow
from rae_bridge.latents import LatentStatistics
from rae_bridge.sample import time_grid
from rae_bridge.shapes import DiTConfig
from rae_bridge.transition import MeanFlowDiT, TransitionDiT

ORIGIN = {"encoder": "e", "features": "last", "fingerprint": "f"}
SHAPE = {
    "hidden_size": (16, 16), "depth": (2, 1), "num_heads": (2, 2), "input_size": 2, "in_channels": 8,
    "num_classes": 4,
}  # fmt: skip


def write_tokens(folder, tokens, labels):
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_tensors(folder / "tokens.safetensors", {"tokens": tokens.half(), "labels": labels})
    write_json(folder / "index.json", {**ORIGIN, "keys": [str(i) for i in range(len(labels))]})
    return str(folder)


def write_teacher(folder, seed=0, **more):
    torch.manual_seed(seed)
    model = build_dit(DiTConfig(**{**SHAPE, **more}))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(folder)
    LatentStatistics(torch.zeros(8, 2, 2), torch.ones(8, 2, 2)).save(folder / "latent_stats.pt")
    write_json(folder / "flow.json", {"shift": 2.0})
    write_json(folder / "tokens.json", ORIGIN)
    return str(folder)


@pytest.fixture
def config(tmp_path) -> DistillConfig:
    """Stage 1 of tmd, four steps."""
    labels = torch.arange(24) % 4
    tokens = torch.randn(24, 4, 8, generator=torch.Generator().manual_seed(0)) + labels[:, None, None]
    return DistillConfig(
        teacher=write_teacher(tmp_path / "teacher"), tokens=write_tokens(tmp_path / "tokens", tokens, labels),
        method="tmd", stage=1, num_steps=4, batch_size=4, steps=4, inner_steps=2, checkpoint_steps=2,
        log_steps=1, optim=OptimConfig(lr=1e-3, warmup_steps=0), stop_factor=None,
        distribution=DistributionConfig(critic_steps=3, critic_optim=OptimConfig(lr=1e-3, warmup_steps=0)),
    )  # fmt: skip


def run(config, folder):
    folder.mkdir(exist_ok=True)
    return stage.distill(config, folder)


def second(config, student, **values):
    return replace(config, stage=2, student=str(student), **values)


def whole_network(config, method):
    about = {"meanflow": 1, "dmd2": 2}
    return replace(config, method=method, stage=about[method], inner_steps=1)


def test_each_method_leaves_a_student_that_says_whose_it_is(config, tmp_path):
    run(config, tmp_path / "one")
    run(second(config, tmp_path / "one" / "weights", guidance=2.0), tmp_path / "two")
    run(whole_network(config, "meanflow"), tmp_path / "mean")
    run(whole_network(config, "dmd2"), tmp_path / "dmd2")
    kinds = {"one": TransitionDiT, "two": TransitionDiT, "mean": MeanFlowDiT, "dmd2": DiTDH}
    for name, kind in kinds.items():
        flow = TrainedFlow.load(tmp_path / name / "weights")
        assert type(flow.model) is kind and flow.shift == 2.0
        assert flow.student["steps"] == 4 and len(flow.student["teacher"]) == 64
        averaged = checkpoint.load(tmp_path / name / "checkpoint.pt")["averaged"]
        assert all(torch.equal(tensor, averaged[key]) for key, tensor in flow.model.state_dict().items())
        teacher = TrainedFlow.load(config.teacher).model.state_dict()
        assert any(not torch.equal(flow.model.state_dict()[key], teacher[key]) for key in teacher)
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert [line["steps"] for line in lines] == [1, 2, 3, 4] and all(
            line["grad_norm"] > 0 for line in lines
        )
    student = TrainedFlow.load(tmp_path / "two" / "weights").student
    assert (student["method"], student["stage"], student["guidance"]) == ("tmd", 2, 2.0)
    assert (student["inner_steps"], student["times"]) == (2, time_grid(4, 2.0, "zero"))


def variants(config, tmp_path):
    """Each stage of each method, what it starts from made first."""
    run(replace(config, num_steps=1), tmp_path / "first")
    pairs = MatchingConfig(warmup="teacher_pairs", warmup_steps=2, pair_steps=2)
    return {
        "tmd 1": replace(config, matching=replace(config.matching, same_time_share=0.0)),
        "tmd 2": second(config, tmp_path / "first" / "weights"),
        "meanflow": replace(whole_network(config, "meanflow"), matching=pairs),
        "dmd2": whole_network(config, "dmd2"),
    }


@pytest.mark.parametrize("name", ["tmd 1", "tmd 2", "meanflow", "dmd2"])
def test_a_killed_run_goes_on_to_the_same_last_bit(config, tmp_path, monkeypatch, name):
    config = replace(variants(config, tmp_path)[name], stop_factor=100.0)
    run(config, tmp_path / "whole")
    kind = stages.STAGES[config.stage]
    original = kind.step

    def killed(self, step, batches, finite):
        if step == 3:
            raise KeyboardInterrupt
        return original(self, step, batches, finite)

    monkeypatch.setattr(kind, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut")
    assert checkpoint.load(tmp_path / "cut" / "checkpoint.pt")["step"] == 2
    monkeypatch.setattr(kind, "step", original)
    run(config, tmp_path / "cut")
    states = [checkpoint.load(tmp_path / each / "checkpoint.pt") for each in ("whole", "cut")]
    first, again = (
        flat({key: state[key] for key in ("stage", "averaged", "norms", "largest_norm")}) for state in states
    )
    assert first.keys() == again.keys() and len(first) > 100
    assert [key for key in first if not same(first[key], again[key])] == []
    if config.stage == 2:
        for network in ("fake", "discriminator"):
            assert any(f"critics.{network}.optimiser" in key for key in first)


def flat(state, prefix=""):
    """Every tensor and number of a nested state, by its path."""
    if not isinstance(state, dict | list):
        return {prefix: state}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {k: v for key, each in items for k, v in flat(each, f"{prefix}.{key}").items()}


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_tensorboard_shows_what_the_log_holds(config, tmp_path, tensorboard_holds_the_log):
    few = replace(config, num_steps=2, log_steps=1, trackers=["tensorboard"])
    run(few, tmp_path / "out")
    tensorboard_holds_the_log(tmp_path / "out", [1, 2])


def test_the_critics_learn_five_times_to_the_students_once_and_the_teacher_never(
    config, tmp_path, monkeypatch
):
    updates = {}
    original = stages.Learner.update

    def counted(self, *args):
        before = copy.deepcopy(self.module.state_dict())
        norm = original(self, *args)
        changed = any(
            not torch.equal(before[key], tensor) for key, tensor in self.module.state_dict().items()
        )
        name = type(self.module).__name__
        updates[name] = updates.get(name, 0) + changed
        return norm

    monkeypatch.setattr(stages.Learner, "update", counted)
    seen = []
    original_step = stages.StageTwo.step

    def step(self, *args):
        seen.append((self.critics.teacher.model, copy.deepcopy(self.critics.teacher.model.state_dict())))
        return original_step(self, *args)

    monkeypatch.setattr(stages.StageTwo, "step", step)
    about = replace(config.distribution, critic_steps=5)
    run(replace(whole_network(config, "dmd2"), num_steps=2, distribution=about), tmp_path / "out")
    assert updates == {"Generator": 2, "DiTDH": 10, "Discriminator": 10}
    model, before = seen[0]
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(each.requires_grad for each in model.parameters())


def test_without_its_weight_there_is_no_discriminator(config, tmp_path):
    about = replace(config.distribution, gan_weight=0.0)
    run(replace(whole_network(config, "dmd2"), distribution=about), tmp_path / "out")
    state = checkpoint.load(tmp_path / "out" / "checkpoint.pt")["stage"]
    assert list(state["critics"]) == ["fake"]


def test_an_exploding_run_stops_and_keeps_its_checkpoint(config, tmp_path, monkeypatch):
    original = stages.Learner.update
    monkeypatch.setattr(
        stages.Learner,
        "update",
        lambda self, loss, step, *rest: original(self, loss, step, *rest) * 1e6 ** (step == 25),
    )
    with pytest.raises(ValueError, match=r"step 25 is over 100 times the median"):
        run(replace(config, num_steps=30, checkpoint_steps=24, stop_factor=100.0), tmp_path / "out")
    assert checkpoint.load(tmp_path / "out" / "checkpoint.pt")["step"] == 24


def test_steps_that_are_not_finite_are_left_out_and_do_not_count_as_explosions(config, tmp_path):
    """One picture's tokens are not finite: one step of each epoch of six."""
    labels, tokens = torch.arange(24) % 4, torch.randn(24, 4, 8)
    tokens[5] = math.inf
    write_tokens(tmp_path / "tokens", tokens, labels)
    config = replace(config, num_steps=30, stop_factor=100.0, skip_non_finite=5)
    result = run(config, tmp_path / "out")
    state = checkpoint.load(tmp_path / "out" / "checkpoint.pt")
    assert state["skipped"] == 5 and len(state["norms"]) == 25
    assert result["largest_grad_norm"] == max(state["norms"]) < math.inf
    assert all(tensor.isfinite().all() for tensor in state["averaged"].values())
    with pytest.raises(ValueError, match=r"4 such steps were left out before.*skip_non_finite"):
        run(replace(config, skip_non_finite=4), tmp_path / "one too many")


def test_students_of_others_and_teachers_that_cannot_be_are_refused(config, tmp_path):
    run(replace(config, num_steps=1), tmp_path / "one")
    weights = tmp_path / "one" / "weights"
    other = write_teacher(tmp_path / "other", seed=1)
    plain = write_teacher(tmp_path / "plain", hidden_size=(16,), depth=(2,), num_heads=(2,))
    no_null = write_teacher(tmp_path / "no_null", class_dropout_prob=0.0)
    wrong = [
        (second(config, weights, teacher=other), "was distilled from .*teacher"),
        (second(config, config.teacher), "not by stage 1 of method tmd"),
        (second(config, tmp_path / "nowhere"), "config.json"),
        (replace(config, teacher=str(weights)), "is a student itself"),
        (replace(config, teacher=plain), "LightningDiT"),
        (replace(config, teacher=no_null), "no null class"),
        (replace(config, teacher=no_null, class_dropout_prob=0.0, guidance=2.0), "no null class"),
        (
            replace(config, distribution=replace(config.distribution, gan_blocks=(2,)), **second_of(weights)),
            "gan_b",
        ),
    ]
    for i, (each, words) in enumerate(wrong):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            run(each, tmp_path / f"wrong{i}")
    run(replace(config, teacher=no_null, class_dropout_prob=0.0, num_steps=1), tmp_path / "fine")
    write_json(Path(config.teacher) / "tokens.json", ORIGIN | {"fingerprint": "g"})
    with pytest.raises(ValueError, match=r"the training knows tokens of .*, the teacher .*teacher those of"):
        run(config, tmp_path / "tokens of another")


@pytest.mark.parametrize("label", [4, 7], ids=["of the null class", "of none"])
def test_classes_that_the_teacher_has_not_are_refused_before_the_first_step(config, tmp_path, label):
    labels = torch.arange(24) % 4
    labels[5] = label
    write_tokens(tmp_path / "tokens", torch.randn(24, 4, 8), labels)
    with pytest.raises(ValueError, match=f"num_classes 4: the tokens have a label {label}"):
        run(config, tmp_path / "out")
    assert not list((tmp_path / "out").glob("checkpoint*"))


def second_of(weights):
    return {"stage": 2, "student": str(weights)}


def test_wrong_input_on_the_command_line_is_one_line_and_code_2(config, tmp_path, capsys):
    plain = write_teacher(tmp_path / "plain", hidden_size=(16,), depth=(2,), num_heads=(2,))
    dump(replace(config, teacher=plain), tmp_path / "c.yaml")
    with pytest.raises(SystemExit) as ended:
        main(DistillConfig, stage.distill, [str(tmp_path / "c.yaml"), str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: teacher") and error.count("\n") == 1


PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from encoder.runtime.config import load
from rae_bridge.distill import distill
from rae_bridge.distillation.config import DistillConfig
for name in sys.argv[2:]:
    out = Path(sys.argv[1]) / f"{name} by two"
    out.mkdir(exist_ok=True)
    distill(load(DistillConfig, Path(sys.argv[1]) / f"{name}.yaml"), out)
"""


def test_two_processes_learn_what_one_does(config, tmp_path):
    """To rounding: gradients are summed in another order, and Adam divides by a gradient's own size, so that
    where it is nothing but rounding a weight moves by up to the rate, anywhere."""
    few = {"num_steps": 2, "optim": OptimConfig(lr=1e-4, warmup_steps=0)}
    chosen = {name: replace(each, **few) for name, each in variants(config, tmp_path).items()}
    for name, each in chosen.items():
        dump(each, tmp_path / f"{name}.yaml")
        run(each, tmp_path / f"{name} by one")
    (tmp_path / "program.py").write_text(PROGRAM)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    together = [sys.executable, *words, str(tmp_path / "program.py"), str(tmp_path), *chosen]
    subprocess.run(together, env=environment, check=True, capture_output=True)
    for name in chosen:
        one, two = (
            flat(checkpoint.load(tmp_path / f"{name} by {num}" / "checkpoint.pt")["averaged"])
            for num in ("one", "two")
        )
        start = flat(TrainedFlow.load(config.teacher).model.state_dict())
        moved = torch.cat([(one[key] - start[key]).abs().flatten() for key in start])
        apart = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
        assert moved.max() > 1e-5 and apart.mean() < 1e-4 * moved.mean(), name
        assert apart.max() < 0.05 * moved.max(), name  # a weight whose gradient is rounding
