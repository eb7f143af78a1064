"""RAE's layout: what its code is given, what it makes of it (with RAE_REPO), and the way back."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from encoder.runtime.checkpoint import load_tensors
from encoder.runtime.config import load
from encoder.runtime.stage import write_json
from rae_bridge import exchange, generate
from rae_bridge.codec import load_for_generation, origin_of
from rae_bridge.config import GenerateConfig, GuidanceConfig
from rae_bridge.decoder import PixelDecoder
from rae_bridge.dit import DiT
from rae_bridge.latents import LatentStatistics
from rae_bridge.shapes import DecoderConfig
from rae_bridge.weights_folder import WeightsFolder, write_weights

# RAE's own, of configs/stage2/sampling/ImageNet256/DiTDHXL-DINOv2-B.yaml at a4d18c4
DIT_PARAMS = {
    "input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads", "mlp_ratio",
    "class_dropout_prob", "num_classes", "use_qknorm", "use_swiglu", "use_rope", "use_rmsnorm", "wo_shift",
    "use_pos_embed",
}  # fmt: skip
LAYER = [
    "layernorm_before",
    "layernorm_after",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
LAYER += [f"attention.attention.{name}" for name in ("query", "key", "value")]


@pytest.fixture
def folders(tmp_path, blind_to_pixels, write_model):
    """A model, a guide, and a pixel decoder for their tokens."""
    torch.manual_seed(3)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = {f"decoder_{name}": value for name, value in size.items()}
    encoder = load_for_generation(blind_to_pixels)
    config |= {"image_mean": encoder.mean, "image_std": encoder.std}  # as rae_bridge.train_decoder has them
    decoder = PixelDecoder(DecoderConfig(**config, hidden_size=48, image_size=8, patch_size=4))
    decoder.decoder_pred.bias.data.normal_()
    decoder.save_pretrained(tmp_path / "decoder")
    write_json(tmp_path / "decoder" / "tokens.json", origin_of(encoder))
    model, guide = (
        write_model(tmp_path / name, blind_to_pixels, seed) for seed, name in enumerate(("model", "guide"))
    )
    return model, guide, tmp_path / "decoder"


def test_the_layout_is_raes(folders, tmp_path):
    model, guide, decoder = folders
    out = tmp_path / "rae"
    exchange.main(["export", str(model), str(out), "--decoder", str(decoder), "--guide", str(guide)])
    config = yaml.safe_load((out / "sample.yaml").read_text())
    assert set(config) == {"stage_1", "stage_2", "transport", "sampler", "guidance", "misc", "tokens"}
    assert config["stage_2"]["target"] == "stage2.models.DDT.DiTwDDTHead"
    params = config["stage_2"]["params"]
    assert set(params) == DIT_PARAMS
    assert params["hidden_size"] == [16, 16] and params["num_heads"] == [2, 2] and params["in_channels"] == 48
    state = torch.load(out / "stage2_model.pt", weights_only=True)
    assert config["stage_2"]["ckpt"] == str(out / "stage2_model.pt")
    ours = load_tensors(model / "model.safetensors")
    assert state.keys() == ours.keys() and all(torch.equal(state[key], ours[key]) for key in ours)
    assert {"x_embedder.proj.weight", "s_embedder.proj.weight", "t_embedder.W", "pos_embed",
            "blocks.1.adaLN_modulation.1.weight", "final_layer.linear.bias"} <= state.keys()  # fmt: skip
    stat = torch.load(out / "stat.pt", weights_only=True)
    assert {key: tuple(value.shape) for key, value in stat.items()} == dict.fromkeys(
        ("mean", "var"), (48, 2, 2)
    )
    assert config["misc"]["latent_size"] == [48, 2, 2] and config["misc"]["num_classes"] == 3
    ratio = config["misc"]["time_dist_shift_dim"] / config["misc"]["time_dist_shift_base"]
    assert ratio**0.5 == pytest.approx(2.0)  # the shift that the model was trained under
    assert config["sampler"]["params"]["num_steps"] == 50 and config["sampler"]["mode"] == "ODE"
    guidance = config["guidance"]
    assert (guidance["method"], guidance["scale"]) == ("autoguidance", 1.42)
    young = torch.load(guidance["guidance_model"]["ckpt"], weights_only=True)
    assert torch.equal(young["t_embedder.W"], load_tensors(guide / "model.safetensors")["t_embedder.W"])
    keys = torch.load(out / "decoder" / "model.pt", weights_only=True).keys()
    names = [f"decoder_layers.{i}.{name}" for i in range(2) for name in LAYER]
    names += ["decoder_embed", "decoder_norm", "decoder_pred"]
    assert set(keys) == {f"{name}.{kind}" for name in names for kind in ("weight", "bias")} | {
        "decoder_pos_embed", "trainable_cls_token"
    }  # fmt: skip
    stage_1 = config["stage_1"]["params"]
    assert stage_1["noise_tau"] == 0 and stage_1["decoder_patch_size"] == 4
    assert stage_1["encoder_cls"] is None  # RAE has no class for this encoder


def test_the_released_encoder_is_named_as_raes_config_names_it():
    assert exchange._official_encoder("dinov2-b") == {
        "encoder_cls": "Dinov2withNorm",
        "encoder_config_path": "facebook/dinov2-with-registers-base",
        "encoder_input_size": 224,
        "encoder_params": {"dinov2_path": "facebook/dinov2-with-registers-base", "normalize": True},
    }


def test_the_way_back_gives_the_same_weights_and_pictures(folders, tmp_path, blind_to_pixels):
    model, guide, decoder = folders
    exchange.export(model, tmp_path / "rae", decoder=decoder, guide=guide)
    exchange.main(
        ["adopt", str(tmp_path / "rae" / "sample.yaml"), str(tmp_path / "ours"), "--encoder", blind_to_pixels]
    )
    for before, after in ((model, "weights"), (guide, "guide"), (decoder, "decoder")):
        old, new = (load_tensors(path / "model.safetensors") for path in (before, tmp_path / "ours" / after))
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)
    assert WeightsFolder.read(tmp_path / "ours" / "weights").shift == pytest.approx(2.0)
    config = load(GenerateConfig, tmp_path / "ours" / "generate.yaml", ["num_samples=4", "device=cpu"])
    assert (config.num_steps, config.end, config.rounding) == (49, "rae", "truncate")
    assert config.guidance.kind == "autoguidance" and config.guidance.scale == 1.42
    pictures = []
    for name, each in (
        ("adopted", config),
        ("own", replace(config, model=str(model), decoder=str(decoder),
                        guidance=replace(config.guidance, model=str(guide)))),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        generate.run(each, tmp_path / name)
        pictures.append(np.load(tmp_path / name / "samples.npz")["arr_0"].astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1 and pictures[0].std() > 1


def released(tmp_path, folders) -> Path:
    """A config as RAE releases them: relative paths, `t-min`, an "ema" checkpoint, no mean."""
    model, _, decoder = folders
    exchange.export(model, tmp_path / "rae", decoder=decoder)
    root = tmp_path / "checkout"
    (root / "models").mkdir(parents=True)
    config = yaml.safe_load((tmp_path / "rae" / "sample.yaml").read_text())
    state = torch.load(tmp_path / "rae" / "stage2_model.pt", weights_only=True)
    torch.save({"ema": state, "model": {}, "epoch": 80}, root / "models" / "dit.pt")
    torch.save({"mean": None, "var": torch.full((48, 2, 2), 0.5)}, root / "models" / "stat.pt")
    (tmp_path / "rae" / "decoder").rename(root / "models" / "decoder")
    config["stage_2"]["ckpt"] = "models/dit.pt"
    config["stage_1"]["params"] |= {
        "normalization_stat_path": "models/stat.pt", "decoder_config_path": "models/decoder",
        "pretrained_decoder_path": "models/decoder/model.pt",
    }  # fmt: skip
    config["guidance"] = {"method": "cfg", "scale": 1.5, "t-min": 0.0, "t-max": 0.9}
    config["training"] = {"epochs": 1400}
    del config["tokens"]  # ours alone
    (root / "released.yaml").write_text(yaml.safe_dump(config))
    return root / "released.yaml"


def test_released_files_are_sampled_as_they_are(folders, tmp_path, blind_to_pixels):
    path = released(tmp_path, folders)
    config = exchange.adopt(path, tmp_path / "ours", encoder=blind_to_pixels, root=path.parent)
    assert config.guidance == GuidanceConfig(kind="cfg", scale=1.5, interval=(0.0, 0.9))
    statistics = WeightsFolder.read(config.model).statistics
    assert statistics.mean is None and torch.equal(statistics.var, torch.full((48, 2, 2), 0.5))
    (tmp_path / "out").mkdir()
    result = generate.run(replace(config, num_samples=3, num_steps=3, device="cpu"), tmp_path / "out")
    assert result["num_samples"] == 3 and result["image_size"] == 8


def test_what_does_not_fit_is_named(folders, tmp_path, blind_to_pixels):
    path = released(tmp_path, folders)

    def refused(match, error=ValueError, root=path.parent, encoder=blind_to_pixels, **changes):
        config = yaml.safe_load(path.read_text())
        for keys, value in changes.items():
            *parents, last = keys.split("__")
            section = config
            for key in parents:
                section = section[key]
            section[last] = value
        (path.parent / "changed.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(error, match=match):
            exchange.adopt(path.parent / "changed.yaml", tmp_path / "no", encoder=encoder, root=root)

    refused(r"stat\.pt", FileNotFoundError, root=tmp_path)
    refused(r"stage_2\.ckpt is missing", stage_2__ckpt=None)
    refused("sampler SDE/euler is not ODE/euler", sampler__mode="SDE")
    refused("the configuration expects", stage_2__params__in_channels=8)
    refused("key 'blocks.2", stage_2__params__depth=[2, 1])
    refused("no decoder config .*--root", FileNotFoundError, stage_1__params__decoder_config_path="nowhere")
    refused("gives 4 x 4 of 192", encoder="ov3-demo")
    refused("knows tokens of other", tokens={"encoder": "other", "features": "last", "fingerprint": "f" * 64})
    with pytest.raises(SystemExit, match="error: config file not found"):
        exchange.main(["adopt", "nowhere.yaml", str(tmp_path / "no"), "--encoder", blind_to_pixels])


def test_what_rae_cannot_sample_is_not_exported(folders, tmp_path):
    model, guide, decoder = folders
    about = WeightsFolder.read(model)
    other = DiT.from_pretrained(model)
    other.config = replace(other.config, prediction="latents")
    shared = {"statistics": about.statistics, "tokens": about.tokens}
    write_weights(tmp_path / "predicts", other, shift=2.0, **shared)
    with pytest.raises(ValueError, match="predicts latents"):
        exchange.export(tmp_path / "predicts", tmp_path / "no")
    write_weights(tmp_path / "back", DiT.from_pretrained(model), shift=0.5, **shared)
    with pytest.raises(ValueError, match=r"shift 0\.5; RAE's code wants 1 or more"):
        exchange.export(tmp_path / "back", tmp_path / "no")
    write_json(decoder / "tokens.json", {**about.tokens, "fingerprint": "0" * 64})
    with pytest.raises(ValueError, match=r"decoder .* knows tokens of"):
        exchange.export(model, tmp_path / "no", decoder=decoder)
    LatentStatistics(None, None).save(guide / "latent_stats.pt")
    with pytest.raises(ValueError, match="under other statistics"):
        exchange.export(model, tmp_path / "no", guide=guide)
    with pytest.raises(SystemExit, match="error: weights folder lacks"):
        exchange.main(["export", str(tmp_path / "nowhere"), str(tmp_path / "no")])


OFFICIAL = """
import sys, torch, yaml
from types import ModuleType
from utils.model_utils import instantiate_from_config
from transformers import AutoConfig
from stage1.decoders import GeneralDecoder

config = yaml.safe_load(open(sys.argv[1]))
inputs = torch.load(sys.argv[2])
model = instantiate_from_config(config["stage_2"]).eval()
params = config["stage_1"]["params"]
about = AutoConfig.from_pretrained(params["decoder_config_path"])
decoder = GeneralDecoder(about, num_patches=4).eval()
decoder.load_state_dict(torch.load(params["pretrained_decoder_path"]), strict=True)
with torch.no_grad():
    velocity = model(inputs["x_t"], inputs["t"], inputs["y"])
    pixels = decoder.unpatchify(decoder(inputs["tokens"], drop_cls_token=False).logits)
torch.save({"velocity": velocity, "pixels": pixels}, sys.argv[3])
"""


@pytest.mark.skipif("RAE_REPO" not in os.environ, reason="RAE_REPO names no checkout of bytetriper/RAE")
def test_the_official_code_loads_what_is_exported_and_says_the_same(folders, tmp_path):
    model, _, decoder = folders
    exchange.export(model, tmp_path / "rae", decoder=decoder)
    generator = torch.Generator().manual_seed(0)
    x_t, tokens = (torch.randn(2, *shape, generator=generator) for shape in ((48, 2, 2), (4, 48)))
    inputs = {"x_t": x_t, "t": torch.tensor([0.3, 0.9]), "y": torch.tensor([2, 0]), "tokens": tokens}
    torch.save(inputs, tmp_path / "in.pt")
    (tmp_path / "official.py").write_text(OFFICIAL)
    words = [
        tmp_path / "official.py",
        tmp_path / "rae" / "sample.yaml",
        tmp_path / "in.pt",
        tmp_path / "out.pt",
    ]
    env = os.environ | {"PYTHONPATH": f"{os.environ['RAE_REPO']}/src:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = torch.load(tmp_path / "out.pt")
    with torch.no_grad():
        velocity = DiT.from_pretrained(model)(inputs["x_t"], inputs["t"], inputs["y"])
        ours = PixelDecoder.from_pretrained(decoder)
        pixels = ours(inputs["tokens"])
    torch.testing.assert_close(theirs["velocity"], velocity, rtol=1e-4, atol=1e-5)
    mean, std = torch.tensor([ours.config.image_mean, ours.config.image_std])[:, None, :, None, None]
    torch.testing.assert_close(theirs["pixels"] * std + mean, pixels, rtol=1e-4, atol=1e-5)
