"""The frozen-encoder contract that both bridges stand on.

Pixels are in [0, 1]; resizing and normalisation happen inside and nowhere else. Adapters: `adapters.py`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from itertools import chain
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoder.blind import blind_side
from encoder.runtime.config import choose
from encoder.runtime.stage import sha256_json

NORM_EPS = 1e-6


def resize_square(pixels: Tensor, size: int) -> Tensor:
    """pixels (B 3 H W in [0, 1]) -> B 3 size size, bicubic and antialiased; as they are if they fit."""
    if pixels.shape[2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


class FrozenEncoder(nn.Module, ABC):
    """pixels -> z_u by frozen weights. Subclasses build `self` and implement `_tokens`; one that can decode
    also `can_decode` and `_decode`.

    Attributes: name; image_size (px, square); grid (rows, columns of tokens); width (D); features.
    features: `last` (the last block's output, before any final norm), `penultimate` (one block earlier), or
    `last_norm` (the last block's output, layer-normalised without gain and bias, as RAE feeds its DiT).
    """

    supported: ClassVar[tuple[str, ...]] = ("last", "penultimate", "last_norm")

    def __init__(
        self,
        *,
        name: str,
        image_size: int,
        grid: tuple[int, int],
        width: int,
        features: str | None = None,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
    ):
        super().__init__()
        self.name, self.image_size, self.grid, self.width = name, image_size, grid, width
        self.features = features or "last"
        choose(dict.fromkeys(self.supported), self.features, f"features of {name}")
        self.mean, self.std = tuple(mean), tuple(std)
        self._fingerprint: str | None = None

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def can_decode(self) -> bool:
        return False

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of the weights, the preprocessing and `features`; taken once, as loaded."""
        if self._fingerprint is None:
            self._fingerprint = self._digest()
        return self._fingerprint

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(memoryview(raw.numpy()))
        return sha256_json({"weights": digest.hexdigest(), **self._settings()})

    def _settings(self) -> dict:
        """What besides weights decides the features."""
        return {
            "adapter": type(self).__name__,
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
            "resize": "bicubic, antialiased",
            "features": self.features,
        }

    @property
    def device(self) -> torch.device:
        """Where the weights are; `encode` and `decode` take their inputs from anywhere."""
        return self._like().device

    def freeze(self) -> FrozenEncoder:
        """Eval mode, no weight gradients, fingerprint taken; nothing undoes it."""
        self.requires_grad_(False)
        self.train(False)
        self._fingerprint = self._digest()
        return self

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in eval mode whatever the owner calls."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> FrozenEncoder:
        """Stay frozen whatever the owner calls."""
        return super().requires_grad_(False)

    def _like(self) -> Tensor:
        """A tensor that tells where the weights are and of which kind; an encoder may have none."""
        return next(chain(self.parameters(), self.buffers()), torch.empty(0))

    def _prepare(self, pixels: Tensor) -> Tensor:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"{self.name}: pixels must be B 3 H W, got {tuple(pixels.shape)}")
        if not pixels.is_floating_point():
            raise ValueError(f"{self.name}: pixels must be floats in [0, 1], got {pixels.dtype}")
        pixels = resize_square(pixels.float(), self.image_size)
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return ((pixels - mean) / std).to(self._like())

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (B 3 H W, floats in [0, 1], any size) -> z_u (B N D, float32).

        Raises: ValueError for another shape or integer pixels.
        """
        inputs = self._prepare(pixels)
        with torch.autocast(inputs.device.type, enabled=False):  # a caller's would change the features
            return self._select(self._tokens(inputs))

    def _select(self, tokens: Tensor) -> Tensor:
        tokens = tokens.float()
        if self.features == "last_norm":
            return F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS)
        return tokens

    @abstractmethod
    def _tokens(self, inputs: Tensor) -> Tensor:
        """Prepared inputs -> tokens (B N D), of the last block or (`penultimate`) the one before."""

    @torch.no_grad()
    def decode(self, z_u: Tensor) -> Tensor:
        """z_u (B N D) -> pixels (B 3 image_size image_size, float32, clamped to [0, 1]).

        Raises: ValueError if this encoder cannot decode, or z_u is not B N D of its sizes.
        """
        if not self.can_decode:
            raise ValueError(f"{self.name} with features '{self.features}' has no decoder")
        if z_u.ndim != 3 or z_u.shape[1:] != (self.num_tokens, self.width):
            raise ValueError(f"z_u must be B {self.num_tokens} {self.width}, got {tuple(z_u.shape)}")
        with torch.autocast(z_u.device.type, enabled=False):
            return self._decode(z_u.to(self._like())).float().clamp(0, 1)

    def _decode(self, z_u: Tensor) -> Tensor:
        """z_u (B N D) -> pixels (B 3 H W), where `can_decode` says so."""
        raise ValueError(f"{self.name} has no decoder: {type(self).__name__} does not implement _decode")


class BlindEncoder(FrozenEncoder):
    """Zeros, whatever the picture: the control row that shows what words alone can answer.

    As many tokens as an encoder with a stride of 16 gives for `image_size` px.

    Raises: ValueError if image_size is no multiple of 16.
    """

    def __init__(self, *, features: str | None = None, vae: str | None = None, image_size: int = 64):
        side = blind_side(image_size)
        super().__init__(name="blind", image_size=image_size, grid=(side, side), width=192, features=features)
        self.register_buffer("zero", torch.zeros(1))  # tells the device and the kind

    def _tokens(self, inputs: Tensor) -> Tensor:
        return inputs.new_zeros(len(inputs), self.num_tokens, self.width)
