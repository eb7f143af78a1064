"""The command line as typed: quick answers without torch, one clear line per mistake, before any work."""

import os
import subprocess
import sys
import time

import pytest

from encoder.config import ROOT, ConfigError
from harness.config import parse

WITHOUT_TORCH = """
import sys
sys.argv = ["harness/run.py", *sys.argv[1:]]
sys.path[0] = "harness"
import runpy
try:
    runpy.run_path("harness/run.py", run_name="__main__")
except SystemExit as end:
    code = end.code
heavy = {"torch", "transformers", "matplotlib", "numpy"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


def command(*words, cwd=ROOT, timeout=30):
    return subprocess.run(
        [sys.executable, ROOT / "harness" / "run.py", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--help"], ["suite=understanding|generation|all", "Exit code"]),
        (
            ["--list"],
            [
                "understanding",
                "generation",
                "demo",
                "ov3-demo",
                "clip-demo",
                "blind",
                "scenes_seed",
                "scenes_pope",
            ],
        ),
        (["--plan"], ["ov3-demo: LLaVA stage 2", "clip-demo: score", "to run, about"]),
        (["--plan", "suite=generation", "encoders=[ov3-demo]"], ["ov3-demo: sample"]),
    ],
)
def test_answers_come_in_two_seconds_without_torch(words, parts, tmp_path):
    places = [f"runs_dir={tmp_path}/runs", f"results_dir={tmp_path}/results"]
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words, *places],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - started
    assert run.returncode == 0, run.stderr
    for part in parts:
        assert part in run.stdout
    assert seconds < 2.0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["suite=undrstanding"], ["unknown suite 'undrstanding'", "did you mean 'understanding'", "all"]),
        (["preset=dmo"], ["unknown preset 'dmo'", "did you mean 'demo'"]),
        (["encoders=[ov3-dmo]"], ["unknown encoder 'ov3-dmo'", "did you mean 'ov3-demo'"]),
        (["encoders=ov3-demo"], ["expected a list", "[ov3-demo]"]),
        (["encoders=[module:no_such_module:E]"], ["no_such_module"]),
        (["sweet=all"], ["unknown key 'sweet'", "did you mean 'suite'"]),
        (["rae.train.num_stepz=3"], ["unknown key 'num_stepz'", "did you mean 'num_steps'"]),
        (["suite=understanding", "rae.train.num_stepz=3"], ["unknown key 'num_stepz'"]),
        (["llava.aling.num_epochs=1"], ["unknown key 'aling'", "did you mean 'align'"]),
        (["scenes.num_train=many"], ["num_train", "expected int", "'many'"]),
        (["seed=one"], ["seed", "expected int"]),
        (["launch=slurmm"], ["launch", "local"]),
        (["jobs=0"], ["jobs"]),
        (["llava.align.init=here"], ["filled in by the harness"]),
        (["suite"], ["write key=value"]),
        (["verfy"], ["verfy"]),
        (["--pln"], ["unknown flag '--pln'"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(words, parts, tmp_path):
    run = command(*words, f"runs_dir={tmp_path}/runs", f"results_dir={tmp_path}/results")
    assert run.returncode == 2, run.stdout
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    for part in parts:
        assert part in run.stderr
    assert not (tmp_path / "runs").exists()


def test_a_runs_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    run = command(f"runs_dir={tmp_path}/file/runs", f"results_dir={tmp_path}/results")
    assert run.returncode == 2
    assert "not writable" in run.stderr
    assert run.stderr.count("\n") == 1


def test_it_runs_from_any_folder(tmp_path):
    assert command("--list", cwd=tmp_path).returncode == 0


def test_overrides_reach_the_preset():
    options, preset = parse(
        ["suite=generation", "seed=3", "encoders=[ov3-demo]", "rae.train.num_steps=7", "jobs=1"]
    )
    assert (options.suite, options.seed, options.encoders) == ("generation", 3, ["ov3-demo"])
    assert (preset.rae.train["num_steps"], preset.jobs) == (7, 1)
    with pytest.raises(ConfigError, match="unknown key 'rea'"):
        parse(["rea.train.num_steps=7"])


def test_without_the_packages_it_says_what_to_do(tmp_path):
    script = tmp_path / "harness" / "run.py"
    script.parent.mkdir()
    script.write_text((ROOT / "harness" / "run.py").read_text())
    run = subprocess.run(
        [sys.executable, "-S", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert run.returncode == 2
    assert "make setup" in run.stderr
