"""Faults injected: what was complete stays, the message says what to do, the next run goes on."""

import errno
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT, dump
from encoder.runtime.stage import main
from harness.metrics import score
from harness.metrics.config import ScoreConfig
from harness.own_data import OwnDataConfig, list_source, run


@pytest.fixture
def config(tmp_path):
    """The stage that packs 40 pictures of noise."""
    for name in ("a", "b"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for index in range(20):
            noise = np.random.RandomState(index + 50 * (name == "b")).randint(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / "mine" / name / f"{index}.png")
    listing = list_source(str(tmp_path / "mine")).digest
    own = OwnDataConfig(source=str(tmp_path / "mine"), listing=listing, image_size=32)
    dump(own, tmp_path / "config.yaml")
    return tmp_path / "config.yaml"


def test_a_full_disk_ends_a_stage_in_one_line_and_the_next_run_goes_on(config, tmp_path):
    out = tmp_path / "out"

    def fill_up():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # bytes that a file may have

    command = [sys.executable, "-m", "harness.own_data", str(config), str(out)]
    ended = subprocess.run(command, cwd=ROOT, preexec_fn=fill_up, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert [line for line in ended.stderr.splitlines() if line.startswith("error: ")] == [
        "error: [Errno 27] File too large"
    ]
    assert "Traceback" not in ended.stderr
    assert not (out / "DONE.json").exists()
    assert list(out.glob("*/*.tar")) == []  # no shard that looks whole and is not
    main(OwnDataConfig, run, [str(config), str(out)])
    assert (out / "DONE.json").exists()
    assert list(out.glob("*/.*.tmp")) == []


def test_an_interrupt_says_that_the_same_command_goes_on(config, tmp_path, capsys, monkeypatch):
    interrupt = lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    monkeypatch.setattr("harness.own_data.pack._split", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(OwnDataConfig, run, [str(config), str(tmp_path / "out")])
    assert ended.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    main(OwnDataConfig, run, [str(config), str(tmp_path / "out")])
    assert (tmp_path / "out" / "DONE.json").exists()


def test_a_checkpoint_survives_the_save_that_fills_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1, "weight": torch.ones(3)})

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for save in (checkpoint.save, checkpoint.save_tensors):
        with pytest.raises(OSError, match="No space left"):
            save(path, {"weight": torch.zeros(3)})
    monkeypatch.undo()
    held = checkpoint.load(path)
    assert held["step"] == 1
    assert held["weight"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_samples_cut_short_are_named(tmp_path, kept):
    judge = '{"extractor": "lite0", "label": "lite0"}'
    (tmp_path / "judge.json").write_text(f'{{"config": {{"data": "x"}}, "judge": {judge}}}')
    whole = tmp_path / "samples.npz"
    np.savez(whole, arr_0=np.zeros((4, 16, 16, 3), np.uint8))
    content = whole.read_bytes()
    whole.write_bytes(content[: int(kept * len(content))])
    config = ScoreConfig(kind="generation", pictures=str(whole), reference=str(tmp_path))
    with pytest.raises(ValueError, match=r"samples.npz: damaged") as refused:
        score.run(config, tmp_path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_reference_folder_that_is_none_or_damaged_is_named(tmp_path):
    config = ScoreConfig(kind="generation", pictures="x.npz", reference=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"is no folder of harness.metrics.reference"):
        score.run(config, tmp_path)
    for content in ("{", '{"config": {"data": "x"}}', '{"config": {"data": "x"}, "judge": {"who": 1}}'):
        (tmp_path / "judge.json").write_text(content)
        with pytest.raises(ValueError, match=r"judge.json is damaged"):
            score.run(config, tmp_path)
