"""The typed loader: strictness, messages, round trip."""

import dataclasses
import sys
from typing import Literal

import pytest

from encoder.runtime.config import ConfigError, choose, dump, load, resolve


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    num_steps: int
    kind: Literal["euler", "heun"] = "euler"
    optimiser: Optimiser = Optimiser()
    warmup_steps: int | None = None
    names: list[str] = dataclasses.field(default_factory=list)
    omegas: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.warmup_steps is not None and self.warmup_steps > self.num_steps:
            raise ValueError(f"warmup_steps must be at most num_steps, got {self.warmup_steps}")


def test_yaml_then_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("num_steps: 3\noptimiser: {lr: 1e-4}\nnames: [a]\n")
    config = load(Run, path, ["optimiser.betas=[0.8,0.9]", "kind=heun", "omegas.rec=0.5"])
    assert config == Run(
        num_steps=3,
        kind="heun",
        optimiser=Optimiser(lr=1e-4, betas=(0.8, 0.9)),
        names=["a"],
        omegas={"rec": 0.5},
    )


def test_dump_then_load_is_the_same_config(tmp_path):
    config = Run(num_steps=7, warmup_steps=2, omegas={"und": 1.0})
    dump(config, tmp_path / "config.yaml")
    assert load(Run, tmp_path / "config.yaml") == config
    assert resolve(config)["optimiser"]["betas"] == [0.9, 0.95]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["num_steps=1", "optimiser.lrr=1"], ["unknown key 'lrr'", "did you mean 'lr'"]),
        (["num_stepz=1"], ["unknown key 'num_stepz'", "did you mean 'num_steps'"]),
        (["num_steps=many"], ["num_steps", "expected int", "'many'"]),
        (["num_steps=true"], ["num_steps", "expected int"]),
        (["num_steps=1.5"], ["num_steps", "expected int"]),
        (["num_steps=1", "kind=eular"], ["did you mean 'euler'", "heun"]),
        (["num_steps=1", "names=a"], ["expected a list"]),
        (["num_steps=1", "optimiser.betas=[1]"], ["expected 2 values"]),
        (["num_steps=0"], ["num_steps must be above 0, got 0"]),
        (["num_steps=1", "warmup_steps=2"], ["warmup_steps must be at most num_steps, got 2"]),
        ([], ["missing key 'num_steps'"]),
        (["num_steps=1", "optimiser=3"], ["expected keys of Optimiser"]),
    ],
)
def test_a_mistake_is_one_clear_line(words, parts):
    with pytest.raises(ConfigError) as caught:
        load(Run, None, words)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_broken_yaml_and_missing_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load(Run, tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML"):
        load(Run, broken)


def test_choose_names_the_choices():
    assert choose({"demo": 1}, "demo", "preset") == 1
    message = r"unknown preset 'dmo' \(did you mean 'demo'\?\); choices: demo, small"
    with pytest.raises(ConfigError, match=message):
        choose({"demo": 1, "small": 2}, "dmo", "preset")


def test_the_loader_needs_no_torch():
    import subprocess

    code = (
        "import sys, encoder, encoder.runtime.config, encoder.runtime.stage; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_word_that_is_no_yaml_is_one_line():
    with pytest.raises(ConfigError, match="while scanning") as caught:
        load(Run, None, ["names={b:[1,2]}"])
    assert "\n" not in str(caught.value)
