"""`load_encoder`, and all that it takes: names, folders, hub ids, and the kinds of source before a colon."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from encoder import adapters
from encoder.frozen import FrozenEncoder
from encoder.options import EncoderConfig
from encoder.runtime import hub
from encoder.runtime.config import ROOT, choose, load, nearest
from encoder.runtime.device import require_device


def config_file(source: str) -> Path | None:
    """The YAML file that `source` means: a name under configs/encoders, or the path of one of that kind."""
    path = ROOT / "configs" / "encoders" / f"{source}.yaml"
    if path.is_file():
        return path
    return Path(source) if source.endswith(".yaml") and Path(source).is_file() else None


def encoder_config(source: str) -> EncoderConfig:
    """What the file of `source` says, or the defaults for anything else that `load_encoder` takes."""
    path = config_file(source)
    return load(EncoderConfig, path) if path else EncoderConfig(name=source, source=source)


def load_encoder(
    source: str | Path,
    *,
    vae: str | Path | None = None,
    features: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> FrozenEncoder:
    """Load a frozen encoder.

    source: a name under configs/encoders, or a YAML file of that kind; a folder written by `save_pretrained`
    or in the release format; a hub id of a release (`owner/name`, with `@revision` after it or without);
    `clip:<hub id or folder>` (CLIP, SigLIP 2, DINOv2 and v3), `timm:<model, hub id or folder>`,
    `vae:<hub id or folder>`, `module:<module>:<Class>`. `vae` names OpenVision 3's VAE (without one, only
    `encode_latents` works); `features` defaults to `last`, `dtype` to float32.

    Raises: FileNotFoundError, ValueError: no such source, one that does not fit, or no such device, in one
        line.
    """
    source = str(source)
    device = require_device(device)
    config = encoder_config(source)
    encoder = _build(config.source, config.vae if vae is None else vae, features, config.image_size)
    if config_file(source):
        encoder.name = config.name
    return encoder.freeze().to(device=device, dtype=dtype or torch.float32)


def _build(
    source: str, vae: str | Path | None, features: str | None, image_size: int | None
) -> FrozenEncoder:
    scheme, colon, rest = source.partition(":")
    if scheme == "module" and colon:
        return _instance(rest, vae, features, image_size)
    if colon and not Path(source).exists():
        return choose(adapters.SCHEMES, scheme, "kind of encoder")(rest, features, image_size)
    folder = next((path for path in (Path(source), ROOT / source) if path.is_dir()), None)
    if folder is not None:
        return adapters.from_folder(folder, vae, features)
    if hub.is_hub_id(source):
        return adapters.from_folder(adapters.download_release(source), vae, features, name=source)
    names = sorted(path.stem for path in (ROOT / "configs" / "encoders").glob("*.yaml"))
    known = f"neither a folder nor one of {', '.join(names)}"
    raise FileNotFoundError(f"no encoder '{source}'{nearest(source, names)}: {known}")


def _instance(
    source: str, vae: str | Path | None, features: str | None, image_size: int | None
) -> FrozenEncoder:
    """`package.module:Class`, built as Class(features=..., vae=...), and image_size=... if given."""
    size = {} if image_size is None else {"image_size": image_size}
    module_name, _, class_name = source.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"module:{source}: {error}; write module:package.module:Class") from None
    if not (isinstance(cls, type) and issubclass(cls, FrozenEncoder)):
        raise ValueError(f"module:{source} is no FrozenEncoder class")
    try:
        return cls(features=features, vae=vae, **size)
    except TypeError as error:
        words = ", ".join(f"{name}=..." for name in ("features", "vae", *size))
        raise ValueError(f"module:{source}, built as {class_name}({words}): {error}") from error
