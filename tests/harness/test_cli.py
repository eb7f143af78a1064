"""The command line as typed: quick answers without torch, one clear line per mistake, before any work."""

import os
import re
import subprocess
import sys

import pytest

from encoder.runtime.config import ROOT, ConfigError
from harness.command_line import main
from harness.config import parse, results_folder

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


def run_script(*words, cwd=ROOT):
    script = [sys.executable, ROOT / "harness" / "run.py", *words]
    return subprocess.run(script, cwd=cwd, capture_output=True, text=True, check=False)


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
        (["--plan"], ["ov3-demo: LLaVA stage 2", "clip-demo: score", "to run, about", "core h", "of disk"]),
        (["--plan", "suite=generation", "encoders=[ov3-demo]"], ["ov3-demo: generate"]),
    ],
)
def test_answers_come_without_torch(words, parts, tmp_path):
    places = [f"runs_dir={tmp_path}/runs", f"results_dir={tmp_path}/results"]
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words, *places],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for part in parts:
        assert part in run.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["suite=undrstanding"], ["unknown suite 'undrstanding'", "did you mean 'understanding'", "all"]),
        (["preset=dmo"], ["unknown preset 'dmo'", "did you mean 'demo'"]),
        (["encoders=[ov3-dmo]"], ["unknown encoder 'ov3-dmo'", "did you mean 'ov3-demo'"]),
        (["encoders=ov3-demo"], ["expected a list", "[ov3-demo]"]),
        (["encoders=[module:no_such_module:E]"], ["no_such_module"]),
        (["suit=all"], ["unknown key 'suit'", "did you mean 'suite'"]),
        (["rae.train.num_stepz=3"], ["unknown key 'num_stepz'", "did you mean 'num_steps'"]),
        (["suite=understanding", "rae.train.num_stepz=3"], ["unknown key 'num_stepz'"]),
        (["llava.aling.num_epochs=1"], ["unknown key 'aling'", "did you mean 'align'"]),
        (["scenes.num_train=many"], ["num_train", "expected int", "'many'"]),
        (["seed=one"], ["seed", "expected int"]),
        (["launch=slurmm"], ["launch", "local"]),
        (["jobs=0"], ["jobs"]),
        (["preset=paper", f"data_root={ROOT / 'Makefile'}"], ["data_root=", "is a file; give a folder"]),
        (["seed=-1"], ["seeds must be 0 or more, got -1"]),
        (["encoders=[]"], ["names none"]),
        (["baseline=clip-dmo"], ["unknown encoder 'clip-dmo'", "did you mean 'clip-demo'"]),
        (["rae.train.num_steps=-4"], ["num_steps must be above 0, got -4"]),
        (["llava.align.batch_size=0"], ["batch_size must be above 0, got 0"]),
        (["llava.tasks.scenes_sed=a.parquet"], ["unknown task 'scenes_sed'", "did you mean 'scenes_seed'"]),
        (["own_data.source=3"], ["no such folder"]),
        (["slurm.nodes=two"], ["slurm.nodes must be a whole number, 1 or more, got 'two'"]),
        (["launch=slurm", "slurm.nodes=0"], ["slurm.nodes must be a whole number, 1 or more, got 0"]),
        (["slurm.gpus_per_node=-1"], ["slurm.gpus_per_node must be a whole number, 0 or more, got -1"]),
        (["own_data.sorce=x"], ["own_data: unknown key 'sorce'", "did you mean 'source'"]),
        (["own_data.image_size=64"], ["own_data needs own_data.source"]),
        (["own_data.source=docs", "own_data.tset_fraction=0.1"], ["did you mean 'test_fraction'"]),
        (["llava.align.init=here"], ["filled in by the harness"]),
        (["suite"], ["write key=value"]),
        (["verfy"], ["verfy"]),
        (["--pln"], ["unknown flag '--pln'"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(words, parts, tmp_path, capsys):
    assert main([*words, f"runs_dir={tmp_path}/runs", f"results_dir={tmp_path}/results"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    for part in parts:
        assert part in shown.err
    assert not (tmp_path / "runs").exists()


def test_a_runs_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([f"runs_dir={tmp_path}/file/runs", f"results_dir={tmp_path}/results"]) == 2
    message = capsys.readouterr().err
    assert "not writable" in message
    assert message.count("\n") == 1
    assert main(["--plan", f"runs_dir={tmp_path}/file"]) == 2
    said = f"error: command line: runs_dir={tmp_path}/file is a file; give a folder\n"
    assert capsys.readouterr().err == said


def test_it_runs_from_any_folder(tmp_path):
    assert run_script("--list", cwd=tmp_path).returncode == 0
    mistake = run_script("suite=none", cwd=tmp_path)
    assert (mistake.returncode, mistake.stderr.count("\n")) == (2, 1)


def test_overrides_reach_the_preset():
    options, preset = parse(
        ["suite=generation", "seed=3", "encoders=[ov3-demo]", "rae.train.num_steps=7", "jobs=1"]
    )
    assert (options.suite, options.seed, options.encoders) == ("generation", 3, ["ov3-demo"])
    assert (preset.rae.train["num_steps"], preset.jobs) == (7, 1)
    with pytest.raises(ConfigError, match=r"unknown key 'rea\.train\.num_steps' \(did you mean 'rae'\?\)"):
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


def test_the_plan_counts_gpu_hours_of_shared_stages_by_their_processes(tmp_path, capsys):
    words = [f"runs_dir={tmp_path}", "suite=generation", "encoders=[ov3-demo]", "seconds.rae_train=3600"]
    words += ["seconds.rae_generate=0", "seconds.tokens_train=7200", "disk_mb.rae_train=2500", "--plan"]
    assert main([*words, "device=cuda", "launch=torchrun", "processes=8"]) == 0
    lines = {line.split("  ")[1]: line for line in capsys.readouterr().out.splitlines() if line[:2] == "  "}
    assert "8.00" in lines["ov3-demo: train the DiT"]
    assert "2.5 GB" in lines["ov3-demo: train the DiT"]
    assert "16.00" in lines["ov3-demo: tokens of train pictures"]


def test_a_plan_for_a_cluster_is_as_long_as_its_longest_chain(tmp_path, capsys):
    words = ["suite=generation", "encoders=[ov3-demo,clip-demo]", "device=cuda"]
    words += [f"runs_dir={tmp_path}", "jobs=1", "--plan"]
    names = parse([])[1].seconds  # every stage that the preset knows
    words += [f"seconds.{name}={3600 * (name == 'rae_train')}" for name in names]
    for launch, at_once, about in (("slurm", "a job each", "1 h"), ("local", "1 at a time", "2 h")):
        assert main([*words, f"launch={launch}"]) == 0
        said = capsys.readouterr().out
        assert f"stages, {at_once}" in said
        assert f"about {about} 00 min" in said


@pytest.mark.parametrize(
    ("words", "dit", "tokens", "scenes"),  # GPU hours of stages of an hour
    [
        (["launch=slurm", "processes=8"], "8.00", "8.00", None),
        (["launch=slurm", "processes=8", "slurm.nodes=2"], "16.00", "16.00", None),
        (["launch=slurm", "slurm.nodes=2"], "2.00", "2.00", None),
        (["launch=slurm", "processes=4", "slurm.nodes=2", "slurm.gpus_per_node=8"], "16.00", "16.00", None),
        (["launch=torchrun", "processes=8", "slurm.nodes=2"], "8.00", "8.00", None),
    ],
)
def test_the_plan_counts_the_gpus_of_all_machines(words, dit, tokens, scenes, tmp_path, capsys):
    hour = ["seconds.rae_train=3600", "seconds.tokens_train=3600", "seconds.scenes=3600"]
    hour += ["suite=generation", "encoders=[ov3-demo]", "device=cuda", f"runs_dir={tmp_path}"]
    assert main([*hour, *words, "--plan"]) == 0
    lines = {line.split("  ")[1]: line for line in capsys.readouterr().out.splitlines() if line[:2] == "  "}
    labels = ("ov3-demo: train the DiT", "ov3-demo: tokens of train pictures", "scenes")
    shown = [re.search(r"1 h 00 min +(\d+\.\d\d)?", lines[label])[1] for label in labels]
    assert shown == [dit, tokens, scenes]


def test_runs_with_values_of_their_own_do_not_replace_the_committed_tables(tmp_path):
    def place(*words):
        return results_folder(*parse(list(words)))

    committed = ROOT / "results" / "demo"
    assert place() == place("suite=generation", "launch=torchrun", "processes=2") == committed
    assert place("jobs=1", "seconds.scenes=3", "runs_dir=elsewhere", "results_dir=results") == committed
    others = [
        place("rae.train.num_steps=3"),
        place("rae.train.num_steps=4", "results_dir=results"),
        place("encoders=[ov3-demo]"),
        place("seed=1"),
        place("seeds=[0,1]"),
        place("device=cuda"),
    ]
    assert len(set(others)) == 6 and place("jobs=1", "seed=1") == place("seed=1")
    for other in others:
        assert other.parent == ROOT / "results" / "local" and other.name.startswith("demo-")
    assert place("seed=1", f"results_dir={tmp_path}") == tmp_path / "demo"  # a place of one's own is kept
    ignored = subprocess.run(["git", "check-ignore", others[0]], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode in (0, 128)  # 128: no clone
