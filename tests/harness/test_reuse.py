"""What a fingerprint must notice: contents, code of one's own, versions of packages.
And what must not be read again."""

import os

import numpy as np
import pytest
from PIL import Image

from harness.command_line import make_plans
from harness.config import parse
from harness.encoders import resolve_encoder
from harness.running import hashes, provenance, sources
from harness.running.hashes import STORE, Hashes, hash_files
from harness.running.stages import Graph, Stage

LONG_AGO = 10**9  # seconds since 1970: what was changed just now is not yet remembered


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def test_a_file_is_read_again_only_when_its_size_or_time_is_another(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(hashes, "sha256_file", lambda path: read.append(path.name) or path.read_text())
    (tmp_path / "runs").mkdir()
    paths = [write(tmp_path / "data" / name, name) for name in ("a", "b")]
    first = hash_files([tmp_path / "data"], Hashes(tmp_path / "runs"))
    again = hash_files([tmp_path / "data"], Hashes(tmp_path / "runs"))
    assert first == again == {path: path.name for path in paths} and read == ["a", "b"]
    write(paths[0], "A longer text")
    paths[1].write_text("B")  # as long as it was, at another time
    assert list(hash_files(paths, Hashes(tmp_path / "runs")).values()) == ["A longer text", "B"]
    assert read == ["a", "b", "a", "b"]
    (tmp_path / "runs" / STORE).write_text("[damaged")
    assert list(hash_files(paths, Hashes(tmp_path / "runs")).values()) == ["A longer text", "B"]
    hash_files(paths, Hashes(tmp_path / "none"))  # a plan makes no folder
    assert not (tmp_path / "none").exists()


def test_an_encoder_of_ones_own_is_all_that_it_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / "mine" / "__init__.py", "")
    write(tmp_path / "mine" / "towers.py", "import json\nfrom mine.layers import WIDTH\nclass Tower: ...")
    write(tmp_path / "mine" / "layers.py", "from encoder import frozen\nimport mine_too\nWIDTH = 3")
    write(tmp_path / "mine_too.py", "import mine.towers")
    files = resolve_encoder("module:mine.towers:Tower").files
    names = {path.relative_to(tmp_path).as_posix() for path in files}
    assert names == {"mine/__init__.py", "mine/towers.py", "mine/layers.py", "mine_too.py"}


def test_the_versions_of_imported_packages_are_part_of_a_fingerprint(tmp_path, monkeypatch):
    stage = {"name": "scenes", "label": "", "module": "encoder.data.scenes.write", "config": {}}

    def fingerprint(**versions):
        found = dict.fromkeys(provenance.PACKAGES, "1") | versions
        monkeypatch.setattr("harness.running.provenance.package_versions", lambda: found)
        return Stage(**stage, runs_dir=tmp_path).fingerprint

    imported = sources.imported_packages("encoder.data.scenes.write")
    assert {"numpy", "PIL"} <= imported and "lmms_eval" not in imported
    assert fingerprint() == fingerprint(**{"lmms-eval": "2"}) == fingerprint(deepspeed="2")
    assert len({fingerprint(), fingerprint(pillow="2"), fingerprint(numpy="2")}) == 3
    assert {"torch", "lmms_eval"} <= sources.imported_packages("llava_bridge.evaluate")


@pytest.mark.parametrize("name", ["0.png", "0.txt"])
def test_a_picture_or_caption_of_ones_own_that_changes_is_packed_again(tmp_path, name):
    folder = tmp_path / "mine" / "ant"
    folder.mkdir(parents=True)
    for number in range(3):
        picture = np.full((16, 16, 3), number, dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.bmp")
        (folder / f"{number}.bmp").rename(folder / f"{number}.png")  # uncompressed: all are as large
        write(folder / f"{number}.txt", "an ant")

    def packed():
        words = [f"own_data.source={tmp_path / 'mine'}", f"runs_dir={tmp_path / 'runs'}", "suite=generation"]
        options, preset = parse([*words, "encoders=[ov3-demo]"])
        graph = Graph(options.runs_dir)
        make_plans(graph, options, preset)
        return next(stage.fingerprint for stage in graph if stage.name == "own_data")

    before = packed()
    assert packed() == before
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as large as before
    assert packed() != before
