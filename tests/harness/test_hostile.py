"""Hostile and mutated input: refused in one line, nothing run, nothing written where it does not belong."""

import io
import json
import os
import pickle
import random
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.data.shards import read_samples
from encoder.load import load_encoder
from encoder.options import EncoderConfig
from encoder.runtime.checkpoint import load_tensors, save_tensors
from encoder.runtime.config import ROOT, ConfigError, load, read_yaml
from harness.config import Preset
from harness.metrics.picture_sets import read_pictures
from harness.own_data import OwnDataConfig, list_source, run
from harness.running.stages import Graph
from harness.tables.results_folder import saved_suites
from harness.verify import verify
from rae_bridge.latents import LatentStatistics

NUM_MUTANTS = 150
ODD = b"{}[]:,\"'&*!%@\x00\xff-09aZ\n "  # bytes that mean something in YAML, JSON or zip


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def mutants(content: bytes, seed: int, number: int = NUM_MUTANTS):
    """Seeded damage: bytes replaced, cut out, doubled, or the end lost."""
    draw = random.Random(seed)
    for _ in range(number):
        bad = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            if not bad:
                break
            at, width = draw.randrange(len(bad)), draw.randint(1, 12)
            kind = draw.choice(("replace", "cut", "double", "end"))
            if kind == "replace":
                bad[at : at + width] = bytes(draw.choice(ODD) for _ in range(width))
            elif kind == "cut":
                del bad[at : at + width]
            elif kind == "double":
                bad[at:at] = bad[at : at + width]
            else:
                del bad[max(1, at) :]
        yield bytes(bad)


def refused_in_one_line(act, *errors):
    """Whether an action refused its input; any other error, or one of many lines, is a failure."""
    try:
        act()
    except errors as error:
        assert len(str(error).strip().splitlines()) == 1, str(error)
        return True
    return False


def test_mutated_presets_load_or_are_refused_in_one_line(tmp_path):
    content = (ROOT / "configs/presets/demo.yaml").read_bytes()
    path = tmp_path / "mutant.yaml"
    refused = 0
    for mutant in mutants(content, seed=0, number=60):
        path.write_bytes(mutant)
        refused += refused_in_one_line(lambda: load(Preset, path), ConfigError)
    assert refused > 15  # the others changed a comment or a value


@pytest.mark.parametrize("name", ["ov3-demo", "blind"])
def test_mutated_encoder_files_load_or_are_refused_in_one_line(tmp_path, name):
    content = (ROOT / f"configs/encoders/{name}.yaml").read_bytes()
    path = tmp_path / "mutant.yaml"
    for mutant in mutants(content, seed=1):
        path.write_bytes(mutant)
        refused_in_one_line(lambda: load(EncoderConfig, path), ConfigError)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.mkdir ['{mark}']",
        "a: !!python/name:os.system",
        "!!python/object/new:os.mkdir ['{mark}']",
        "a: ${{no.such.resolver:1}}",
        "a: [1, 2",
        "- a\n- b",
        "\x00",
    ],
)
def test_yaml_that_would_run_code_or_is_none_is_refused(tmp_path, text):
    mark = tmp_path / "ran"
    (tmp_path / "bad.yaml").write_text(text.format(mark=mark))
    assert refused_in_one_line(lambda: read_yaml(tmp_path / "bad.yaml"), ConfigError)
    assert not mark.exists()


def test_mutated_leaderboards_are_verified_or_refused_in_one_line(make_results):
    made = make_results()
    path = made.results / "generation" / "leaderboard.json"
    content = path.read_bytes()
    before = set(made.results.rglob("*"))
    for mutant in mutants(content, seed=2, number=20):
        path.write_bytes(mutant)
        refused_in_one_line(lambda: list(saved_suites(made.results)), ValueError, FileNotFoundError)
    path.write_bytes(content)
    assert set(made.results.rglob("*")) == before


@pytest.mark.parametrize("rows", [3, [1, 2], [{"encoder": "a"}], {"a": 1}])
def test_a_leaderboard_of_odd_rows_is_refused(make_results, rows):
    made = make_results()
    path = made.results / "generation" / "leaderboard.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": rows}))
    assert refused_in_one_line(lambda: list(saved_suites(made.results)), ValueError)


@pytest.mark.parametrize("name", ["/etc/passwd", "values/../../../x.json"])
def test_a_leaderboard_that_names_files_outside_its_folder_is_refused(make_results, name):
    made = make_results()
    path = made.results / "generation" / "leaderboard.json"
    board = json.loads(path.read_text())
    row = next(row for row in board["rows"] if row["metrics"])
    next(iter(row["metrics"].values()))["result_file"] = name
    path.write_text(json.dumps(board))
    faults = verify(made.results).faults
    assert any("outside its folder" in fault for fault in faults)


def test_a_mutated_done_file_means_not_done_or_is_plain_data(tmp_path):
    stage = Graph(tmp_path).add("scenes", "encoder.data.scenes.write", {"a": 1})
    stage.folder.mkdir(parents=True)
    content = json.dumps({"stage": "x", "seconds": 1.5, "result": {"metrics": {}}}).encode()
    for mutant in mutants(content, seed=3):
        (stage.folder / "DONE.json").write_bytes(mutant)
        assert stage.done() is None or isinstance(stage.done(), dict)


def test_mutated_weights_load_or_are_refused_in_one_line(tmp_path):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"a": torch.ones(8), "b": torch.zeros(2, 2)}, {"model": "x"})
    refused = 0
    for mutant in mutants(path.read_bytes(), seed=4):
        (tmp_path / "mutant.safetensors").write_bytes(mutant)
        refused += refused_in_one_line(lambda: load_tensors(tmp_path / "mutant.safetensors"), ValueError)
    assert refused > NUM_MUTANTS / 2


def test_a_release_whose_pickle_runs_code_is_refused_and_nothing_is_run(tmp_path):
    mark = tmp_path / "ran"
    folder = tmp_path / "release"
    folder.mkdir()
    vision = {
        "image_size": 64,
        "patch_size": 2,
        "in_channels": 16,
        "layers": 1,
        "width": 64,
        "head_width": 64,
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"embed_dim": 64, "vision_cfg": vision}})
    )
    for write in (
        lambda path: path.write_bytes(pickle.dumps({"a": Bomb(mark)})),
        lambda path: torch.save({"visual.proj": Bomb(mark)}, path),
    ):
        write(folder / "open_clip_pytorch_model.bin")
        assert refused_in_one_line(lambda: load_encoder(folder), ValueError)
    torch.save({"mean": None, "var": Bomb(mark)}, tmp_path / "stats.pt")
    assert refused_in_one_line(lambda: LatentStatistics.load(tmp_path / "stats.pt"), ValueError)
    assert not mark.exists()


def test_pictures_files_that_hold_objects_or_lies_are_refused(tmp_path):
    mark = tmp_path / "ran"
    np.savez(tmp_path / "objects.npz", arr_0=np.array([Bomb(mark)], dtype=object))
    whole = tmp_path / "whole.npz"
    np.savez(whole, arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    content = whole.read_bytes()
    (tmp_path / "lie.npz").write_bytes(content.replace(b"(4, 8, 8, 3)", b"(9, 8, 8, 3)"))
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.npz").write_text("no zip")
    for name in ("objects", "lie", "cut", "text"):
        assert refused_in_one_line(lambda name=name: read_pictures(tmp_path / f"{name}.npz"), ValueError)
    for mutant in mutants(content, seed=5, number=60):
        (tmp_path / "mutant.npz").write_bytes(mutant)
        refused_in_one_line(lambda: read_pictures(tmp_path / "mutant.npz"), ValueError)
    assert not mark.exists()


def member(tar, name, data, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    tar.addfile(info, io.BytesIO(data))


def test_tar_members_that_point_outside_write_nothing(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(buffer, "PNG")
    record = json.dumps({"label": 0, "class_name": "a"}).encode()
    for split in ("train", "test"):
        (tmp_path / "shards" / split).mkdir(parents=True)
        with tarfile.open(tmp_path / "shards" / split / "0.tar", "w") as tar:
            for key in ("../../x", f"{tmp_path}/absolute", "plain"):
                for suffix, data in (("png", buffer.getvalue()), ("txt", b"a"), ("json", record)):
                    member(tar, f"{key}.{suffix}", data)
            member(tar, "link.png", b"", tarfile.SYMTYPE, "/etc/passwd")
    before = set(tmp_path.rglob("*"))
    assert len(list(read_samples(tmp_path / "shards", "train"))) >= 1
    out = tmp_path / "out"
    out.mkdir()
    listing = list_source(str(tmp_path / "shards")).digest
    source = {"source": str(tmp_path / "shards"), "listing": listing}
    run(OwnDataConfig(**source, image_size=8, num_classes=1), out)
    made = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(out) for path in made)
    for sample in read_samples(out, "train"):
        assert sample.pixels.shape == (8, 8, 3)
