"""Folders of pictures in fingerprints: what changes their hash, what is looked at again."""

import json
import os

import pytest

from harness.running import listings
from harness.running.hashes import Hashes
from harness.running.listings import STORE, Listings
from harness.running.stages import Graph

LONG_AGO = 10**9  # seconds since 1970: what was changed just now is not yet remembered


@pytest.fixture
def pictures(tmp_path):
    """A folder as LLaVA's: records, and pictures two folders down."""
    (tmp_path / "runs").mkdir()
    root = tmp_path / "data"
    for name in ("coco/train/1.jpg", "coco/train/2.jpg", "vg/3.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"picture")
    (root / "mix.json").write_text("[1]")
    return settle(root)


def settle(root):
    """Every time long ago."""
    for path in [root, *root.rglob("*")]:
        os.utime(path, (LONG_AGO, LONG_AGO))
    return root


def listing(root, *, is_quick=False):
    """As a new start of the command line finds it."""
    runs = root.parent / "runs"
    return Listings(runs, Hashes(runs), is_quick=is_quick).of(root)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "coco/train/4.jpg").write_bytes(b"picture"),
        lambda root: (root / "vg/3.jpg").unlink(),
        lambda root: (root / "vg/3.jpg").rename(root / "vg/4.jpg"),
        lambda root: (root / "vg/3.jpg").write_bytes(b"a resized picture"),
        lambda root: (root / "vg/3.jpg").rename(root / "coco/3.jpg"),
        lambda root: (root / "mix.json").write_text("[2]"),
        lambda root: (root / "empty").mkdir(),
    ],
    ids=["added", "removed", "renamed", "resized", "moved", "records", "folder"],
)
def test_what_changes_a_folder_changes_its_hash(pictures, change):
    before = listing(pictures)
    assert listing(pictures) == before
    change(pictures)
    assert listing(pictures) != before


def test_neither_times_nor_where_it_lies_nor_hidden_files_count(pictures):
    before = listing(pictures)
    for name in (".cache/x.jpg", "vg/.DS_Store", "vg/__pycache__/a.pyc"):
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_text("x")
    os.utime(pictures / "vg/3.jpg")
    assert listing(pictures) == before
    pictures.rename(pictures.with_name("elsewhere"))
    assert listing(pictures.with_name("elsewhere")) == before


def test_a_plan_looks_at_folders_alone_and_a_run_at_every_file(pictures, monkeypatch):
    looked, listed = [], listings._listed
    monkeypatch.setattr(listings, "_listed", lambda *args: looked.append(args[0].name) or listed(*args))
    before = listing(pictures, is_quick=True)
    assert sorted(looked) == ["coco", "data", "train", "vg"]
    folders = {str(pictures / name) for name in ("coco", "coco/train", "vg")} | {str(pictures)}
    assert json.loads((pictures.parent / "runs" / STORE).read_text()).keys() == folders
    looked.clear()
    assert listing(pictures, is_quick=True) == before and looked == []
    (pictures / "vg/4.jpg").write_bytes(b"picture")  # its folder's time is another
    assert listing(pictures, is_quick=True) != before and looked == ["vg"]
    settle(pictures)
    before = listing(pictures)
    (pictures / "coco/train/1.jpg").write_bytes(b"a picture written over in its place")
    assert listing(pictures, is_quick=True) == before
    assert listing(pictures) != before
    assert listing(pictures, is_quick=True) == listing(
        pictures
    )  # what the run saw is what the plan then says


def test_a_folder_that_changed_just_now_is_not_remembered(pictures):
    (pictures / "vg/4.jpg").write_bytes(b"picture")
    listing(pictures, is_quick=True)
    assert str(pictures / "vg") not in json.loads((pictures.parent / "runs" / STORE).read_text())


@pytest.mark.parametrize("text", ["[damaged", "[]", '{"%s": [1]}'])
def test_a_damaged_store_is_made_again_and_a_plan_makes_no_runs_folder(pictures, text):
    before = listing(pictures)
    store = pictures.parent / "runs" / STORE
    store.write_text(text.replace("%s", str(pictures)))
    assert listing(pictures, is_quick=True) == before
    assert len(json.loads(store.read_text())) == 4
    runs = pictures.parent / "none"
    assert Listings(runs, Hashes(runs)).of(pictures) == before and not runs.exists()


def test_links_are_followed_once_and_a_missing_folder_is_named(pictures):
    linked = pictures.with_name("linked")
    linked.mkdir()
    (linked / "coco").symlink_to(pictures / "coco")
    before = listing(linked)
    (pictures / "coco/train/9.jpg").write_bytes(b"x")
    assert listing(linked) != before
    (pictures / "coco/train/round").symlink_to(pictures / "coco")
    (pictures / "coco/train/gone.jpg").symlink_to(pictures / "nothing")
    listing(linked)  # it ends
    with pytest.raises(FileNotFoundError, match=r"not found: .*absent"):
        listing(pictures.with_name("absent"))


def test_the_pictures_are_part_of_a_stages_fingerprint(pictures):
    def fingerprint(*places):
        graph = Graph(pictures.parent / "runs")
        return graph.add("scenes", "encoder.data.scenes.write", {"a": 1}, pictures=places).fingerprint

    before = fingerprint(pictures)
    assert fingerprint(pictures) == before != fingerprint()
    (pictures / "vg/3.jpg").unlink()
    assert fingerprint(pictures) != before
