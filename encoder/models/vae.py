"""The frozen latent codec: pixels <-> z_vae.

Everything outside this file sees pixels in [0, 1]; the [-1, 1] range that autoencoders want lives here and
nowhere else.

Convention: z_vae = posterior mean x scaling_factor. FLUX's own pipelines subtract shift_factor first; the
released OpenVision 3 script does not, and neither do we unless `subtract_shift=True` or a source that ends in
"+shift" says so.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn

from encoder.models.shapes import SHIFTED, VaeShape
from encoder.runtime import hub
from encoder.runtime.config import ROOT

# shift_factor x scaling_factor of FLUX.1's VAE. taef1 speaks normalised latents, (mean - shift) x scale,
# so it stands in for "mean x scale" only after this much is added. Source: config.json of
# FLUX.1-dev/-schnell vae and of taef1.
FLUX_SCALE, FLUX_SHIFT = 0.3611, 0.1159
TAEF1_OFFSET = FLUX_SHIFT * FLUX_SCALE
PIXELS = "pixels"  # what `load_vae` takes for no VAE at all


class FrozenVAE(nn.Module):
    """An AutoencoderKL (FLUX's, or ours of its shape) or taef1, in eval mode for good, without weight
    gradients.

    Source: arXiv:2601.15369v2, Sec. 3.1 (the VAE is frozen all through training);
    UCSC-VLAA/OpenVision@6c24e45, openvision3_test.py (posterior mean x scaling factor, shift not subtracted).
    """

    def __init__(
        self, codec: AutoencoderKL | AutoencoderTiny, *, subtract_shift: bool = False, name: str = "vae"
    ):
        super().__init__()
        self.codec = codec.eval().requires_grad_(False)
        self.name = name
        self.subtract_shift = subtract_shift
        self.is_tiny = isinstance(codec, AutoencoderTiny)
        self.channels: int = codec.config.latent_channels
        if self.is_tiny:
            if self.channels != 16:
                raise ValueError(f"AutoencoderTiny with {self.channels} latent channels is not taef1 (16)")
            self.downsample = 2 ** (len(codec.config.encoder_block_out_channels) - 1)
            self.scale, self.offset = 1.0, 0.0 if subtract_shift else TAEF1_OFFSET
        else:
            self.downsample = 2 ** (len(codec.config.block_out_channels) - 1)
            self.scale: float = codec.config.scaling_factor
            self.offset = -(codec.config.shift_factor or 0.0) * self.scale if subtract_shift else 0.0

    def train(self, mode: bool = True) -> FrozenVAE:
        """Stay in eval mode whatever the owner calls."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.codec.parameters()).dtype

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (B 3 H W, in [0, 1]) -> z_vae (B C H/8 W/8, float32).

        Raises: ValueError if the shape is not B 3 H W or H or W is not a multiple of the downsampling factor.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must be B 3 H W, got {tuple(pixels.shape)}")
        if pixels.shape[2] % self.downsample or pixels.shape[3] % self.downsample:
            size = "x".join(map(str, pixels.shape[2:]))
            raise ValueError(f"picture {size} px must be a multiple of {self.downsample} (VAE downsampling)")
        encoded = self.codec.encode((pixels * 2 - 1).to(self.dtype))
        mean = encoded.latents if self.is_tiny else encoded.latent_dist.mean
        return mean.float() * self.scale + self.offset

    def decode(self, z_vae: Tensor) -> Tensor:
        """z_vae (B C h w) -> pixels (B 3 8h 8w, float32, nominally in [0, 1], not clamped). Differentiable
        in z_vae.

        Raises: ValueError if z_vae is not B C h w with this codec's channels.
        """
        if z_vae.ndim != 4 or z_vae.shape[1] != self.channels:
            raise ValueError(f"z_vae must be B {self.channels} h w, got {tuple(z_vae.shape)}")
        latents = (z_vae - self.offset) / self.scale
        return (self.codec.decode(latents.to(self.dtype)).sample.float() + 1) / 2


class PixelSpace(FrozenVAE):
    """No VAE: z_vae is the picture itself in [-1, 1], three channels at full size.

    With it, and with the tower's patch as large as VAE and patch were together, OpenVision 3 is the paper's
    "w/o VAE" model (arXiv:2601.15369v2, Tables 6 to 8); latent_l1 then equals pixel_l1.
    """

    def __init__(self):
        nn.Module.__init__(self)
        self.name, self.channels, self.downsample = PIXELS, 3, 1
        self.scale, self.offset = 1.0, 0.0

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (B 3 H W, in [0, 1]) -> z_vae (B 3 H W, in [-1, 1]). Raises: ValueError otherwise."""
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must be B 3 H W, got {tuple(pixels.shape)}")
        return pixels.float() * 2 - 1

    def decode(self, z_vae: Tensor) -> Tensor:
        """z_vae (B 3 H W) -> pixels (B 3 H W, nominally in [0, 1]). Raises: ValueError for another shape."""
        if z_vae.ndim != 4 or z_vae.shape[1] != 3:
            raise ValueError(f"z_vae must be B 3 h w, got {tuple(z_vae.shape)}")
        return (z_vae + 1) / 2


def shape_of(vae: FrozenVAE) -> VaeShape | None:
    """The shape that says what an AutoencoderKL costs; None for the tiny one and for no VAE at all."""
    if isinstance(vae, PixelSpace) or vae.is_tiny:
        return None
    names = ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
    values = {name: vae.codec.config[name] for name in names}
    return VaeShape(**values | {"block_out_channels": tuple(values["block_out_channels"])})


_WEIGHTS = "diffusion_pytorch_model*.safetensors"
CODECS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def _read_config(source: str, folder: Path | None) -> tuple[dict, str | None]:
    """The codec's config.json and the subfolder it was found in ("vae" in a whole FLUX pipeline)."""
    if folder is not None:
        for subfolder in (None, "vae"):
            path = folder / (subfolder or "") / "config.json"
            if path.is_file():
                return json.loads(path.read_text()), subfolder
        raise FileNotFoundError(
            f"no config.json in {folder} or {folder / 'vae'}: not a VAE in diffusers' layout"
        )
    repository, revision = hub.split(source)
    for subfolder in (None, "vae"):
        try:
            return AutoencoderKL.load_config(repository, revision=revision, subfolder=subfolder), subfolder
        except OSError as error:
            reason = str(error).splitlines()[0]
    remedy = f"; where there is a network: {hub.download_command(source)}" if hub.is_hub_id(source) else ""
    raise FileNotFoundError(
        f"VAE {source!r} is no folder here and cannot be had from the hub: {reason}{remedy}"
    )


def load_vae(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    subtract_shift: bool = False,
) -> FrozenVAE:
    """Load a frozen VAE from a folder in diffusers' layout (a whole FLUX pipeline too) or a hub id.
    Safetensors only. `pixels` is none at all. A source that ends in "+shift" is one with subtract_shift, so
    that a config can say it.

    Raises: FileNotFoundError if there is no such folder or hub repository; ValueError for a class that is
    no known codec.
    """
    subtract_shift = subtract_shift or str(source).endswith(SHIFTED)
    source = str(source).removesuffix(SHIFTED)
    if source == PIXELS:
        return PixelSpace()
    own = next((path for path in (Path(source), ROOT / source) if path.is_dir()), None)
    wanted = ("config.json|vae/config.json", f"{_WEIGHTS}|vae/{_WEIGHTS}")
    folder = own or hub.whole(source, *wanted)
    config, subfolder = _read_config(source, folder)
    if config.get("_class_name") not in CODECS:
        raise ValueError(
            f"{source}: codec class {config.get('_class_name')!r} is not one of {sorted(CODECS)}"
        )
    diffusers_logging.disable_progress_bar()
    codec = CODECS[config["_class_name"]].from_pretrained(
        folder or hub.split(source)[0],
        revision=None if folder else hub.split(source)[1],
        subfolder=subfolder,
        torch_dtype=dtype,
        use_safetensors=True,
        low_cpu_mem_usage=False,
    )
    name = own.name if own else source
    return FrozenVAE(codec, subtract_shift=subtract_shift, name=name).to(device)
