"""Released RAE weights in: diffusion transformers and pixel decoders.

Files are read as safetensors, or by torch with `weights_only`, never by running code from them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from encoder.runtime.checkpoint import load, load_tensors
from rae_bridge.decoder import PixelDecoder
from rae_bridge.dit import DiT, build_dit
from rae_bridge.shapes import DecoderConfig, DiTConfig, decoder_config, dit_config


def load_dit(path: Path | str, config: DiTConfig | Mapping[str, Any]) -> DiT:
    """A DiT-DH, or a LightningDiT when `hidden_size` has one entry, with a file's weights: fp32, eval, CPU.

    path: .pt or .safetensors; a bare state dict or one under the key "ema" (other top-level keys ignored).
    config: `DiTConfig`, or a mapping with RAE's own parameter names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no state dict in it, or the first key that differs from the configured model.
    """
    model = build_dit(dit_config(config))
    load_strict(model, read_state(Path(path)), Path(path))
    return model.eval()


def load_decoder(path: Path | str, config: DecoderConfig | Mapping[str, Any] | None = None) -> PixelDecoder:
    """A pixel decoder with released weights: fp32, eval, CPU.

    path: a file as for `load_dit`, with `config` as `DecoderConfig` or under RAE's own names; or a folder of
    diffusers' `AutoencoderRAE`, whose config.json says all (its encoder is not read).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no state dict in it, or the first key that differs from the configured decoder.
    """
    path = Path(path)
    if path.is_dir():
        decoder = PixelDecoder(_autoencoder_config(path))
        path = path / "diffusion_pytorch_model.safetensors"
        state = _from_diffusers(load_tensors(path))
        state["decoder_pos_embed"] = decoder.decoder_pos_embed  # diffusers computes it, as we do
    else:
        decoder, state = PixelDecoder(decoder_config(config or {})), read_state(path)
    load_strict(decoder, state, path)
    return decoder.eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: under "ema" if that key is there, else the file itself."""
    content = load_tensors(path) if path.suffix == ".safetensors" else load(path)
    state = content.get("ema", content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        keys = ", ".join(map(str, content))
        raise ValueError(f"{path}: neither a state dict nor one under 'ema'; its keys: {keys}")
    return state


def _autoencoder_config(folder: Path) -> DecoderConfig:
    """What an `AutoencoderRAE` folder's config.json says of its decoder."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no AutoencoderRAE in {folder} (config.json is missing)")
    values = json.loads(path.read_text())
    grid = values["encoder_input_size"] // values["encoder_patch_size"]
    shared = {key: value for key, value in values.items() if key.startswith("decoder_")}
    shared |= {
        key: tuple(values[f"encoder_norm_{key[6:]}"])
        for key in ("image_mean", "image_std")
        if values.get(f"encoder_norm_{key[6:]}")
    }
    size = {"patch_size": values["patch_size"], "image_size": values["patch_size"] * grid}
    return decoder_config({"hidden_size": values["encoder_hidden_size"], **size, **shared})


_DIFFUSERS_NAMES = {
    "attention.to_q": "attention.attention.query",
    "attention.to_k": "attention.attention.key",
    "attention.to_v": "attention.attention.value",
    "attention.to_out.0": "attention.output.dense",
}


def _from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's part of an `AutoencoderRAE` state dict, under RAE's names."""
    renamed = {}
    for key, tensor in state.items():
        if not key.startswith("decoder.") or key == "decoder.decoder_pos_embed":
            continue
        key = key.removeprefix("decoder.")
        for theirs, ours in _DIFFUSERS_NAMES.items():
            key = key.replace(theirs, ours)
        renamed[key] = tensor
    return renamed


def load_strict(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load every tensor into `model`, converted to its dtype.

    Raises:
        ValueError: the first key, in the model's order, that is missing or of another shape, else the first
            that the model does not have.
    """
    expected = model.state_dict()
    for key, tensor in expected.items():
        if key not in state:
            raise ValueError(f"{path}: key '{key}' is missing; the weights belong to another configuration")
        if state[key].shape != tensor.shape:
            raise ValueError(
                f"{path}: key '{key}' has shape {tuple(state[key].shape)}, "
                f"the configuration expects {tuple(tensor.shape)}"
            )
    unknown = [key for key in state if key not in expected]
    if unknown:
        raise ValueError(
            f"{path}: key '{unknown[0]}' is not part of the configured model ({len(unknown)} such keys)"
        )
    model.load_state_dict(state)
