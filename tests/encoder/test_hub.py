"""Ids of the hub: the same folder as its own client finds, offline, by branch, tag and commit; weights that
are loaded by id are those of the folder."""

import os
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from encoder.load import load_encoder
from encoder.metrics import weights
from encoder.models.shapes import ViTShape
from encoder.models.vae import load_vae
from encoder.models.vit import ViTEncoder
from encoder.release import export_release
from encoder.runtime import hub
from encoder.runtime.config import ROOT

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def put(tmp_path, monkeypatch):
    """put(id, folder, commit, refs): lays a repository's files out as the hub's client does, in a cache of
    the test's own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)

    def lay(repository: str, folder: Path, commit: str, *refs: str) -> Path:
        place = tmp_path / "home" / "hub" / f"models--{repository.replace('/', '--')}"
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            blob = place / "blobs" / f"{commit[:4]}-{file.name}"
            link = place / "snapshots" / commit / file.relative_to(folder)
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(file.read_bytes())
            link.symlink_to(os.path.relpath(blob, link.parent))
        for ref in refs:
            (place / "refs").mkdir(exist_ok=True)
            (place / "refs" / ref).write_text(commit)
        return place / "snapshots" / commit

    return lay


@pytest.mark.parametrize(
    ("revision", "commit"), [("", SECOND), ("@main", SECOND), ("@v1", FIRST), (f"@{FIRST}", FIRST)]
)
def test_an_id_is_the_folder_that_the_hubs_own_client_finds(put, tmp_path, revision, commit):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "config.json").write_text("{}")
    put("owner/name", tmp_path / "some", FIRST, "v1")
    put("owner/name", tmp_path / "some", SECOND, "main")
    found = hub.find(f"owner/name{revision}")
    theirs = snapshot_download(
        "owner/name", revision=revision[1:] or None, cache_dir=hub.cache_folder(), local_files_only=True
    )
    assert found == Path(theirs) and found.name == commit
    assert hub.pinned(f"owner/name{revision}") == f"owner/name@{commit}"
    assert hub.commit_of(found) == hub.commit_of(f"owner/name@{commit}") == commit
    assert hub.commit_of(found / "config.json") == commit
    assert hub.name_of(found) == f"owner/name@{commit[:12]}"


@pytest.mark.parametrize(
    ("text", "command"),
    [("owner/none", "hf download owner/none"), ("owner/name@v2", "hf download owner/name --revision v2")],
)
def test_what_is_not_in_the_cache_is_named_with_the_command_that_brings_it(put, tmp_path, text, command):
    put("owner/name", ROOT / "weights" / "demo" / "vae", FIRST, "main")
    for ask in (hub.find, hub.pinned, hub.place, lambda each: load_encoder(f"vae:{each}")):
        with pytest.raises(FileNotFoundError, match=f"{command}$"):
            ask(text)


@pytest.mark.parametrize(
    "text", ["weights/demo", "model.pth", "owner/weights.safetensors", "/a/b", "./a/b", "a"]
)
def test_paths_are_no_ids(text):
    assert not hub.is_hub_id(text)
    assert hub.place(text) == ROOT / text and hub.pinned(text) == text


def test_a_vae_by_id_is_that_of_its_folder_or_of_the_pipeline_it_is_part_of(put, tmp_path):
    folder = ROOT / "weights" / "demo" / "vae"
    put("owner/vae", folder, FIRST, "main")
    for file in folder.iterdir():
        (tmp_path / "whole" / "vae").mkdir(parents=True, exist_ok=True)
        (tmp_path / "whole" / "vae" / file.name).write_bytes(file.read_bytes())
    put("owner/pipeline", tmp_path / "whole", SECOND, "v1")
    expected = load_vae(folder).state_dict()
    for source in ("owner/vae", f"owner/vae@{FIRST}", "owner/pipeline@v1"):
        state = load_vae(source).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert load_vae("owner/vae+shift").offset != load_vae("owner/vae").offset


def test_encoders_by_id_have_the_fingerprints_of_their_folders(put, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(
        tmp_path / "clip"
    )
    crop = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(tmp_path / "clip")
    shape = ViTShape(
        width=32, layers=2, head_width=16, image_size=8, patch_size=2, in_channels=16, embed_dim=32
    )
    export_release(ViTEncoder(shape), tmp_path / "release")
    put("owner/clip", tmp_path / "clip", FIRST, "main")
    put("owner/release", tmp_path / "release", SECOND, "v3")
    for by_id, folder in (
        ("clip:owner/clip", f"clip:{tmp_path}/clip"),
        (f"clip:owner/clip@{FIRST}", f"clip:{tmp_path}/clip"),
        ("owner/release@v3", f"{tmp_path}/release"),
    ):
        assert load_encoder(by_id).fingerprint == load_encoder(folder).fingerprint


def test_a_judges_file_is_found_by_id_or_in_its_folder(put, tmp_path):
    (tmp_path / "judge").mkdir()
    save_file({"fc.weight": torch.ones(2)}, tmp_path / "judge" / weights.INCEPTION.file)
    snapshot = put("owner/judge", tmp_path / "judge", FIRST, "main")
    assert weights.find(weights.INCEPTION, "owner/judge") == snapshot / weights.INCEPTION.file
    assert (
        weights.find(weights.INCEPTION, str(tmp_path / "judge"))
        == tmp_path / "judge" / weights.INCEPTION.file
    )
    with pytest.raises(FileNotFoundError, match="hf download owner/other"):
        weights.find(weights.INCEPTION, "owner/other")
