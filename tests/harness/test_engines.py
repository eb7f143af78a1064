"""Engines: what is called with how many processes, a lost one among them, and the same small graph as cluster
jobs (submitit's local executor).
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from encoder.runtime.config import ConfigError, dump
from harness.config import parse
from harness.running import attach, engines
from harness.running.display import Display
from harness.running.gpus import least_busy, visible_gpus
from harness.running.launch import Launcher
from harness.running.lock import hold
from harness.running.sources import module_file
from harness.running.stages import Graph

LOCAL = {"cluster": "local", "timeout_min": 30}
STAGE = '''"""A stage that writes a number."""
import dataclasses, time
from encoder.runtime.stage import main

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    number: int = 1
    fail: bool = False
    seconds: float = 0.0

def run(config, out_dir):
    with (out_dir / "starts").open("a") as starts:
        starts.write("x")
    if (out_dir / "starts").read_text() == "x":
        time.sleep(config.seconds)
    if config.fail:
        raise ValueError("asked to fail")
    (out_dir / "number").write_text(str(config.number))
    return {"number": config.number}

if __name__ == "__main__":
    main(Config, run)
'''
RANKS = '''"""A stage for two processes: of the first two, the second is killed while the other waits."""
import dataclasses, os, pathlib, signal, time
from encoder.runtime.stage import main

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    number: int = 1

def run(config, out_dir):
    rank, other = os.environ["RANK"], out_dir / "first is there"
    if not (out_dir / "killed").exists():
        while rank == "1" and not other.exists():
            time.sleep(0.01)
        if rank == "1":
            (out_dir / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (out_dir / "complete").write_text("kept")
        other.touch()
        time.sleep(600)
    return {"kept": (out_dir / "complete").read_text(), "processes": os.environ["WORLD_SIZE"]}

if __name__ == "__main__":
    main(Config, run)
'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    number: int = 1
    fail: bool = False
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RanksConfig:
    number: int = 1


@pytest.fixture(autouse=True)
def interruptible():
    """A shell lets its background jobs ignore Ctrl-C, and whatever is started here would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def write_module(tmp_path, monkeypatch, text) -> str:
    """A stage module of a name of its own where every process finds it."""
    name = f"stage_{os.getpid()}_{time.monotonic_ns()}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    places = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    (tmp_path / "runs").mkdir()
    return name


@pytest.fixture
def graph(tmp_path, monkeypatch):
    name = write_module(tmp_path, monkeypatch, STAGE)
    made = Graph(tmp_path / "runs")
    first = made.add("first", name, StageConfig(number=1))
    made.add("second", name, StageConfig(number=2), inputs=[first])
    failing = made.add("third", name, StageConfig(fail=True), inputs=[first])
    made.add("fourth", name, StageConfig(number=4), inputs=[failing])
    return made


def run(graph, **chosen):
    display = Display(graph, 2, Console(file=open(os.devnull, "w"), force_terminal=False))  # noqa: SIM115
    with hold(graph.runs_dir) as lock:
        launcher = Launcher(graph=graph, jobs=2, threads=1, lock=lock, display=display, **chosen)
        outcomes = launcher.run()
    return {stage.name: outcomes[stage.folder] for stage in graph}


def test_jobs_run_in_order_and_a_failed_one_says_why(graph, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(engines, "_LOST_SECONDS", 2.0)
    ends = run(graph, launch="slurm", slurm=LOCAL)
    assert [ends[name].state for name in ("first", "second", "third", "fourth")] == [
        "done",
        "done",
        "failed",
        "not run",
    ]
    assert "asked to fail" in ends["third"].reason
    second = next(stage for stage in graph if stage.name == "second")
    assert second.done()["result"] == {"number": 2}
    facts = json.loads((second.folder / engines.LAUNCH).read_text())
    assert facts["hardware"]["threads"] == 1
    assert list((second.folder / "slurm").glob("*_submitted.pkl"))


def submit_slow(graph):
    """A stage that ends only when it is stopped, or started again; and its job."""
    pytest.importorskip("submitit")
    stage = graph.add("slow", next(iter(graph)).module, StageConfig(seconds=3600.0))
    stage.folder.mkdir(parents=True)
    dump(stage.config, stage.folder / "config.yaml")
    (stage.folder / engines.LAUNCH).write_text('{"hardware": {}}')
    return stage, engines.submit(stage, 1, {"PYTHONPATH": os.environ["PYTHONPATH"]}, LOCAL, is_gpu=False)


def test_an_interrupt_takes_the_jobs_out_of_the_queue(graph):
    stage, job = submit_slow(graph)
    assert job.poll() is None
    engines.end(job, signal.SIGINT)
    assert job.wait() != 0
    assert stage.done() is None


def test_a_job_that_is_preempted_is_put_back_and_goes_on(graph):
    stage, job = submit_slow(graph)
    wait_for(stage.folder / "starts")
    controller = job.job.job_id
    (task,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)  # what a cluster sends when it wants the node, or the time is up
    assert job.wait() == 0
    assert stage.done()["result"] == {"number": 1}
    assert (stage.folder / "starts").read_text() == "xx"


def wait_for(path):
    while not path.exists():  # however long a busy machine takes; what never comes ends at pytest's timeout
        time.sleep(0.05)


def test_a_killed_process_of_several_is_named_and_the_next_run_goes_on_on_two_machines(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    name = write_module(tmp_path, monkeypatch, RANKS)
    monkeypatch.setattr(engines, "MULTI_PROCESS", (name,))
    ends, two_machines = [], {**LOCAL, "tasks_per_node": 2}
    for chosen in ({"launch": "torchrun", "processes": 2}, {"launch": "slurm", "slurm": two_machines}):
        graph = Graph(tmp_path / "runs")
        stage = graph.add("shared", name, RanksConfig())
        ends.append(run(graph, **chosen)["shared"])
    assert (ends[0].state, ends[1].state) == ("failed", "done")
    assert ends[0].reason == (f"process 1 of several killed by SIGKILL (out of memory?); see {stage.log}")
    assert stage.done()["result"] == {"kept": "kept", "processes": "2"}
    assert "--nnodes" not in " ".join(engines.stage_words(stage, 2))
    assert {"--nnodes=3", "--nproc-per-node=2"} < set(engines.stage_words(stage, 2, machines=3))


def test_what_was_attached_ends_with_whoever_started_it(tmp_path):
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(3600)"
    words = [sys.executable, attach.__file__, attach.PARENT, "-c", child]
    starter = f"import subprocess; subprocess.run({words!r}, start_new_session=True)"  # as torchrun does
    parent = subprocess.Popen([sys.executable, "-c", starter])
    wait_for(tmp_path / "pid")
    while not (pid := (tmp_path / "pid").read_text()):
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while is_running(pid):
        time.sleep(0.05)


def is_running(pid: str) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_preempted_job_asks_for_the_same_again():
    submitit = pytest.importorskip("submitit")
    work = engines.RunStage(["-m", "encoder.train"], {"A": "1"}, "log.txt")
    again = work.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function is work


@pytest.mark.parametrize("module", ["encoder.train", "encoder.train_vae"])
@pytest.mark.parametrize("processes", [1, 4])
def test_only_stages_that_can_share_their_work_get_several_processes(tmp_path, module, processes):
    stage = Graph(tmp_path).add("some", module, StageConfig())
    words = engines.stage_words(stage, processes)
    assert words[-3:] == [module, str(stage.folder / "config.yaml"), str(stage.folder)]
    is_shared = processes > 1 and module == "encoder.train"
    assert ("torch.distributed.run" in words) == is_shared
    assert (f"--nproc-per-node={processes}" in words) == is_shared


def test_the_stages_that_share_are_modules_that_there_are():
    assert all(module_file(module) for module in engines.MULTI_PROCESS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["processes=2"], "several need launch=torchrun or slurm"),
        (["launch=torchrun", "processes=0"], "processes 0"),
        (["launch=slrum"], "choices: local, torchrun, slurm"),
    ],
)
def test_what_cannot_be_meant_is_named(words, says):
    with pytest.raises(ConfigError, match=says):
        parse(words)


def test_wrong_cluster_parameters_are_refused_before_anything_is_submitted():
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match=r"launch=slurm: .*mem_bg"):
        engines.check_slurm({"cluster": "local", "mem_bg": 3})
    with pytest.raises(ConfigError, match=r"launch=slurm: .*often"):
        engines.check_slurm({"cluster": "local", "max_num_timeout": "often"})


def test_without_submitit_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match="pip install submitit"):
        engines.check_slurm({})


def test_a_machine_without_slurm_is_told_so():
    pytest.importorskip("submitit")
    if shutil.which("srun"):
        pytest.skip("this machine has Slurm")
    with pytest.raises(ConfigError, match=r"launch=slurm: .*srun"):
        engines.check_slurm({})


@pytest.mark.parametrize(
    ("module", "parameters", "is_gpu", "machines", "gpus"),
    [
        ("rae_bridge.train", {"tasks_per_node": 2}, True, 2, 8),  # one a process
        ("rae_bridge.train", {"tasks_per_node": 2, "gpus_per_node": 4}, True, 2, 4),
        ("rae_bridge.train", {"tasks_per_node": 2}, False, 2, None),
        ("llava_bridge.some_stage_in_one_process", {"tasks_per_node": 2}, True, 1, 1),
        ("llava_bridge.some_stage_in_one_process", {"gpus_per_node": 4}, True, 1, 1),
        ("llava_bridge.some_stage_in_one_process", {"gpus_per_node": 0}, True, 1, None),
        ("encoder.data.scenes.write", {"tasks_per_node": 2, "gpus_per_node": 4}, True, 1, None),
        ("harness.own_data", {}, True, 1, None),
    ],
)
def test_slurm_is_asked_for_the_gpus_that_a_stage_uses(module, parameters, is_gpu, machines, gpus, tmp_path):
    pytest.importorskip("submitit")
    wanted = engines.job_parameters(module, 8, {**LOCAL, **parameters}, is_gpu=is_gpu)
    asked = engines.slurm_executor(tmp_path, wanted, "name")._executor.parameters
    assert asked.get("nodes", 1) * asked.get("tasks_per_node", 1) == machines
    assert asked.get("gpus_per_node") == gpus


GPU_STAGE = '''"""A stage that notes its GPU and waits until all of its kind run."""
import dataclasses, os, pathlib, time
from encoder.runtime.stage import main

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    number: int = 1
    together: int = 1

def run(config, out_dir):
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    (out_dir / "gpu").write_text(str(gpu))
    while len(list(out_dir.parent.glob("*/gpu"))) < config.together:
        time.sleep(0.01)
    return {"gpu": gpu}

if __name__ == "__main__":
    main(Config, run)
'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuConfig:
    number: int = 1
    together: int = 1


@pytest.mark.parametrize(("device", "gpus"), [("cuda", {"2", "5"}), ("cpu", {"2,5"})])
def test_jobs_at_the_same_time_have_a_gpu_each(tmp_path, monkeypatch, device, gpus):
    name = write_module(tmp_path, monkeypatch, GPU_STAGE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    graph = Graph(tmp_path / "runs")
    first = [graph.add("first", name, GpuConfig(number=number, together=2)) for number in range(2)]
    for number in range(3):  # what is free again is given again
        graph.add("second", name, GpuConfig(number=number), inputs=first)
    run(graph, device=device)
    assert {stage.done()["result"]["gpu"] for stage in first} == gpus
    assert {stage.done()["result"]["gpu"] for stage in graph} == gpus


def test_the_gpu_with_the_fewest_stages_is_next_and_a_machine_without_has_none(monkeypatch):
    assert least_busy(["0", "1", "2"], ["0", "0", "1", "2"]) == "1"
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-1a"}) == ["3", "GPU-1a"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert visible_gpus({}) == []
