"""Latents: frozen tokens on their grid, normalised by their mean and variance over the training set.

Letters: B batch, N tokens, D token width, h w grid (N = h * w). `tokens` B N D are what an encoder gives,
`latents` B D h w what the diffusion transformer sees. Statistics are per channel and per position: the
norm of an encoder standardises each token over its channels, not a channel over the data.

Source: RAE (arXiv:2510.11690; stage1/rae.py at a4d18c4). Deviation: RAE's are running averages with
momentum 0.1, in effect of the last twenty batches; these are exact.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from encoder.runtime import checkpoint

EPSILON = 1e-5  # RAE's; added to the variance


@dataclass(frozen=True, slots=True)
class LatentStatistics:
    """Mean and biased variance, each D h w in fp32; None is 0 or 1 (RAE's DINOv2 file has no mean)."""

    mean: Tensor | None
    var: Tensor | None

    def to(self, device: torch.device | str) -> "LatentStatistics":
        """The same on a device."""
        return LatentStatistics(
            *(each if each is None else each.to(device) for each in (self.mean, self.var))
        )

    def normalise(self, latents: Tensor) -> Tensor:
        """(latents - mean) / sqrt(var + 1e-5), B D h w."""
        centred = latents if self.mean is None else latents - self.mean.to(latents)
        return centred if self.var is None else centred / (self.var.to(latents) + EPSILON).sqrt()

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        scaled = latents if self.var is None else latents * (self.var.to(latents) + EPSILON).sqrt()
        return scaled if self.mean is None else scaled + self.mean.to(latents)

    def save(self, path: Path) -> None:
        """Write RAE's own format: {"mean": D h w or None, "var": D h w or None}."""
        checkpoint.save(path, {"mean": self.mean, "var": self.var})

    @staticmethod
    def load(path: Path | str) -> "LatentStatistics":
        """Read a statistics file of ours or of RAE.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or is not {"mean", "var"} of tensors D h w or None.
        """
        content = checkpoint.load(Path(path))
        values = [content.get("mean"), content.get("var")]
        is_legal = all(value is None or (isinstance(value, Tensor) and value.ndim == 3) for value in values)
        if "var" not in content or not is_legal:
            raise ValueError(f'{path}: expected {{"mean", "var"}}, each D h w or None; got {sorted(content)}')
        return LatentStatistics(*(value if value is None else value.float() for value in values))


class StreamingMoments:
    """Exact mean and variance of a stream of batches, in float64, whatever the batch sizes.

    Accumulators of separate streams (ranks, shards) merge. Source: Chan, Golub and LeVeque, 1983.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())  # sum of squared deviations from the mean

    def update(self, batch: Tensor) -> None:
        """Take in a batch (B ...)."""
        batch = batch.double()
        one = StreamingMoments()
        one.count, one.mean = len(batch), batch.mean(dim=0)
        one.squares = (batch - one.mean).square().sum(dim=0)
        self.merge(one)

    def merge(self, other: "StreamingMoments") -> None:
        """Take in all that another accumulator has seen."""
        if other.count == 0:
            return
        total = self.count + other.count
        difference = other.mean - self.mean
        self.squares = self.squares + other.squares + difference.square() * (self.count * other.count / total)
        self.mean = self.mean + difference * (other.count / total)
        self.count = total

    def statistics(self) -> LatentStatistics:
        """Mean and biased variance of everything seen."""
        if self.count == 0:
            raise ValueError("no latents were seen; statistics need at least one")
        return LatentStatistics(self.mean.float(), (self.squares / self.count).float())


@dataclass(frozen=True, slots=True)
class TokenCache:
    """What stage `encoder.tokens` wrote for one encoder and one split: tokens (pictures N D), labels."""

    tokens: Tensor
    labels: Tensor
    origin: dict[str, str]  # encoder, features, and the fingerprint of the two

    @staticmethod
    def load(folder: Path) -> "TokenCache":
        """Read folder/tokens.safetensors and index.json.

        Raises:
            FileNotFoundError, ValueError: they are missing, damaged, or some picture has no class.
        """
        content = checkpoint.load_tensors(folder / "tokens.safetensors")
        about = json.loads((folder / "index.json").read_text())
        if content["labels"].min() < 0:
            raise ValueError(f"{folder}: some pictures have no class; class-conditional training needs all")
        origin = {key: about[key] for key in ("encoder", "features", "fingerprint")}
        return TokenCache(content["tokens"], content["labels"].long(), origin)

    has_flips: ClassVar[bool] = False  # mirror images are in `rae_bridge.cache` only

    @property
    def side(self) -> int:
        """Tokens along each side of the grid."""
        return grid_side(self.tokens.shape[1])

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.tokens.shape[2]

    def latents(self, indices: Tensor, is_flipped: Tensor | None = None) -> Tensor:
        """Latents (B D h w, fp32, not normalised) of the pictures at `indices` (B,).

        Raises:
            ValueError: mirror images are asked for.
        """
        if is_flipped is not None:
            raise ValueError("these tokens hold no mirror images; rae_bridge.cache writes them")
        return to_latents(self.tokens[indices].float(), self.side)

    def statistics(self, batch_size: int = 256) -> LatentStatistics:
        """Exact statistics over the whole cache."""
        moments = StreamingMoments()
        for batch in self.tokens.split(batch_size):
            moments.update(to_latents(batch, self.side))
        return moments.statistics()


def grid_side(num_tokens: int) -> int:
    """Tokens along each side of a grid of `num_tokens`.

    Raises:
        ValueError: the grid is not square.
    """
    side = round(num_tokens**0.5)
    if side * side != num_tokens:
        raise ValueError(f"{num_tokens} tokens a picture are not a square grid; the DiT needs one")
    return side


def to_latents(tokens: Tensor, side: int) -> Tensor:
    """B N D -> B D h w, tokens row by row."""
    return rearrange(tokens, "b (h w) d -> b d h w", h=side)


def to_tokens(latents: Tensor) -> Tensor:
    """B D h w -> B N D, the inverse of `to_latents`."""
    return rearrange(latents, "b d h w -> b (h w) d")
