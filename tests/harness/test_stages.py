"""Fingerprints, reuse, resume, isolation and the lock, with real stages: small modules written into the
test's folder.
"""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from encoder.runtime.config import ConfigError
from encoder.runtime.stage import DONE
from harness.running import lock
from harness.running.display import Display
from harness.running.launch import Launcher, failure_reason
from harness.running.lock import FolderBusyError, hold
from harness.running.sources import source_version
from harness.running.stages import Graph

STAGE = '''"""A stage that adds one to what it reads."""
import dataclasses, pathlib, time
from encoder.runtime.stage import main, progress

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    source: str = ""
    fail: bool = False
    seconds: float = 0.0

def run(config, out_dir):
    with (out_dir / "starts").open("a") as file:
        file.write("x")
    number = int(pathlib.Path(config.source).read_text()) if config.source else 0
    if config.fail:
        raise ValueError("asked to fail")
    for step in range(int(config.seconds * 20)):
        progress(out_dir, step, int(config.seconds * 20))
        time.sleep(0.05)
    (out_dir / "number").write_text(str(number + 1))
    return {"number": number + 1}

if __name__ == "__main__":
    main(Config, run)
'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddConfig:
    source: str = ""
    fail: bool = False
    seconds: float = 0.0


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a stage module that lies in a folder on the path, for this process and its children."""
    folder = tmp_path / "modules"
    folder.mkdir()
    name = f"add_one_{os.getpid()}_{time.monotonic_ns()}"
    (folder / f"{name}.py").write_text(STAGE)
    monkeypatch.syspath_prepend(str(folder))
    places = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    return name


@pytest.fixture
def runs_dir(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def chain(module, runs_dir, *, fail=False, seconds=0.0):
    """first -> second (may fail) -> third, and a fourth that needs only the first."""
    graph = Graph(runs_dir)
    first = graph.add("first", module, AddConfig(seconds=seconds))
    second = graph.add(
        "second", module, AddConfig(source=f"{first.folder}/number", fail=fail), inputs=[first]
    )
    graph.add("third", module, AddConfig(source=f"{second.folder}/number"), inputs=[second])
    graph.add("fourth", module, AddConfig(source=f"{first.folder}/number"), inputs=[first])
    return graph


def run(graph, jobs=2):
    display = Display(graph, jobs, Console(file=open(os.devnull, "w"), force_terminal=False))  # noqa: SIM115
    with hold(graph.runs_dir) as held:
        outcomes = Launcher(graph=graph, jobs=jobs, threads=1, lock=held, display=display).run()
    return {stage.name: outcomes[stage.folder] for stage in graph}


def test_a_graph_runs_once_and_is_then_reused(module, runs_dir):
    graph = chain(module, runs_dir)
    assert {end.state for end in run(graph).values()} == {"done"}
    third = next(stage for stage in graph if stage.name == "third")
    assert third.done()["result"] == {"number": 3}
    facts = json.loads((third.folder / "launch.json").read_text())
    assert {"commit", "packages", "hardware", "date", "config_hash", "fingerprint"} <= set(facts)
    assert {end.state for end in run(chain(module, runs_dir)).values()} == {"reused"}
    assert (third.folder / "starts").read_text() == "x"


def test_a_stage_is_started_again_in_its_folder_for_a_data_set_that_is_new_or_another(module, runs_dir):
    data, other = (runs_dir.parent / name for name in ("benchmark", "modules"))

    def ask(name="a"):
        graph = Graph(runs_dir)
        stage = graph.add("ask", module, AddConfig(), data_sets={name: data, "other": other})
        (end,) = run(graph).values()
        return stage, end.state

    absent, state = ask()
    assert state == "done" and absent.data_sets["a"] is None
    assert ask()[1] == "reused"
    data.write_text("[1]")
    first, state = ask()
    assert (first.fingerprint, state) == (absent.fingerprint, "done")
    assert ask()[1] == "reused"
    data.write_text("[2]")
    assert ask()[1] == "done"
    noted = json.loads((first.folder / "data_sets.json").read_text())
    assert noted["a"] not in (None, first.data_sets["a"]) and noted["other"] == first.data_sets["other"]
    data.unlink()
    assert ask()[1] == "reused"  # what was asked stays asked
    data.write_text("[2]")
    assert ask()[1] == "reused"
    assert (first.folder / "starts").read_text() == "xxx"


def test_what_a_complete_stage_could_not_run_is_tried_again_and_nothing_else(module, runs_dir):
    run(chain(module, runs_dir))
    second = next(stage for stage in chain(module, runs_dir) if stage.name == "second")
    done = second.done()
    done["result"]["not_run"] = {"SEED-Bench": "no such file"}
    (second.folder / DONE).write_text(json.dumps(done))
    ends = run(chain(module, runs_dir))
    assert {name: end.state for name, end in ends.items()} == {
        "first": "reused",
        "second": "done",
        "third": "reused",
        "fourth": "reused",
    }
    assert second.whole() == second.done() and second.done()["result"] == {"number": 2}


def test_a_failed_check_stops_whatever_reads_what_it_guards(module, runs_dir):
    graph = chain(module, runs_dir)
    first, *_ = graph
    before = {stage.name: stage.fingerprint for stage in graph}
    check = graph.add("check", module, AddConfig(source=f"{first.folder}/number", fail=True), inputs=[first])
    graph.guard(first, check)
    assert {stage.name: stage.fingerprint for stage in graph if stage is not check} == before
    ends = run(graph)
    assert [ends[name].state for name in ("first", "check")] == ["done", "failed"]
    assert {ends[name].state for name in ("second", "third", "fourth")} == {"not run"}
    assert "asked to fail" in ends["third"].reason
    passing = chain(module, runs_dir)
    first, *_ = passing
    passing.guard(first, passing.add("check", module, AddConfig(), inputs=[first]))
    assert {end.state for name, end in run(passing).items() if name != "first"} == {"done"}


def test_a_stage_that_is_held_waits_for_its_check_alone(module, runs_dir):
    graph = chain(module, runs_dir)
    first, _, third, *_ = graph
    graph.hold(
        third,
        graph.add("check", module, AddConfig(source=f"{first.folder}/number", fail=True), inputs=[first]),
    )
    ends = run(graph)
    assert [ends[name].state for name in ("first", "second", "third")] == ["done", "done", "not run"]
    assert "asked to fail" in ends["third"].reason


def test_a_failure_stops_only_what_depends_on_it(module, runs_dir):
    ends = run(chain(module, runs_dir, fail=True))
    assert [ends[name].state for name in ("first", "second", "third", "fourth")] == [
        "done",
        "failed",
        "not run",
        "done",
    ]
    assert "asked to fail" in ends["second"].reason
    assert ends["third"].reason.startswith("second failed: asked to fail")


def test_a_stage_without_an_estimate_does_not_wait_till_last(module, runs_dir):
    graph = Graph(runs_dir)
    for name, seconds in (("short", 60.0), ("unknown", 0.0), ("long", 3600.0)):
        graph.add(name, module, AddConfig(), seconds=seconds)
    run(graph, jobs=1)
    started = {stage.name: (stage.folder / "starts").stat().st_mtime_ns for stage in graph}
    assert sorted(started, key=started.get) == ["long", "unknown", "short"]


def test_a_half_finished_stage_is_run_again_in_its_folder(module, runs_dir):
    graph = chain(module, runs_dir)
    run(graph)
    fourth = next(stage for stage in graph if stage.name == "fourth")
    (fourth.folder / DONE).write_text('{"stage": "cut sh')  # a disk that filled up while it was written
    ends = run(chain(module, runs_dir))
    assert (ends["fourth"].state, ends["third"].state) == ("done", "reused")
    assert (fourth.folder / "starts").read_text() == "xx"


def test_the_reason_is_the_latest_attempts_last_error_or_last_words(tmp_path):
    log = tmp_path / "log.txt"
    first, second = "=== attempt monday\nerror: the disk is full\n", "=== attempt tuesday\n"
    log.write_text(f"{first}{second}loading\nerror: no shards\nbye\n")
    assert failure_reason(log, 2) == f"no shards (see {log})"
    log.write_text(f"{first}{second}KeyError: 'x'\n")
    assert failure_reason(log, 1) == f"KeyError: 'x' (see {log})"
    log.write_text("=== attempt monday\n")
    assert failure_reason(log, 1) == f"no output (see {log})"
    assert failure_reason(log, -9).startswith("killed by SIGKILL (out of memory?)")
    assert failure_reason(log, 0).startswith("ended without DONE.json")


def test_a_fingerprint_follows_config_inputs_files_and_code_and_nothing_else(module, runs_dir, tmp_path):
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"1")

    def last(folder=runs_dir, number=1.0, label="a"):
        graph = Graph(folder)
        first = graph.add(
            "first", module, AddConfig(seconds=number), files=[weights], label=label, seconds=number
        )
        return graph.add(
            "last", module, AddConfig(source=f"{first.folder}/number"), inputs=[first]
        ).fingerprint

    before = last()
    assert last(folder=tmp_path / "elsewhere") == before  # the place of the runs folder is no part of it
    assert last(label="b") == before
    assert last(number=2.0) != before
    weights.write_bytes(b"2")
    assert last() != before


def test_the_code_version_ignores_words_and_follows_imports(tmp_path, monkeypatch):
    import harness.running.sources as sources

    package = tmp_path / "encoder"
    package.mkdir()
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    files = {
        "__init__": "",
        "a": "from encoder.b import f\n",
        "b": "def f():\n    return 1\n",
        "c": "unused = 1\n",
    }

    def version(**changed):
        for name, text in {**files, **changed}.items():
            (package / f"{name}.py").write_text(text)
        sources.source_version.cache_clear()
        sources._read.cache_clear()
        return source_version("encoder.a")

    before = version()
    assert version(b='"""Says one."""\n\n# a comment\ndef f():\n    """One."""\n    return 1\n') == before
    assert version(c="unused = 2\n") == before
    assert version(b="def f():\n    return 2\n") != before
    assert version(a="from .b import f\n") != before
    relative = version(a="from .b import f\n")
    assert version(a="from .b import f\n", b="def f():\n    return 2\n") != relative
    sources.source_version.cache_clear()
    sources._read.cache_clear()
    with pytest.raises(ConfigError, match=r"no stage module 'encoder\.absent'"):
        source_version("encoder.absent")


def test_a_path_of_an_undeclared_input_is_refused(module, runs_dir):
    graph = Graph(runs_dir)
    first = graph.add("first", module, AddConfig())
    with pytest.raises(ConfigError, match="not an input"):
        graph.add("second", module, AddConfig(source=f"{first.folder}/number"))


def test_the_lock_excludes_a_second_run_and_dies_with_its_holder(runs_dir):
    code = (
        "import sys, time, pathlib\nfrom harness.running.lock import hold\n"
        "with hold(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(3600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(runs_dir)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(FolderBusyError, match=f"in use by process {holder.pid}"), hold(runs_dir):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with hold(runs_dir):
        pass


HARNESS = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
import test_stages
from pathlib import Path
test_stages.run(test_stages.chain(sys.argv[2], pathlib.Path(sys.argv[3]), seconds=3600.0))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stages_end_with_the_harness_and_the_next_run_goes_on(module, runs_dir, number, monkeypatch):
    monkeypatch.setattr(lock, "_GRACE_SECONDS", 3600.0)  # to end takes as long as the machine is busy
    tests = os.path.dirname(__file__)
    harness = subprocess.Popen(
        [sys.executable, "-c", HARNESS, tests, module, str(runs_dir)], stderr=subprocess.DEVNULL
    )
    while not list(runs_dir.glob("first/*/starts")):
        time.sleep(0.05)
    harness.send_signal(number)
    harness.wait()
    with hold(runs_dir):  # the stage is gone too: it held the lock as well
        (folder,) = runs_dir.glob("first/*")
    assert not (folder / DONE).exists()
    graph = chain(module, runs_dir, seconds=3600.0)
    assert (
        next(stage for stage in graph if stage.name == "first").folder == folder
    )  # the same folder: it goes on there


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_named_with_what_to_do(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.raises(OSError, match=r"cannot be locked .*choose a folder on another disk with runs_dir="):
        hold(tmp_path).__enter__()
