"""Which encoder a word means, and which files its stages' fingerprints follow."""

import pytest

import harness.encoders as encoders
from encoder.options import TokensConfig
from encoder.runtime.config import ROOT, ConfigError
from harness.encoders import resolve_encoder
from harness.running.stages import Graph


def test_a_name_brings_its_config_and_all_its_weights():
    encoder = resolve_encoder("clip-demo")
    assert encoder.config.source == "weights/demo/clip"
    assert set(encoder.files) == {
        ROOT / "configs/encoders/clip-demo.yaml",
        ROOT / "weights/demo/clip",
        ROOT / "weights/demo/clip_decoder",
    }
    assert resolve_encoder("blind").is_blind and resolve_encoder("blind-256").is_blind


def test_a_control_of_an_impossible_size_is_refused_before_anything_runs(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nsource: module:encoder.frozen:BlindEncoder\nimage_size: 250\n")
    with pytest.raises(
        ConfigError, match=r"mine\.yaml: image_size 250 .* multiple of 16 px.*give 240 or 256"
    ):
        resolve_encoder(str(path))


def test_a_folder_is_read_where_it_lies_if_it_holds_an_encoder(tmp_path):
    with pytest.raises(ConfigError, match=r"holds neither config\.json nor open_clip_config\.json"):
        resolve_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert resolve_encoder(str(tmp_path)).files == (tmp_path,)


def test_a_class_of_ones_own_is_found_without_running_it(tmp_path, monkeypatch):
    (tmp_path / "my_encoder_module.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    encoder = resolve_encoder("module:my_encoder_module:Mine")
    assert encoder.files == (tmp_path / "my_encoder_module.py",)
    assert encoder.name == encoder.config.source == "module:my_encoder_module:Mine"


def test_what_a_library_holds_names_itself():
    assert resolve_encoder("timm:resnet18").files == ()


@pytest.mark.parametrize("scheme", ["", "clip:", "vae:", "timm:"])
def test_a_hub_id_is_pinned_to_its_commit_and_its_files_are_fingerprinted(tmp_path, monkeypatch, scheme):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(FileNotFoundError, match=r"owner/name is no folder here .*: hf download owner/name$"):
        resolve_encoder(f"{scheme}owner/name")
    place = tmp_path / "hub" / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    prints = set()
    for commit in ("1" * 40, "2" * 40):
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "config.json").write_text("{}")
        (place / "refs" / "main").write_text(commit)
        encoder = resolve_encoder(f"{scheme}owner/name")
        assert encoder.name == f"{scheme}owner/name"
        assert encoder.word == encoder.config.source == f"{scheme}owner/name@{commit}"
        assert encoder.files == (place / "snapshots" / commit,)
        assert encoder.source("generation").startswith(f"{scheme}owner/name@{commit}")
        stage = Graph(tmp_path / "runs").add(
            "tokens",
            "encoder.tokens",
            TokensConfig(encoder=encoder.word, data="weights/demo"),
            files=encoder.files,
        )
        prints.add(stage.fingerprint)
    assert len(prints) == 2
    assert resolve_encoder(f"{scheme}owner/name@{'1' * 40}").word == f"{scheme}owner/name@{'1' * 40}"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("clip-dem", r"unknown encoder 'clip-dem' \(did you mean 'clip-demo'\?\)"),
        ("tim:resnet18", r"unknown kind of encoder 'tim' \(did you mean 'timm'\?\)"),
        ("weights/demo/absent", "unknown encoder 'weights/demo/absent'"),
        ("module:encoder.frozen", "write module:package.module:Class"),
    ],
)
def test_what_can_be_no_encoder_is_refused(word, message):
    with pytest.raises(ConfigError, match=message):
        resolve_encoder(word)


def test_a_weights_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("name: mine\nsource: weights/demo/ov3\nvae: weights/of/mine\n")
    monkeypatch.setattr(encoders, "CONFIGS", tmp_path)
    with pytest.raises(FileNotFoundError, match="encoder mine: weights folder not found: weights/of/mine"):
        resolve_encoder("mine")
