"""Registration with transformers: after `import encoder.hf`, AutoConfig, AutoModel and AutoImageProcessor
load the folders that `save_pretrained` and `encoder.train` write.

A released folder (open_clip_config.json) has no config.json for AutoConfig to read:
`python -m encoder.hf <release folder> <out_dir>` makes one that they load, with identical tensors.
Importing this module is what has the side effect, and only this one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling

from encoder.data.pictures import as_rgb
from encoder.frozen import resize_square
from encoder.models.clip import Clip
from encoder.models.openvision3 import OpenVision3
from encoder.models.pretrained import HF_TYPES
from encoder.models.shapes import VAE_DOWNSAMPLE, ClipShape, OpenVision3Shape, ViTShape
from encoder.models.vae import FrozenVAE, load_vae
from encoder.models.vit import ViTEncoder
from encoder.release import load_release, read_normalisation
from encoder.runtime.config import load, resolve


class OpenVision3Config(PreTrainedConfig):
    """All towers of OpenVision 3."""

    model_type = HF_TYPES["openvision3"]
    model: str = "openvision3"  # what our own loader reads
    shape: dict | None = None  # of encoder.models.shapes.OpenVision3Shape, as a mapping
    vae: str | None = None  # folder or hub id, for a model that is given pixels

    @property
    def encoder_shape(self) -> dict:
        """The vision tower's part of `shape`."""
        return self.shape["encoder"]

    @property
    def hidden_size(self) -> int:
        """Width of z_u."""
        return self.encoder_shape["width"]


class OpenVision3ClipConfig(OpenVision3Config):
    """The CLIP baseline; `shape` is that of encoder.models.shapes.ClipShape."""

    model_type = HF_TYPES["clip"]
    model: str = "clip"


class OpenVisionEncoderConfig(OpenVision3Config):
    """A released vision tower alone; `shape` is that of encoder.models.shapes.ViTShape."""

    model_type = HF_TYPES["encoder"]
    model: str = "encoder"

    @property
    def encoder_shape(self) -> dict:
        return self.shape


class OpenVision3Model(PreTrainedModel):
    """Pixels or z_vae -> z_u and pooled. Tensor names are those of our own folders."""

    config_class = OpenVision3Config
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: OpenVision3Config):
        super().__init__(config)
        for name, child in self._towers(config).items():
            setattr(self, name, child)
        self._codec: list[FrozenVAE] = []  # in a list, so that its weights are not this model's
        self.post_init()

    def _towers(self, config: OpenVision3Config) -> dict[str, Any]:
        core = OpenVision3(load(OpenVision3Shape, config.shape, name="config.shape"))
        return {**dict(core.named_children()), **dict(core.named_parameters(recurse=False))}

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The towers draw their own first weights."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers' own, but every tensor must fit: else ValueError, which names the first."""
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info.get(key):
                raise ValueError(f"{args[0]}: weights do not fit config.json: {key} {sorted(info[key])[0]}")
        return (model, info) if output_loading_info else model

    def forward(
        self, pixel_values: Tensor | None = None, z_vae: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """last_hidden_state: z_u (B N D), before the final norm; pooler_output: pooled (B E).

        pixel_values (B 3 H W) are what the folder's image processor gives; z_vae (B C h w) skips the VAE.
        Raises: ValueError without either, or for pixels if `config.vae` names no VAE.
        """
        if z_vae is None:
            if pixel_values is None:
                raise ValueError("give pixel_values or z_vae")
            z_vae = self._latents(pixel_values)
        output = self.encoder(z_vae.to(self.dtype))
        return BaseModelOutputWithPooling(last_hidden_state=output.z_u, pooler_output=output.pooled)

    def _latents(self, pixel_values: Tensor) -> Tensor:
        if self.encoder.shape.in_channels == 3:
            return pixel_values
        if self.config.vae is None:
            how = "AutoModel.from_pretrained(folder, vae=<folder or hub id>)"
            raise ValueError(f"this tower takes VAE latents: name a VAE, {how}, or give z_vae")
        if not self._codec:
            self._codec.append(load_vae(self.config.vae))
        return self._codec[0].to(pixel_values.device).encode(pixel_values)


class OpenVision3ClipModel(OpenVision3Model):
    """Our CLIP baseline; pixel_values in [-1, 1], as its image processor gives them."""

    config_class = OpenVision3ClipConfig

    def _towers(self, config: OpenVision3Config) -> dict[str, Any]:
        core = Clip(load(ClipShape, config.shape, name="config.shape"))
        return {**dict(core.named_children()), **dict(core.named_parameters(recurse=False))}


class OpenVisionEncoderModel(OpenVision3Model):
    """A released tower: OpenVision 3's, or OpenVision 1's on normalised pixels."""

    config_class = OpenVisionEncoderConfig

    def _towers(self, config: OpenVision3Config) -> dict[str, Any]:
        return {"encoder": ViTEncoder(load(ViTShape, config.shape, name="config.shape"))}


class OpenVisionImageProcessor(BaseImageProcessor):
    """Pictures to pixel_values, resized and normalised exactly as a `FrozenEncoder` does it."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers' own attribute

    def __init__(
        self, image_size: int = 256, image_mean: Any = (0.0,) * 3, image_std: Any = (1.0,) * 3, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.image_size, self.image_mean, self.image_std = image_size, list(image_mean), list(image_std)

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """One picture or a list (PIL, or arrays H W 3 of uint8) -> {"pixel_values": B 3 S S}."""
        images = images if isinstance(images, list | tuple) else [images]
        pixels = torch.cat([self._to_pixels(image) for image in images])
        mean, std = (pixels.new_tensor(each).view(1, 3, 1, 1) for each in (self.image_mean, self.image_std))
        return BatchFeature({"pixel_values": (pixels - mean) / std}, tensor_type=return_tensors)

    def _to_pixels(self, image: Any) -> Tensor:
        picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        pixels = torch.from_numpy(np.array(as_rgb(picture))).permute(2, 0, 1)[None].float() / 255
        return resize_square(pixels, self.image_size)


def from_release(folder: Path | str) -> tuple[OpenVisionEncoderModel, OpenVisionImageProcessor]:
    """A released folder's tower and its image processor, as transformers' classes.

    Raises: what `load_release` raises.
    """
    vit = load_release(folder)
    model = OpenVisionEncoderModel(OpenVisionEncoderConfig(shape=resolve(vit.shape)))
    model.encoder.load_state_dict(vit.state_dict())
    if vit.shape.in_channels == 3:
        return model.eval(), OpenVisionImageProcessor(vit.shape.image_size, *read_normalisation(folder))
    return model.eval(), OpenVisionImageProcessor(image_size=vit.shape.image_size * VAE_DOWNSAMPLE)


def main() -> None:
    """`python -m encoder.hf <release folder> <out_dir>`."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m encoder.hf <release folder> <out_dir>")
    try:
        for part in from_release(sys.argv[1]):
            part.save_pretrained(sys.argv[2])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{sys.argv[2]}: load it with transformers.AutoModel after `import encoder.hf`")


PAIRS = (
    (OpenVision3Config, OpenVision3Model),
    (OpenVision3ClipConfig, OpenVision3ClipModel),
    (OpenVisionEncoderConfig, OpenVisionEncoderModel),
)
for _config, _model in PAIRS:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoImageProcessor.register(_config, slow_image_processor_class=OpenVisionImageProcessor, exist_ok=True)

if __name__ == "__main__":
    main()
