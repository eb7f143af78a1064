"""The released checkpoint format, both ways, and every way in which a file can fail to fit."""

import json

import pytest
import torch

from encoder import load_encoder, release
from encoder.models.clip import Clip
from encoder.models.openvision3 import OpenVision3
from encoder.models.shapes import ClipShape, DecoderShape, OpenVision3Shape, ViTShape
from encoder.models.vit import ViTEncoder
from encoder.release import RELEASE_CONFIG, RELEASE_WEIGHTS, export_release, load_release


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    shape = ViTShape(image_size=8, width=48, layers=3, head_width=16, mlp_width=100, embed_dim=20)
    export_release(ViTEncoder(shape), tmp_path)
    return tmp_path


def rewrite(folder, change) -> None:
    state = torch.load(folder / RELEASE_WEIGHTS, weights_only=True)
    torch.save(change(state), folder / RELEASE_WEIGHTS)


def reconfigure(folder, **changes) -> None:
    config = json.loads((folder / RELEASE_CONFIG).read_text())
    vision = config["model_cfg"]["vision_cfg"] | changes
    config["model_cfg"]["vision_cfg"] = {key: value for key, value in vision.items() if value != "absent"}
    (folder / RELEASE_CONFIG).write_text(json.dumps(config))


def test_load_then_export_gives_identical_tensors_in_the_released_order(folder, tmp_path):
    vit = load_release(folder)
    assert not vit.training
    export_release(vit, tmp_path / "again")
    first, again = (
        torch.load(path / RELEASE_WEIGHTS, weights_only=True) for path in (folder, tmp_path / "again")
    )
    assert list(first) == list(again) and len(first) == 12 * 3 + 6
    assert list(first)[:4] == ["class_embedding", "positional_embedding", "proj", "conv1.weight"]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (folder / RELEASE_CONFIG).read_text() == (tmp_path / "again" / RELEASE_CONFIG).read_text()


def test_the_config_has_what_the_official_loader_needs(folder):
    config = json.loads((folder / RELEASE_CONFIG).read_text())["model_cfg"]
    vision = config["vision_cfg"]
    assert config["embed_dim"] == 20
    assert vision.pop("mlp_ratio") == pytest.approx(100 / 48)
    assert vision == {
        "image_size": 8, "patch_size": 2, "in_channels": 16, "layers": 3, "width": 48, "head_width": 16,
        "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True, "output_tokens": True,
    }  # fmt: skip


@pytest.mark.parametrize("wrap", [
    lambda state: {"state_dict": state},
    lambda state: {f"module.{name}": value for name, value in state.items()},
    lambda state: {f"visual.{name}": value for name, value in state.items()} | {"text.proj": torch.ones(1)},
])  # fmt: skip
def test_wrapped_state_dicts_load(folder, wrap):
    wanted = load_release(folder).state_dict()
    rewrite(folder, wrap)
    got = load_release(folder).state_dict()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_harmless_keys_of_the_official_configs_are_accepted(folder):
    reconfigure(folder, norm_kwargs={"eps": 1e-6}, pos_embed_type="sin_cos_2d", image_size=[8, 8])
    assert load_release(folder).shape.image_size == 8


def test_a_learned_position_table_is_used_as_stored(folder):
    name = "positional_embedding"
    rewrite(folder, lambda state: state | {name: state[name] + 0.5})
    vit = load_release(folder)
    stored = torch.load(folder / RELEASE_WEIGHTS, weights_only=True)[name]
    assert torch.equal(vit.positional_embedding, stored)
    with pytest.raises(ValueError, match="not the sin-cos one"):
        vit(torch.randn(1, 16, 12, 12))


@pytest.mark.parametrize(("changes", "message"), [
    ({"in_channels": "absent"}, "conv1.weight has 16; set vision_cfg.in_channels to 16"),
    ({"no_ln_pre": "absent"}, "no_ln_pre is False, must be True"),
    ({"final_ln_after_pool": False}, "after the final norm"),
    ({"pool_type": "tok"}, "mean of the patch tokens"),
    ({"in_chanels": 16}, "unknown vision_cfg key 'in_chanels' (did you mean 'in_channels'?)"),
    ({"act_kwargs": {"approximate": "tanh"}}, "GELU is exact"),
    ({"layers": 4}, "'transformer.resblocks.3.ln_1.weight' is missing"),
    ({"layers": 2}, "unknown tensor 'transformer.resblocks.2.ln_1.weight'"),
    ({"image_size": 16}, "'positional_embedding' is (17, 48), open_clip_config.json asks for (65, 48)"),
    ({"width": 32}, "asks for"),
    ({"image_size": [8, 16]}, "must be square"),
    ({"image_size": "8"}, "image_size is '8', must be a whole number over 0"),
    ({"layers": [3, 4, 6, 3]}, "layers is [3, 4, 6, 3], must be a whole number"),
    ({"patch_size": 0}, "patch_size is 0"),
    ({"ls_init_value": 1e-5}, "no layer scale"),
    ({"attentional_pool": True}, "mean of the patch tokens"),
    ({"timm_model_name": "vit_base"}, "OpenVision's own"),
])  # fmt: skip
def test_a_config_that_does_not_fit_says_what_to_change(folder, changes, message):
    reconfigure(folder, **changes)
    with pytest.raises(ValueError) as error:
        load_release(folder)
    assert message in str(error.value)


@pytest.mark.parametrize(("name", "tensor", "message"), [
    ("proj", None, "tensor 'proj' is missing"),
    ("ln_post.bias", None, "tensor 'ln_post.bias' is missing"),
    ("conv1.bias", torch.zeros(48), "unknown tensor 'conv1.bias'"),
    ("ln_post.weight", torch.zeros(3), "tensor 'ln_post.weight' is (3,)"),
    ("conv1.weight", torch.zeros(3), "tensor 'conv1.weight' is (3,)"),
    ("ln_post.weight", torch.full((48,), float("nan")), "'ln_post.weight' holds NaN"),
    ("epoch", 3, "entry 'epoch' is a int, not a tensor"),
])  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(folder, name, tensor, message):
    state = torch.load(folder / RELEASE_WEIGHTS, weights_only=True) | {name: tensor}
    torch.save({key: value for key, value in state.items() if value is not None}, folder / RELEASE_WEIGHTS)
    with pytest.raises(ValueError) as error:
        load_release(folder)
    assert message in str(error.value)


def test_another_latent_side_works_and_an_odd_one_is_refused(folder):
    vit = load_release(folder)
    assert vit(torch.randn(1, 16, 14, 6)).z_u.shape == (1, 21, 48)  # the official class fails at any other
    with pytest.raises(ValueError, match="must be a multiple of patch size 2"):
        vit(torch.randn(1, 16, 9, 9))  # there, silently floored


@pytest.mark.parametrize("kind", ["openvision3", "clip"])
def test_the_command_exports_a_folder_of_ours(kind, tmp_path, monkeypatch):
    if kind == "clip":
        tower = ViTShape(image_size=32, patch_size=16, in_channels=3, width=32, layers=1, head_width=16)
        model = Clip(ClipShape(encoder=tower))
    else:
        tower = ViTShape(image_size=8, width=32, layers=1, head_width=16)
        decoder = DecoderShape(in_width=32, width=32, layers=1, head_width=16)
        model = OpenVision3(OpenVision3Shape(encoder=tower, decoder=decoder))
    model.save_pretrained(tmp_path / "ours")
    monkeypatch.setattr("sys.argv", ["encoder.release", str(tmp_path / "ours"), str(tmp_path / "out")])
    release.main()
    exported, state = load_release(tmp_path / "out").state_dict(), model.encoder.state_dict()
    assert all(torch.equal(exported[name], state[name]) for name in state)
    ours, theirs = (load_encoder(tmp_path / name) for name in ("ours", "out"))
    assert (ours.mean, ours.std, ours.image_size) == (theirs.mean, theirs.std, theirs.image_size)
    monkeypatch.setattr("sys.argv", ["encoder.release", str(tmp_path), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"error: .*lacks config\.json"):
        release.main()


def test_missing_and_damaged_files_are_named(folder):
    torch.save([torch.zeros(1)], folder / RELEASE_WEIGHTS)
    with pytest.raises(ValueError, match="holds a list, not a state dict"):
        load_release(folder)
    (folder / RELEASE_WEIGHTS).write_bytes(b"PK half a zip")
    with pytest.raises(ValueError, match="damaged"):
        load_release(folder)
    (folder / RELEASE_WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=RELEASE_WEIGHTS):
        load_release(folder)
    (folder / RELEASE_CONFIG).write_text("{}")
    with pytest.raises(ValueError, match="vision_cfg"):
        load_release(folder)
    (folder / RELEASE_CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=RELEASE_CONFIG):
        load_release(folder)
