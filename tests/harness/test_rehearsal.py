"""preset=paper for real, both suites, on a miniature of its sources: `make rehearse` with one encoder.

A benchmark's folder is away at first, and the harness is killed on the way. `pytest -m rehearsal` runs it
alone: two minutes on two quiet cores.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from encoder.runtime.config import ROOT
from encoder.runtime.resume import PROGRESS
from encoder.runtime.stage import DONE
from harness.replica.config import ReplicaConfig
from harness.replica.write import write
from harness.running.hashes import hash_files
from harness.verify import verify

pytestmark = pytest.mark.rehearsal

SIZES = ReplicaConfig(
    num_classes=4, train_pictures=4, val_pictures=4, imagenet=("folders",), pretrain_records=8,
    mix_records=12, questions=1, adm_pictures=8, num_shards=2, shard_samples=2,
)  # fmt: skip
UNDERSTANDING = {"SEED-Bench", "POPE/f1/official", "MME-P", "MME-C", "ScienceQA", "ScienceQA-IMG"}
RECONSTRUCTION = {"rFID", "PSNR", "SSIM", "LPIPS"}
GENERATION = {"gFID", "sFID", "KID", "IS", "precision", "recall"}
MOST_SECONDS = 1800  # of one start, on a machine that does much else


@pytest.fixture
def replica(tmp_path) -> Path:
    """The sources in miniature; SEED-Bench and the others lie in benchmarks/."""
    root = tmp_path / "sources"
    for _ in write(root, SIZES):
        pass
    return root


def start(replica: Path, log: Path) -> subprocess.Popen:
    """`python harness/run.py suite=all preset=paper ...` in a group of its own."""
    places = {"data_root": replica, "runs_dir": log.parent / "runs", "results_dir": log.parent / "results"}
    words = [
        *("suite=all", "preset=paper", "overrides=configs/rehearsals/paper.yaml", "encoders=[ov3-b]"),
        *("baseline=null", "reference.num_samples=12", *(f"{key}={value}" for key, value in places.items())),
    ]
    with log.open("w") as file:
        command = [sys.executable, "harness/run.py", *words]
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)


def finished(replica: Path, log: Path) -> tuple[int, str]:
    """The exit code of a run to its end, and what it said."""
    code = start(replica, log).wait(timeout=MOST_SECONDS)
    return code, log.read_text()


def killed(replica: Path, log: Path) -> Path:
    """Start, kill the group in the middle of the first training that gets there; that stage's folder."""
    run, deadline = start(replica, log), time.monotonic() + MOST_SECONDS
    runs = log.parent / "runs"
    while not (found := [path.parent for path in runs.glob(f"llava_align/*/{PROGRESS}")]):
        assert run.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return found[0]


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """When each complete stage said so, and what."""
    done = sorted(folder.glob(f"*/*/{DONE}"))
    return {str(path): (path.stat().st_mtime_ns, path.read_text()) for path in done}


def rows(log: Path, suite: str) -> dict[str, dict]:
    board = json.loads((log.parent / "results" / "rehearsal" / suite / "leaderboard.json").read_text())
    assert all(row["rehearsal"] for row in board["rows"] if row["kind"] != "published" and row["metrics"])
    return {row["encoder"]: row for row in board["rows"] if row["kind"] in ("measured", "floor")}


def attempts(runs: Path) -> dict[str, int]:
    """Stage -> how often it was started."""
    return {str(log.parent): log.read_text().count("=== attempt") for log in runs.glob("*/*/log.txt")}


def test_the_papers_protocol_survives_a_kill_and_a_missing_benchmark(replica, tmp_path):
    log, runs = tmp_path / "log.txt", tmp_path / "runs"
    gqa, away = replica / "benchmarks" / "GQA", tmp_path / "GQA"
    shutil.move(gqa, away)

    cut = killed(replica, log)
    before = contents(runs)
    code, said = finished(replica, log)
    assert code == 1, said
    assert "GQA: no folder" in said and "the others run" in said
    now = contents(runs)
    assert before.items() <= now.items() and str(cut / DONE) in now  # what was complete was not done again

    row = rows(log, "understanding")["ov3-b"]
    assert row["metrics"].keys() >= UNDERSTANDING and set(row["not_run"]) == {"GQA"}
    assert row["not_run"]["GQA"].startswith("FileNotFoundError: no data: ")
    generated = rows(log, "generation")
    assert generated["ov3-b"]["metrics"].keys() >= RECONSTRUCTION | GENERATION
    assert generated["ov3-b, guided"]["metrics"].keys() >= GENERATION
    assert generated["real vs real"]["metrics"].keys() >= GENERATION
    assert not generated["ov3-b"]["not_run"]
    assert generated["real vs real"]["not_run"].keys() == RECONSTRUCTION

    started, scored = attempts(runs), {path.name: path.read_text() for path in runs.glob("*/*/scored/*.json")}
    shutil.move(away, gqa)
    code, said = finished(replica, log)
    assert code == 0, said
    again = {stage for stage, number in attempts(runs).items() if number != started.get(stage)}
    assert {Path(stage).parent.name for stage in again} == {"llava_evaluate"} and len(again) == 1
    asked = {path.name: path.read_text() for path in runs.glob("*/*/scored/*.json")}
    assert asked.keys() - scored.keys() == {"gqa.json"} and scored.items() <= asked.items()
    row = rows(log, "understanding")["ov3-b"]
    assert row["metrics"].keys() >= {*UNDERSTANDING, "GQA"} and not row["not_run"]
    assert verify(tmp_path / "results" / "rehearsal").faults == []

    whole = tmp_path / "undisturbed"  # the stage that was cut ends as one that was not
    command = [sys.executable, "-m", "llava_bridge.train", str(cut / "config.yaml"), str(whole)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    ours, theirs = (list(hash_files([folder / "weights"]).values()) for folder in (cut, whole))
    assert ours == theirs
