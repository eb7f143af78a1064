"""Latents: frozen tokens on their grid, normalised by their mean and variance over the training set.

Letters: B batch, N tokens, D token width, h w grid (N = h * w). `tokens` B N D are what an encoder gives,
`latents` B D h w what the diffusion transformer sees. Statistics are per channel and per position: the
norm of an encoder standardises each token over its channels, not a channel over the data.

Source: RAE (arXiv:2510.11690; stage1/rae.py at a4d18c4). Deviation: RAE's are running averages with
momentum 0.1, in effect of the last twenty batches; these are exact.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from encoder.runtime import checkpoint
from encoder.token_store import NO_CLASS, TokenStore

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


class CachedLatents:
    """The latents of a folder of tokens (see `encoder.token_store`), as training reads them."""

    def __init__(self, store: TokenStore):
        """Raises: ValueError: the grid is not square, or some picture has no class."""
        self.store, self.side, self.width = store, grid_side(store.num_tokens), store.width
        self.labels, self.has_flips, self.origin = store.labels, store.has_flips, store.origin
        if self.labels.min() == NO_CLASS:
            raise ValueError(
                f"{store.folder}: some pictures have no class; class-conditional training needs all"
            )

    def latents(self, indices: Tensor, is_flipped: Tensor | None = None) -> Tensor:
        """Latents (B D h w, fp32, not normalised) of the pictures at `indices` (B,), mirrored where asked.

        Raises:
            ValueError: mirror images are asked for and there are none.
        """
        return to_latents(self.store.rows(indices, is_flipped).float(), self.side)

    def statistics(self) -> LatentStatistics:
        """Exact statistics over all tokens, those of mirror images too."""
        moments = self.store.moments()
        both = torch.stack([moments.mean, moments.squares / moments.count])  # 2 N D
        return LatentStatistics(*to_latents(both, self.side).float())


def open_latents(folder: Path) -> CachedLatents:
    """The tokens that `encoder.tokens` or `rae_bridge.cache` wrote to a folder.

    Raises:
        FileNotFoundError, ValueError: they are missing or damaged, or no DiT can be trained on them.
    """
    return CachedLatents(TokenStore(folder))


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
