"""The frozen-encoder contract, for every kind that can be built without a download."""

import json
import shutil
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from encoder import load_encoder
from encoder.adapters import FrozenTimm, FrozenTransformers
from encoder.frozen import FrozenEncoder
from encoder.models.clip import Clip
from encoder.models.openvision3 import OpenVision3
from encoder.models.shapes import ClipShape, DecoderShape, OpenVision3Shape, VaeShape, ViTShape
from encoder.release import export_release
from encoder.training.train_vae import build_codec

TOWER = {"width": 32, "layers": 2, "head_width": 16, "embed_dim": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    build_codec(VaeShape(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)).save_pretrained(root / "vae")
    decoder = DecoderShape(in_width=32, width=32, layers=1, head_width=16)
    model = OpenVision3(OpenVision3Shape(encoder=ViTShape(image_size=4, **TOWER), decoder=decoder))
    model.save_pretrained(root / "ov3")
    export_release(model.encoder, root / "release")
    pixels = ViTShape(image_size=32, patch_size=16, in_channels=3, **TOWER)
    clip = Clip(ClipShape(encoder=pixels))
    clip.save_pretrained(root / "clip")
    export_release(clip.encoder, root / "openvision1")
    return root


def build(kind: str, folders, features: str | None = None) -> FrozenEncoder:
    if kind == "timm":
        return timm_encoder("vit_tiny_patch16_224", features)
    if kind.startswith("hf-"):
        return transformers_encoder(kind, features)
    sources = {
        "ov3": str(folders / "ov3"), "release": str(folders / "release"), "clip": str(folders / "clip"),
        "openvision1": str(folders / "openvision1"), "vae": f"vae:{folders / 'vae'}",
        "blind": "module:encoder.frozen:BlindEncoder",
    }  # fmt: skip
    vae = folders / "vae" if kind in ("ov3", "release") else None
    return load_encoder(sources[kind], vae=vae, features=features)


def timm_encoder(name: str, features: str | None) -> FrozenEncoder:
    import timm

    torch.manual_seed(0)
    small = {"img_size": 32, "depth": 3, "embed_dim": 48, "num_heads": 3, "patch_size": 8}
    overlay = {"input_size": (3, 32, 32)}
    model = timm.create_model(name, num_classes=0, pretrained_cfg_overlay=overlay, **small)
    return FrozenTimm(model, f"timm:{name}", features).freeze()


def transformers_encoder(kind: str, features: str | None) -> FrozenEncoder:
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"image_size": 32, "patch_size": 8}
    if kind == "hf-clip":
        model = hf.CLIPVisionModel(hf.CLIPVisionConfig(intermediate_size=64, **sizes))
    elif kind == "hf-siglip":
        model = hf.SiglipVisionModel(hf.SiglipVisionConfig(intermediate_size=64, **sizes))
    elif kind == "hf-dinov3":
        model = hf.DINOv3ViTModel(hf.DINOv3ViTConfig(intermediate_size=64, num_register_tokens=4, **sizes))
    else:
        model = hf.Dinov2Model(hf.Dinov2Config(mlp_ratio=2, **sizes))
    return FrozenTransformers(model, kind, features, 32, (0.5,) * 3, (0.5,) * 3).freeze()


KINDS = ("ov3", "release", "clip", "openvision1", "vae", "blind", "timm", "hf-clip", "hf-siglip", "hf-dinov2",
         "hf-dinov3")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_contract(kind, folders):
    encoder = build(kind, folders)
    pixels = torch.rand(2, 3, 40, 24, requires_grad=True)
    z_u = encoder.encode(pixels)
    assert z_u.shape == (2, encoder.num_tokens, encoder.width) and z_u.dtype == torch.float32
    assert encoder.num_tokens == encoder.grid[0] * encoder.grid[1] and not z_u.requires_grad
    torch.testing.assert_close(encoder.encode(pixels[1:]), z_u[1:], atol=1e-5, rtol=1e-4)
    if encoder.can_decode:
        decoded = encoder.decode(z_u * 50)
        assert decoded.shape == (2, 3, encoder.image_size, encoder.image_size)
        assert decoded.min() >= 0 and decoded.max() <= 1
    else:
        with pytest.raises(ValueError, match="has no decoder"):
            encoder.decode(z_u)
    with pytest.raises(ValueError, match="B 3 H W"):
        encoder.encode(torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match="floats"):
        encoder.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_wakes_it(kind, folders):
    encoder = build(kind, folders)
    pixels = torch.rand(1, 3, 32, 32)
    before = encoder.encode(pixels)
    owner = torch.nn.ModuleList([encoder]).train()
    encoder.requires_grad_(True)
    assert owner.training and not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.encode(pixels), before)


@pytest.mark.parametrize("kind", ["ov3", "clip", "timm", "hf-clip", "hf-siglip", "hf-dinov2"])
def test_features_choose_the_layer_and_the_norm(kind, folders):
    pixels = torch.rand(2, 3, 32, 32)
    last, penultimate, normed = (
        build(kind, folders, features) for features in ("last", "penultimate", "last_norm")
    )
    z_u = last.encode(pixels)
    torch.testing.assert_close(normed.encode(pixels), F.layer_norm(z_u, z_u.shape[-1:], eps=1e-6))
    assert not torch.allclose(penultimate.encode(pixels), z_u)
    assert not normed.can_decode and not penultimate.can_decode
    prints = {encoder.fingerprint for encoder in (last, penultimate, normed)}
    assert len(prints) == 3
    assert build(kind, folders).fingerprint == last.fingerprint


def test_transformers_features_are_raw_blocks_without_class_and_register_tokens(folders):
    encoder = build("hf-clip", folders)
    pixels = torch.rand(1, 3, 32, 32)
    inputs = (pixels - 0.5) / 0.5
    with torch.no_grad():
        raw = encoder.model(pixel_values=inputs).last_hidden_state  # CLIP's is before the final norm
    torch.testing.assert_close(encoder.encode(pixels), raw[:, 1:])
    dino = build("hf-dinov2", folders)
    with torch.no_grad():
        normed = dino.model(pixel_values=inputs).last_hidden_state  # DINOv2's is after it
        torch.testing.assert_close(dino.model.layernorm(dino.encode(pixels)), normed[:, 1:])
    third = build("hf-dinov3", folders)
    with torch.no_grad():
        normed = third.model(pixel_values=inputs).last_hidden_state
        torch.testing.assert_close(
            third.model.norm(third.encode(pixels)), normed[:, 5:]
        )  # class, 4 registers


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_transformers_towers_load_from_folders_with_their_preprocessing(kind, tmp_path):
    import transformers as hf

    model = transformers_encoder(f"hf-{kind}", None).model
    model.save_pretrained(tmp_path)
    if kind == "siglip":
        processor = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    elif kind == "clip":
        crop = {"height": 32, "width": 32}
        processor = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop)
    else:
        crop = {"height": 32, "width": 32}
        processor = hf.BitImageProcessor(size={"shortest_edge": 40}, crop_size=crop)
    processor.save_pretrained(tmp_path)
    encoder = load_encoder(f"clip:{tmp_path}")
    assert (encoder.image_size, encoder.grid, encoder.width) == (32, (4, 4), 32)
    assert encoder.mean == tuple(processor.image_mean) and encoder.std == tuple(processor.image_std)
    direct = FrozenTransformers(model, "direct", None, 32, processor.image_mean, processor.image_std)
    pixels = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(encoder.encode(pixels), direct.encode(pixels))


def test_a_whole_clip_folder_gives_its_vision_tower(tmp_path):
    import transformers as hf

    torch.manual_seed(0)
    vision = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        patch_size=8,
    )  # fmt: skip
    text = hf.CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = hf.CLIPModel(hf.CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict()))
    model.save_pretrained(tmp_path)
    hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path
    )
    encoder = load_encoder(f"clip:{tmp_path}")
    pixels = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (encoder.mean, encoder.std))
    with torch.no_grad():
        wanted = model.vision_model(pixel_values=(pixels - mean) / std).last_hidden_state[:, 1:]
    torch.testing.assert_close(encoder.encode(pixels), wanted)
    assert not any("text" in name for name, _ in encoder.named_parameters())


def test_a_timm_folder_is_read_without_the_hub(tmp_path):
    from timm.models import save_for_hf

    named = timm_encoder("vit_tiny_patch16_224", None)
    arguments = {"img_size": 32, "depth": 3, "embed_dim": 48, "num_heads": 3, "patch_size": 8}
    save_for_hf(named.model, tmp_path, model_args=arguments, safe_serialization=True)
    encoder = load_encoder(f"timm:{tmp_path}")
    pixels = torch.rand(1, 3, 32, 32)
    assert encoder.grid == (4, 4) and encoder.name == f"timm:{tmp_path.name}"
    torch.testing.assert_close(encoder.encode(pixels), named.encode(pixels))


def test_an_openvision_1_folder_is_normalised_as_its_config_says(folders, tmp_path):
    shutil.copytree(folders / "openvision1", tmp_path, dirs_exist_ok=True)
    before = load_encoder(tmp_path)
    assert before.mean == (0.485, 0.456, 0.406)
    path = tmp_path / "open_clip_config.json"
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "squash"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"preprocess_cfg": half}))
    after = load_encoder(tmp_path)
    assert (after.mean, after.std) == ((0.5,) * 3, (0.25,) * 3) and after.fingerprint != before.fingerprint


def test_subtracting_the_vaes_shift_is_said_in_its_source(folders, tmp_path):
    codec = AutoencoderKL.from_pretrained(folders / "vae")
    codec.register_to_config(scaling_factor=0.3611, shift_factor=0.1159)
    codec.save_pretrained(tmp_path)
    plain, shifted = load_encoder(f"vae:{tmp_path}"), load_encoder(f"vae:{tmp_path}+shift")
    pixels = torch.rand(1, 3, 256, 256)
    difference = plain.encode(pixels) - shifted.encode(pixels)
    torch.testing.assert_close(difference, torch.full_like(difference, 0.1159 * 0.3611), atol=1e-5, rtol=0)
    assert plain.fingerprint != shifted.fingerprint
    towers = [load_encoder(folders / "ov3", vae=f"{tmp_path}{end}") for end in ("", "+shift")]
    assert not torch.allclose(*(tower.encode(pixels) for tower in towers), atol=1e-5)


def test_resizing_is_bicubic_and_antialiased(folders):
    encoder = build("clip", folders)
    pixels = torch.rand(1, 3, 100, 70)
    resized = F.interpolate(pixels, (32, 32), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    torch.testing.assert_close(encoder.encode(pixels), encoder.encode(resized), atol=1e-5, rtol=1e-4)


def test_cached_latents_skip_the_vae_and_without_a_vae_only_they_work(folders):
    encoder = build("ov3", folders)
    pixels = torch.rand(1, 3, 32, 32)
    z_vae = encoder.vae.encode(pixels)
    assert torch.equal(encoder.encode_latents(z_vae), encoder.encode(pixels))
    bare = load_encoder(folders / "ov3")
    assert torch.equal(bare.encode_latents(z_vae), encoder.encode(pixels)) and not bare.can_decode
    with pytest.raises(ValueError, match="vae="):
        bare.encode(pixels)
    assert bare.fingerprint != encoder.fingerprint


def test_the_fingerprint_follows_one_changed_weight(folders, tmp_path):
    model = Clip.from_pretrained(folders / "clip")
    before = load_encoder(folders / "clip").fingerprint
    with torch.no_grad():
        model.encoder.conv1.weight[0, 0, 0, 0] += 1e-3
    model.save_pretrained(tmp_path)
    assert load_encoder(tmp_path).fingerprint != before
    with torch.no_grad():
        model.encoder.conv1.weight[0, 0, 0, 0] -= 1e-3
    assert load_encoder(folders / "clip", dtype=torch.bfloat16).fingerprint == before


class WithoutTokens(FrozenEncoder):
    """Forgot `_tokens`."""


class Weightless(FrozenEncoder):
    """No weights, and a decoder that was promised but not written."""

    can_decode = True

    def __init__(self, *, features=None, vae=None):
        super().__init__(name="weightless", image_size=8, grid=(2, 2), width=3, features=features)

    def _tokens(self, inputs):
        return F.avg_pool2d(inputs, 4).flatten(2).mT


def test_a_class_must_implement_tokens_and_needs_no_weights(monkeypatch):
    module = types.ModuleType("somebodys")
    module.WithoutTokens, module.Weightless, module.Plain = (
        WithoutTokens,
        Weightless,
        type("Plain", (Weightless,), {"__init__": lambda self: None}),
    )
    monkeypatch.setitem(sys.modules, "somebodys", module)
    with pytest.raises(ValueError, match=r"somebodys:WithoutTokens.*abstract method '?_tokens"):
        load_encoder("module:somebodys:WithoutTokens")
    with pytest.raises(ValueError, match=r"built as Plain\(features=..., vae=...\).*features"):
        load_encoder("module:somebodys:Plain")
    encoder = load_encoder("module:somebodys:Weightless", dtype=torch.float64)
    pixels = torch.rand(1, 3, 8, 8)
    assert encoder.encode(pixels).shape == (1, 4, 3) and encoder.device.type == "cpu"
    with pytest.raises(ValueError, match="Weightless does not implement _decode"):
        encoder.decode(torch.zeros(1, 4, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="torch sees no GPU here; use device=cpu"):
        load_encoder("blind", device="cuda")


@pytest.mark.parametrize(("source", "message"), [
    ("ov3-demoo", "did you mean 'ov3-demo'"),
    ("tim:vit", "did you mean 'timm'"),
    ("module:encoder.frozen:Blind", "has no attribute 'Blind'"),
    ("module:json:JSONDecoder", "no FrozenEncoder class"),
    ("timm:vit_nonsense", "vit_nonsense"),
])  # fmt: skip
def test_a_source_that_is_not_there_is_named(source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_encoder(source)


def test_what_does_not_fit_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match=r"features of .*'lats'.*did you mean 'last'"):
        load_encoder(folders / "clip", features="lats")
    codec = AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4)
    codec.save_pretrained(tmp_path / "vae4")
    with pytest.raises(ValueError, match="16-channel latents, VAE vae4 has 4"):
        load_encoder(folders / "ov3", vae=tmp_path / "vae4")
    (tmp_path / "config.json").write_text(json.dumps({"model": "resnet"}))
    with pytest.raises(ValueError, match="resnet"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match="z_u must be B 4 32"):
        build("ov3", folders).decode(torch.zeros(1, 5, 32))
