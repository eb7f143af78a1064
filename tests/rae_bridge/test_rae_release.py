"""Released weights in: what is read, under which names, and what is refused."""

import pytest
import torch

from encoder.runtime.checkpoint import save_tensors
from rae_bridge.config import DiTConfig, dit_config
from rae_bridge.dit import DiT, DiTDH, LightningDiT, build_dit
from rae_bridge.release import load_dit

RAE_PARAMS = {
    "input_size": 3,
    "patch_size": 1,
    "in_channels": 6,
    "hidden_size": [16, 24],
    "depth": [2, 1],
    "num_heads": [2, 3],
    "mlp_ratio": 4.0,
    "class_dropout_prob": 0.1,
    "num_classes": 5,
    "use_qknorm": False,
    "use_swiglu": True,
    "use_rope": True,
    "use_rmsnorm": True,
    "wo_shift": False,
    "use_pos_embed": True,
}


def state(**changes):
    torch.manual_seed(0)
    weights = build_dit(dit_config(RAE_PARAMS)).state_dict()
    return {key: torch.randn_like(tensor) for key, tensor in weights.items()} | changes


def equal(model, weights):
    return all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


def test_a_bare_state_dict_and_one_under_ema_load_with_either_config(tmp_path):
    weights = state()
    torch.save(weights, tmp_path / "bare.pt")
    torch.save({"ema": weights, "model": state(), "epoch": 3}, tmp_path / "ema.pt")
    save_tensors(tmp_path / "bare.safetensors", weights)
    for name in ("bare.pt", "ema.pt", "bare.safetensors"):
        model = load_dit(tmp_path / name, RAE_PARAMS)
        assert isinstance(model, DiTDH) and not model.training
        assert equal(model, weights)
    assert equal(load_dit(tmp_path / "ema.pt", dit_config(RAE_PARAMS)), weights)


def test_the_first_differing_key_is_named(tmp_path):
    def refused(weights, match):
        torch.save(weights, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=match):
            load_dit(tmp_path / "weights.pt", RAE_PARAMS)

    missing = state()
    del missing["blocks.0.norm1.weight"], missing["blocks.2.norm1.weight"]
    refused(missing, r"key 'blocks\.0\.norm1\.weight' is missing")
    refused(
        state(**{"s_projector.weight": torch.zeros(24, 17)}),
        r"key 's_projector\.weight' has shape \(24, 17\), the configuration expects \(24, 16\)",
    )
    refused(
        state(**{"blocks.0.attn.q_norm.weight": torch.zeros(8)}),
        r"'blocks\.0\.attn\.q_norm\.weight' is not part",
    )
    refused({"model": state(), "epoch": 1}, "its keys: model, epoch")


def test_files_that_are_not_there_or_damaged_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        load_dit(tmp_path / "absent.pt", RAE_PARAMS)
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(ValueError, match=r"half\.pt"):
        load_dit(tmp_path / "half.pt", RAE_PARAMS)


def test_rae_parameter_names_become_a_config():
    assert dit_config(RAE_PARAMS) == DiTConfig(
        hidden_size=(16, 24), depth=(2, 1), num_heads=(2, 3), input_size=3, in_channels=6, num_classes=5
    )
    plain = dit_config(
        {"input_size": 16, "hidden_size": 1152, "depth": 28, "num_heads": 16, "use_gembed": True}
    )
    assert plain.hidden_size == (1152,) and plain.in_channels == 768
    assert dit_config({"hidden_size": [1152, 2048], "num_heads": 16}).num_heads == (16, 16)
    with pytest.raises(ValueError, match="use_rope=False is not supported"):
        dit_config(RAE_PARAMS | {"use_rope": False})
    with pytest.raises(ValueError, match="patch_size=2"):
        dit_config(RAE_PARAMS | {"patch_size": 2})
    with pytest.raises(ValueError, match="did you mean 'hidden_size'"):
        dit_config(RAE_PARAMS | {"hidden_sizes": 1})


def test_save_pretrained_then_from_pretrained_is_the_same_model(tmp_path):
    for config, kind in (
        (dit_config(RAE_PARAMS), DiTDH),
        (DiTConfig(hidden_size=(16,), depth=(1,), num_heads=(2,), input_size=2, in_channels=4), LightningDiT),
    ):
        model = build_dit(config)
        model.save_pretrained(tmp_path)
        again = DiT.from_pretrained(tmp_path)
        assert isinstance(again, kind) and again.config == config
        assert equal(again, model.state_dict())
    with pytest.raises(FileNotFoundError, match="folder lacks"):
        DiT.from_pretrained(tmp_path / "nowhere")
