"""Released OpenVision checkpoints, in and out: open_clip_config.json + open_clip_pytorch_model.bin.

Sizes come from the config and the tensors, never from a table of names. What the config does not say is what
open_clip's CLIPVisionCfg says, because that is what the official loader builds from it.
`python -m encoder.release <weights folder> <out_dir>` exports the vision tower of a folder of ours.
Source: UCSC-VLAA/OpenVision@6c24e45, src/convert_upload/open_clip.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from encoder.models.pretrained import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, read_config
from encoder.models.shapes import ViTShape
from encoder.models.vit import ViTEncoder
from encoder.runtime.checkpoint import serialize
from encoder.runtime.config import nearest
from encoder.runtime.files import replacing
from encoder.runtime.stage import write_json

RELEASE_CONFIG, RELEASE_WEIGHTS = "open_clip_config.json", "open_clip_pytorch_model.bin"

# Keys of vision_cfg that shape the tower, with CLIPVisionCfg's defaults.
DEFAULTS = {
    "layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224,
    "in_channels": 3, "no_ln_pre": False, "pool_type": "tok", "final_ln_after_pool": False,
    "output_tokens": False, "ls_init_value": None, "attentional_pool": False, "act_kwargs": None,
    "timm_model_name": None,
}  # fmt: skip
# Keys that change nothing in a loaded tower: eps is 1e-6 in the code, positions are stored in the file.
IGNORED = ("norm_kwargs", "pos_embed_type", "patch_dropout", "timm_model_pretrained", "block_type", "qk_norm")
# Keys that this tower has in one value only, and what another value would mean.
REQUIRED = {
    "no_ln_pre": (True, "the tower has no norm before its blocks"),
    "pool_type": ("avg", "pooling is the mean of the patch tokens"),
    "final_ln_after_pool": (True, "else the tokens come out after the final norm, not before it"),
    "ls_init_value": (None, "the blocks have no layer scale"),
    "attentional_pool": (False, "pooling is the mean of the patch tokens"),
    "timm_model_name": (None, "the tower is OpenVision's own"),
}


def load_release(folder: Path | str) -> ViTEncoder:
    """The vision tower of a release folder (OpenVision 3, or a 3-channel OpenVision 1), float32, eval mode.

    Raises: FileNotFoundError if a file is missing; ValueError for a config key or value that does not fit,
        or a tensor that is missing, unknown or of another shape.
    """
    folder = Path(folder)
    config = _read_config(folder / RELEASE_CONFIG)
    tensors = _read_tensors(folder / RELEASE_WEIGHTS)
    shape = _shape(config, tensors, folder)
    vit = ViTEncoder(shape)
    _check_tensors(vit.state_dict(), tensors, folder)
    vit.load_state_dict(tensors, strict=True)
    return vit.eval()


def export_release(
    vit: ViTEncoder, folder: Path | str, *, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> None:
    """Write a tower as the official loader wants it: fp32 tensors under bare keys, and its config.

    `mean`, `std`: the normalisation of a tower on pixels, where it is not ImageNet's.
    """
    folder, shape = Path(folder), vit.shape
    folder.mkdir(parents=True, exist_ok=True)
    state = vit.state_dict()
    first = ("class_embedding", "positional_embedding", "proj")  # the order in the released files
    ordered = {name: state[name] for name in (*first, *(name for name in state if name not in first))}
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in ordered.items()}
    with replacing(folder / RELEASE_WEIGHTS) as temporary, temporary.open("wb") as file:
        serialize(tensors, file)
    vision = {
        "image_size": shape.image_size, "patch_size": shape.patch_size, "in_channels": shape.in_channels,
        "layers": shape.layers, "width": shape.width, "head_width": shape.head_width,
        "mlp_ratio": vit.transformer.resblocks[0].mlp.c_fc.out_features / shape.width,
        "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True, "output_tokens": True,
    }  # fmt: skip
    config = {"model_cfg": {"embed_dim": shape.embed_dim, "vision_cfg": vision}}
    if mean:
        config["preprocess_cfg"] = {"mean": list(mean), "std": list(std)}
    write_json(folder / RELEASE_CONFIG, config)


def read_normalisation(folder: Path | str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the pixels that a 3-channel release takes; ImageNet's if it says none."""
    preprocess = json.loads((Path(folder) / RELEASE_CONFIG).read_text()).get("preprocess_cfg") or {}
    return preprocess.get("mean", IMAGENET_MEAN), preprocess.get("std", IMAGENET_STD)


def _read_config(path: Path) -> dict:
    """vision_cfg with defaults filled in; a key or value that this tower cannot have is an error."""
    if not path.is_file():
        raise FileNotFoundError(f"no {RELEASE_CONFIG} in {path.parent}: not a release folder")
    try:
        config = json.loads(path.read_text())["model_cfg"]["vision_cfg"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no model_cfg.vision_cfg in it ({error})") from None
    for key in config:
        if key not in DEFAULTS and key not in IGNORED:
            raise ValueError(f"{path}: unknown vision_cfg key '{key}'{nearest(key, DEFAULTS)}")
    config = DEFAULTS | config
    for key, (value, meaning) in REQUIRED.items():
        if config[key] != value:
            raise ValueError(f"{path}: {key} is {config[key]!r}, must be {value!r}: {meaning}")
    if (config["act_kwargs"] or {}).get("approximate", "none") != "none":
        raise ValueError(f"{path}: act_kwargs {config['act_kwargs']}: the vision tower's GELU is exact")
    sides = config["image_size"] if isinstance(config["image_size"], list) else [config["image_size"]]
    if len(set(map(str, sides))) != 1:
        raise ValueError(f"{path}: image_size {sides} must be square")
    config = config | {"image_size": sides[0]}
    for key in ("image_size", "patch_size", "in_channels", "layers", "width", "head_width"):
        value = config[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{path}: {key} is {value!r}, must be a whole number over 0")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tower's tensors in float32; a nested state_dict, `module.` and `visual.` are unwrapped."""
    if not path.is_file():
        raise FileNotFoundError(f"no {RELEASE_WEIGHTS} in {path.parent}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each raise their own kinds for a damaged file
        raise ValueError(f"{path} is damaged or unsafe: {str(error).splitlines()[0][:120]}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ValueError(f"{path}: entry '{name}' is a {kind}, not a tensor: not a bare state dict")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if any(name.startswith("visual.") for name in state):
        state = {name[7:]: value for name, value in state.items() if name.startswith("visual.")}
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _shape(config: dict, tensors: dict[str, Tensor], folder: Path) -> ViTShape:
    needed = ("conv1.weight", "proj", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight")
    for name in needed:
        if name not in tensors:
            raise ValueError(f"{folder / RELEASE_WEIGHTS}: tensor '{name}' is missing")
    for name, ndim in zip(needed, (4, 2, 2, 2), strict=True):
        if tensors[name].ndim != ndim:
            raise ValueError(f"{folder / RELEASE_WEIGHTS}: tensor '{name}' is {tuple(tensors[name].shape)}")
    channels = tensors["conv1.weight"].shape[1]
    if channels != config["in_channels"]:
        raise ValueError(
            f"{folder / RELEASE_CONFIG}: in_channels is {config['in_channels']} (3 if not given), "
            f"conv1.weight has {channels}; set vision_cfg.in_channels to {channels}"
        )
    return ViTShape(
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        in_channels=channels,
        width=config["width"],
        layers=config["layers"],
        head_width=config["head_width"],
        mlp_width=tensors[needed[-1]].shape[0],
        embed_dim=tensors["proj"].shape[-1],
    )


def _check_tensors(expected: dict[str, Tensor], tensors: dict[str, Tensor], folder: Path) -> None:
    path = folder / RELEASE_WEIGHTS
    for name in tensors:
        if name not in expected:
            raise ValueError(f"{path}: unknown tensor '{name}'{nearest(name, expected)}")
    for name, value in expected.items():
        if name not in tensors:
            raise ValueError(f"{path}: tensor '{name}' is missing")
        if tensors[name].shape != value.shape:
            got, wanted = tuple(tensors[name].shape), tuple(value.shape)
            raise ValueError(f"{path}: tensor '{name}' is {got}, {RELEASE_CONFIG} asks for {wanted}")
        if not torch.isfinite(tensors[name]).all():
            raise ValueError(f"{path}: tensor '{name}' holds NaN or infinity: the file is damaged")


def main() -> None:
    """Export the vision tower of a folder that `save_pretrained` or `encoder.train` wrote."""
    from encoder.models.clip import (
        Clip,  # here: these build on the vision tower, and only this command wants them
    )
    from encoder.models.openvision3 import OpenVision3
    from encoder.runtime.config import choose

    if len(sys.argv) != 3:
        sys.exit("usage: python -m encoder.release <weights folder> <out_dir>")
    try:
        model = str(read_config(Path(sys.argv[1]).resolve()).get("model"))
        cls = choose({"openvision3": OpenVision3, "clip": Clip}, model, f"model in {sys.argv[1]}")
        vit = cls.from_pretrained(Path(sys.argv[1]).resolve(), text=False).encoder
        normalisation = {"mean": CLIP_MEAN, "std": CLIP_STD} if cls is Clip else {}
        export_release(vit, sys.argv[2], **normalisation)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{sys.argv[2]}: {RELEASE_CONFIG} and {RELEASE_WEIGHTS}")


if __name__ == "__main__":
    main()
