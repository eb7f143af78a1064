"""What can be a frozen encoder: OpenVision 3, our CLIP, releases, towers of transformers and timm, a VAE."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

from encoder.frozen import FrozenEncoder
from encoder.models.clip import Clip
from encoder.models.openvision3 import OpenVision3
from encoder.models.pretrained import CLIP_MEAN, CLIP_STD, read_config
from encoder.models.shapes import VAE_DOWNSAMPLE
from encoder.models.vit import ViTDecoder, ViTEncoder
from encoder.release import RELEASE_CONFIG, RELEASE_WEIGHTS, load_release, read_normalisation
from encoder.runtime import hub
from encoder.runtime.config import choose

if TYPE_CHECKING:
    from encoder.models.vae import FrozenVAE


class FrozenOpenVision3(FrozenEncoder):
    """OpenVision 3: pixels -> VAE -> z_u; z_u -> ViT decoder -> VAE -> pixels, on `last` features only."""

    def __init__(
        self,
        encoder: ViTEncoder,
        decoder: ViTDecoder | None,
        vae: FrozenVAE | None,
        name: str,
        features: str | None,
    ):
        shape = encoder.shape
        downsample = vae.downsample if vae is not None else VAE_DOWNSAMPLE
        size, grid = shape.image_size * downsample, (shape.grid, shape.grid)
        super().__init__(name=name, image_size=size, grid=grid, width=shape.width, features=features)
        if vae is not None and vae.channels != shape.in_channels:
            channels = f"{name} takes {shape.in_channels}-channel latents"
            raise ValueError(f"{channels}, VAE {vae.name} has {vae.channels}")
        self.encoder, self.decoder, self.vae = encoder, decoder, vae

    @property
    def can_decode(self) -> bool:
        return self.features == "last" and self.decoder is not None and self.vae is not None

    def _settings(self) -> dict:
        shift = self.vae.offset if self.vae is not None else None
        return super()._settings() | {"vae_offset": shift, "vae_scale": self.vae and self.vae.scale}

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """pixels (B 3 H W, floats in [0, 1], any size) -> z_vae (B C h w), which `encode_latents` takes."""
        inputs = self._prepare(pixels)
        with torch.autocast(inputs.device.type, enabled=False):
            return self._latents(inputs)

    def _latents(self, inputs: Tensor) -> Tensor:
        if self.vae is None:
            raise ValueError(f"{self.name} has no VAE: name one with vae=..., or use encode_latents")
        return self.vae.encode(inputs).to(inputs)

    def _tokens(self, inputs: Tensor) -> Tensor:
        return self._encode(self._latents(inputs))

    def _encode(self, z_vae: Tensor) -> Tensor:
        return self.encoder.tokens(z_vae, skip_last=int(self.features == "penultimate"))

    @torch.no_grad()
    def encode_latents(self, z_vae: Tensor) -> Tensor:
        """z_vae (B C h w, scaled latents) -> z_u (B N D, float32): skips the VAE, for cached latents."""
        with torch.autocast(z_vae.device.type, enabled=False):
            return self._select(self._encode(z_vae.to(self._like())))

    def _decode(self, z_u: Tensor) -> Tensor:
        return self.vae.decode(self.decoder(z_u, self.grid))


class FrozenTower(FrozenEncoder):
    """A ViTEncoder on pixels: our CLIP baseline, or a released OpenVision 1 tower."""

    def __init__(self, encoder: ViTEncoder, name: str, features: str | None, mean: tuple, std: tuple):
        shape = encoder.shape
        sizes = {"image_size": shape.image_size, "grid": (shape.grid, shape.grid), "width": shape.width}
        super().__init__(name=name, **sizes, features=features, mean=mean, std=std)
        self.encoder = encoder

    def _tokens(self, inputs: Tensor) -> Tensor:
        return self.encoder.tokens(inputs, skip_last=int(self.features == "penultimate"))


class FrozenTransformers(FrozenEncoder):
    """A tower of transformers: CLIP, SigLIP (2), DINOv2, DINOv3. Patch tokens, before the final norm."""

    def __init__(
        self, model: nn.Module, name: str, features: str | None, image_size: int, mean: tuple, std: tuple
    ):
        config = model.config
        side = image_size // config.patch_size
        sizes = {"image_size": image_size, "grid": (side, side), "width": config.hidden_size}
        super().__init__(name=name, **sizes, features=features, mean=mean, std=std)
        self.model = model
        # The stack of blocks is the longest list of modules. Its outputs are read by hooks: what a model
        # calls hidden_states[-1] is normalised in some towers and raw in others.
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        self._blocks = [max(lists, key=len)]  # in a list, so that it is not registered twice

    def _tokens(self, inputs: Tensor) -> Tensor:
        block = self._blocks[0][-2 if self.features == "penultimate" else -1]
        seen: list[Tensor] = []
        hook = block.register_forward_hook(
            lambda _module, _inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        try:
            self.model(pixel_values=inputs)
        finally:
            hook.remove()
        return seen[0][:, -self.num_tokens :]  # class and register tokens come first


class FrozenTimm(FrozenEncoder):
    """Any timm model that gives intermediate features; its last map as tokens, before the final norm."""

    def __init__(self, model: nn.Module, name: str, features: str | None):
        from timm.data import resolve_model_data_config

        data = resolve_model_data_config(model)
        size = data["input_size"][-1]
        with torch.no_grad():
            feature_map = _last_map(model.eval(), torch.zeros(1, 3, size, size), 1)
        width, *grid = feature_map.shape[1:]
        super().__init__(
            name=name, image_size=size, grid=tuple(grid), width=width, features=features,
            mean=data["mean"], std=data["std"],
        )  # fmt: skip
        self.model = model

    def _tokens(self, inputs: Tensor) -> Tensor:
        maps = _last_map(self.model, inputs, 2 if self.features == "penultimate" else 1)
        if maps.shape[1:] != (self.width, *self.grid):
            raise ValueError(f"{self.name}: its penultimate map is of another size; use features=last")
        return rearrange(maps, "B D h w -> B (h w) D")


def _last_map(model: nn.Module, inputs: Tensor, from_end: int) -> Tensor:
    """The feature map (B D h w) `from_end` stages from the end, before the final norm."""
    maps = model.forward_intermediates(
        inputs, indices=from_end, norm=False, output_fmt="NCHW", intermediates_only=True
    )
    return maps[0]


class FrozenVaeEncoder(FrozenEncoder):
    """The VAE alone: one token a latent place."""

    supported = ("last",)

    def __init__(self, vae: FrozenVAE, features: str | None, image_size: int):
        side = image_size // vae.downsample
        sizes = {"image_size": image_size, "grid": (side, side), "width": vae.channels}
        super().__init__(name=f"vae:{vae.name}", **sizes, features=features)
        self.vae = vae

    @property
    def can_decode(self) -> bool:
        return True

    def _settings(self) -> dict:
        return super()._settings() | {"vae_offset": self.vae.offset, "vae_scale": self.vae.scale}

    def _tokens(self, inputs: Tensor) -> Tensor:
        return rearrange(self.vae.encode(inputs), "B C h w -> B (h w) C")

    def _decode(self, z_u: Tensor) -> Tensor:
        return self.vae.decode(rearrange(z_u, "B (h w) C -> B C h w", h=self.grid[0]))


def from_folder(
    folder: Path, vae: str | Path | None, features: str | None, name: str | None = None
) -> FrozenEncoder:
    """An encoder from a folder: ours (config.json names the model) or a release (open_clip_config.json)."""
    name = name or folder.name
    if (folder / RELEASE_CONFIG).is_file():
        return _from_release(folder, vae, features, name)
    model = read_config(folder).get("model")
    return choose(MODELS, str(model), f"model in {folder}")(folder, vae, features, name)


def _codec(source: str | Path) -> FrozenVAE:
    from encoder.models.vae import (
        load_vae,  # here: importing diffusers takes 4 s, which other encoders are spared
    )

    return load_vae(source)


def _openvision3(folder: Path, vae: str | Path | None, features: str | None, name: str) -> FrozenEncoder:
    model = OpenVision3.from_pretrained(folder, text=False)
    codec = _codec(vae) if vae is not None else None
    return FrozenOpenVision3(model.encoder, model.decoder, codec, name, features)


def _clip(folder: Path, vae: str | Path | None, features: str | None, name: str) -> FrozenEncoder:
    return FrozenTower(Clip.from_pretrained(folder, text=False).encoder, name, features, CLIP_MEAN, CLIP_STD)


def _from_release(folder: Path, vae: str | Path | None, features: str | None, name: str) -> FrozenEncoder:
    vit = load_release(folder)
    if vit.shape.in_channels == 3:  # OpenVision 1 and 2
        return FrozenTower(vit, name, features, *read_normalisation(folder))
    codec = _codec(vae) if vae is not None else None
    return FrozenOpenVision3(vit, None, codec, name, features)


def download_release(source: str) -> Path:
    """The folder of a hub repository in the release format (from the cache, if it is there)."""
    wanted = (RELEASE_CONFIG, RELEASE_WEIGHTS)
    if (folder := hub.whole(source, *wanted)) is not None:
        return folder
    from huggingface_hub import snapshot_download

    repository, revision = hub.split(source)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(wanted)))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"no folder {source}, and {_not_to_be_had(source, error)}") from None


def _not_to_be_had(source: str, error: Exception) -> str:
    remedy = f"; where there is a network: {hub.download_command(source)}" if hub.is_hub_id(source) else ""
    return f"not to be had from the hub: {str(error).splitlines()[0]}{remedy}"


def _transformers(source: str, features: str | None, image_size: int | None) -> FrozenEncoder:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPVisionModel, SiglipVisionModel

    classes = {
        "clip": CLIPVisionModel,
        "clip_vision_model": CLIPVisionModel,
        "siglip": SiglipVisionModel,
        "siglip_vision_model": SiglipVisionModel,
        "dinov2": AutoModel,
        "dinov2_with_registers": AutoModel,
        "dinov3_vit": AutoModel,
    }
    wanted = ("config.json", "preprocessor_config.json", "*.safetensors|*.bin")
    folder = hub.whole(source, *wanted)
    repository, revision = (folder, None) if folder is not None else hub.split(source)
    try:
        kind = AutoConfig.from_pretrained(repository, revision=revision).model_type
        cls = choose(classes, kind, f"model type of {source}")
        model = cls.from_pretrained(repository, revision=revision, dtype=torch.float32)
        processor = AutoImageProcessor.from_pretrained(repository, revision=revision)
    except OSError as error:
        raise FileNotFoundError(f"clip:{source} is {_not_to_be_had(source, error)}") from None
    crop = getattr(processor, "crop_size", None) or processor.size
    size = image_size or crop.get("height") or crop["shortest_edge"]
    name = f"clip:{Path(source).name}"
    return FrozenTransformers(model, name, features, size, processor.image_mean, processor.image_std)


def _timm(source: str, features: str | None, image_size: int | None) -> FrozenEncoder:
    import timm

    name = f"timm:{Path(source).name}"
    if Path(source).is_dir():  # config.json and weights, as timm's save_for_hf writes them
        source = f"local-dir:{source}"
    elif hub.is_hub_id(source):
        folder = hub.whole(source, "config.json", "*.safetensors|*.bin")
        source = f"hf-hub:{source}" if folder is None else f"local-dir:{folder}"
    try:
        model = timm.create_model(source, pretrained=True, num_classes=0)
    except RuntimeError as error:
        raise ValueError(f"timm:{source}: {str(error).splitlines()[0]}") from None
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"timm:{source} weights are not to be had: {reason}") from None
    return FrozenTimm(model, name, features)


def _vae(source: str, features: str | None, image_size: int | None) -> FrozenEncoder:
    return FrozenVaeEncoder(_codec(source), features, image_size or 256)


MODELS = {"openvision3": _openvision3, "clip": _clip}
SCHEMES = {"clip": _transformers, "timm": _timm, "vae": _vae}
