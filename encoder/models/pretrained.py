"""Our own weights folders: config.json (model name and shape) and model.safetensors.

Those of encoders are also what transformers' Auto classes read after `import encoder.hf`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from encoder.runtime.checkpoint import load_tensors, save_tensors
from encoder.runtime.config import ROOT, load, resolve
from encoder.runtime.stage import write_json

Model = TypeVar("Model", bound=nn.Module)
_OF_TEXT = ("text.", "captioner.", "logit_scale")  # names that start so are of text towers
CONFIG_FILE, WEIGHTS_FILE, PROCESSOR_FILE = "config.json", "model.safetensors", "preprocessor_config.json"
# transformers' `model_type` of our models that it can load
HF_TYPES = {"openvision3": "openvision3", "clip": "openvision3_clip", "encoder": "openvision_encoder"}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # `clip.normalise`: [0, 1] -> [-1, 1]


def write_pretrained(
    folder: Path | str, name: str, shape: Any, state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Write a model's shape and its tensors, floating ones as `dtype`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    save_tensors(folder / WEIGHTS_FILE, stored, {"model": name})
    kind = {"model_type": HF_TYPES[name]} if name in HF_TYPES else {}
    write_json(folder / CONFIG_FILE, {"model": name, **kind, "shape": resolve(shape)})


def write_processor(folder: Path | str, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Write how pictures are resized (to image_size px) and normalised, for transformers."""
    values = {"image_size": image_size, "image_mean": list(mean), "image_std": list(std)}
    write_json(Path(folder) / PROCESSOR_FILE, {"image_processor_type": "OpenVisionImageProcessor", **values})


def read_config(folder: Path | str) -> dict:
    """The config.json of a weights folder; relative folders are relative to the repository root.

    Raises: FileNotFoundError without one; ValueError if it is not JSON.
    """
    path = ROOT / folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"weights folder lacks {CONFIG_FILE}: {path.parent}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def write_towers(folder: Path | str, name: str, model: nn.Module, dtype: torch.dtype, *, text: bool) -> None:
    """Write a model of vision and text towers with its shape; without `text`, the vision towers only."""
    shape, kept = model.shape, model.state_dict()
    if not text:
        shape = _without_text(shape)
        kept = {key: value for key, value in kept.items() if not key.startswith(_OF_TEXT)}
    write_pretrained(folder, name, shape, kept, dtype)


def _without_text(shape: Any) -> Any:
    """The shape of the vision towers alone."""
    towers = [field.name for field in fields(shape) if field.name in ("text", "captioner")]
    return replace(shape, **dict.fromkeys(towers))


def load_pretrained(
    cls: type[Model], folder: Path | str, name: str, shape_class: type, *, text: bool = True
) -> Model:
    """Build `cls(shape)` from a weights folder, in float32; every tensor must fit.

    Without `text`, text towers that the folder may hold are left in it: neither they nor their tokenizer are
    needed to see.
    Raises: FileNotFoundError, ValueError (damaged, of another model, or tensors that do not fit the shape).
    """
    config = read_config(folder)
    if config.get("model") != name:
        raise ValueError(f"{folder} holds model {config.get('model')!r}, not {name!r}")
    shape = load(shape_class, config["shape"], name=f"{folder}/{CONFIG_FILE}")
    tensors = load_tensors(ROOT / folder / WEIGHTS_FILE)
    if not text:
        shape = _without_text(shape)
        tensors = {key: value for key, value in tensors.items() if not key.startswith(_OF_TEXT)}
    model = cls(shape)
    try:
        model.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=True)
    except RuntimeError as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise ValueError(f"{folder}: weights do not fit config.json: {reason}") from None
    return model
