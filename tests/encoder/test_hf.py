"""transformers' Auto classes on our folders and on converted releases: same tensors, same features."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel

import encoder.hf
from encoder import load_encoder
from encoder.models.clip import Clip
from encoder.models.openvision3 import OpenVision3
from encoder.models.shapes import (
    CaptionerShape,
    ClipShape,
    DecoderShape,
    OpenVision3Shape,
    TextShape,
    VaeShape,
    ViTShape,
)
from encoder.release import RELEASE_WEIGHTS, export_release
from encoder.runtime.checkpoint import load_tensors, save_tensors
from encoder.training.train_vae import build_codec

TOWER = {"width": 32, "layers": 2, "head_width": 16, "embed_dim": 24}
TEXT = TextShape(context_length=8, width=32, layers=1, head_width=16)
PIXELS = ViTShape(image_size=32, patch_size=16, in_channels=3, **TOWER)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    build_codec(VaeShape(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)).save_pretrained(root / "vae")
    shape = OpenVision3Shape(
        encoder=ViTShape(image_size=4, **TOWER),
        decoder=DecoderShape(in_width=32, width=32, layers=1, head_width=16),
        text=TEXT,
        captioner=CaptionerShape(context_length=10, width=32, layers=1, head_width=16),
    )
    model = OpenVision3(shape)
    model.save_pretrained(root / "openvision3")
    model.save_pretrained(root / "vision", dtype=torch.float16, text=False)
    Clip(ClipShape(encoder=PIXELS, text=TEXT)).save_pretrained(root / "clip")
    export_release(model.encoder, root / "release")
    own = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3)}
    export_release(Clip(ClipShape(encoder=PIXELS)).encoder, root / "openvision1", **own)
    for name in ("release", "openvision1"):
        for part in encoder.hf.from_release(root / name):
            part.save_pretrained(root / f"{name}-hf")
    return root


@pytest.fixture
def picture():
    values = np.random.default_rng(0).integers(0, 256, (40, 24, 3), np.uint8)
    return Image.fromarray(values), torch.from_numpy(values).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(("name", "kind"), [
    ("openvision3", OpenVision3), ("vision", OpenVision3), ("clip", Clip),
])  # fmt: skip
def test_saving_by_either_side_and_loading_by_the_other_changes_no_bit(name, kind, folders, tmp_path):
    assert AutoConfig.from_pretrained(folders / name).hidden_size == 32
    model = AutoModel.from_pretrained(folders / name, dtype=torch.float32)
    ours = kind.from_pretrained(folders / name).state_dict()
    theirs = model.state_dict()
    assert set(theirs) == set(ours) and all(torch.equal(theirs[key], ours[key]) for key in ours)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[key], ours[key]) for key in ours)


@pytest.mark.parametrize(("folder", "source"), [
    ("openvision3", "openvision3"), ("clip", "clip"),
    ("release-hf", "release"), ("openvision1-hf", "openvision1"),
])  # fmt: skip
def test_a_picture_gives_the_frozen_encoders_tokens(folder, source, folders, picture):
    image, pixels = picture
    needs_vae = source in ("openvision3", "release")
    vae = {"vae": str(folders / "vae")} if needs_vae else {}
    model = AutoModel.from_pretrained(folders / folder, dtype=torch.float32, **vae).eval()
    processor = AutoImageProcessor.from_pretrained(folders / folder)
    with torch.no_grad():
        output = model(**processor(image))
    wanted = load_encoder(folders / source, **vae).encode(pixels)
    torch.testing.assert_close(output.last_hidden_state, wanted, atol=1e-6, rtol=1e-5)
    assert output.pooler_output.shape == (1, 24)


@pytest.mark.parametrize("name", ["release", "openvision1"])
def test_a_release_through_transformers_and_back_is_identical(name, folders, tmp_path):
    model = AutoModel.from_pretrained(folders / f"{name}-hf", dtype=torch.float32)
    export_release(model.encoder, tmp_path)
    first, again = (
        torch.load(path / RELEASE_WEIGHTS, weights_only=True) for path in (folders / name, tmp_path)
    )
    assert list(first) == list(again) and all(torch.equal(first[key], again[key]) for key in first)


def test_latents_skip_the_vae_and_without_one_only_they_work(folders):
    model = AutoModel.from_pretrained(folders / "release-hf", dtype=torch.float32).eval()
    z_vae = torch.randn(1, 16, 4, 4)
    wanted = load_encoder(folders / "release").encode_latents(z_vae)
    with torch.no_grad():
        torch.testing.assert_close(model(z_vae=z_vae).last_hidden_state, wanted)
    with pytest.raises(ValueError, match="name a VAE"):
        model(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="give pixel_values or z_vae"):
        model()


def test_a_tensor_that_is_missing_or_unknown_is_an_error(folders, tmp_path):
    AutoModel.from_pretrained(folders / "clip").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_tensors(path)
    save_tensors(path, {key: value for key, value in tensors.items() if key != "encoder.ln_post.bias"})
    with pytest.raises(ValueError, match=r"missing_keys encoder\.ln_post\.bias"):
        AutoModel.from_pretrained(tmp_path)
    save_tensors(path, tensors | {"encoder.spare": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"unexpected_keys encoder\.spare"):
        AutoModel.from_pretrained(tmp_path)


def test_the_command_converts_a_release(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["encoder.hf", str(folders / "release"), str(tmp_path / "out")])
    encoder.hf.main()
    assert "AutoModel" in capsys.readouterr().out
    assert AutoModel.from_pretrained(tmp_path / "out").config.model_type == "openvision_encoder"
    monkeypatch.setattr("sys.argv", ["encoder.hf", str(tmp_path), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"error: no open_clip_config\.json"):
        encoder.hf.main()
