"""Frozen tokens of pictures as training asks for them: nothing is stored, every step encodes its own batch.

What a token store is to small sets, this is to ImageNet, whose tokens take half a terabyte an encoder. Both
answer the same questions, so the trainer knows no difference. Letters: B batch, D token width, h w grid.

Source: RAE (src/train.py at a4d18c4) encodes online as well: ADM's centre crop, mirrored half of the time.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from encoder.data.batch import to_pixels
from encoder.data.picture_set import open_pictures
from encoder.frozen import FrozenEncoder
from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT
from encoder.token_store import StreamingMoments
from rae_bridge.codec import load_for_generation, origin_of
from rae_bridge.latents import LatentStatistics, grid_side, to_latents
from rae_bridge.pictures_config import PicturesConfig
from rae_bridge.readable import ReadablePictures


@dataclass(frozen=True, slots=True)
class LiveTokens:
    """A frozen encoder over a set of pictures, cut to squares."""

    pictures: ReadablePictures
    encoder: FrozenEncoder
    image_size: int  # px on a side to which they are cut
    num_for_statistics: int
    batch_size: int

    has_flips: ClassVar[bool] = True

    @staticmethod
    def open(config: PicturesConfig, device: str) -> "LiveTokens":
        """The pictures and the encoder that a config names.

        Raises:
            FileNotFoundError, ValueError: there are no such pictures, or the encoder's grid is not square.
        """
        encoder = load_for_generation(config.encoder, config.features, device)
        grid_side(encoder.num_tokens)
        pictures = open_pictures(ROOT / config.folder, config.split, cache=ROOT / config.picture_cache)
        readable = ReadablePictures(pictures, None, ThreadPoolExecutor(config.num_threads))
        sizes = {"num_for_statistics": config.num_for_statistics, "batch_size": config.encode_batch_size}
        return LiveTokens(readable, encoder, config.image_size or encoder.image_size, **sizes)

    @property
    def labels(self) -> Tensor:
        """Each picture's class (N,)."""
        return self.pictures.labels

    @property
    def origin(self) -> dict[str, str]:
        """Encoder, features, and the fingerprint of the two."""
        return origin_of(self.encoder)

    @property
    def side(self) -> int:
        """Tokens along each side of the grid."""
        return self.encoder.grid[0]

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.encoder.width

    def latents(self, indices: Tensor, is_flipped: Tensor | None = None) -> Tensor:
        """Latents (B D h w, fp32, not normalised) of the pictures at `indices` (B,), mirrored where asked.

        Raises:
            ValueError: as `ReadablePictures.images`.
        """
        images = self.pictures.images(indices, self.image_size)
        if is_flipped is not None:
            images = torch.where(is_flipped[:, None, None, None], images.flip(2), images)
        return to_latents(encode_images(self.encoder, images, self.batch_size), self.side)

    def statistics(self) -> LatentStatistics:
        """Statistics of `num_for_statistics` pictures and their mirror images, drawn once and for all; of all
        pictures where there are no more.

        Raises:
            TooManyBadSamples: over 1 % of them cannot be decoded.
        """
        order = torch.randperm(len(self.labels), generator=checkpoint.step_generator(0, 0, "statistics"))
        moments = StreamingMoments()
        for indices in order[: self.num_for_statistics].split(self.batch_size):
            for flipped in (False, True):
                moments.update(self.latents(indices, torch.full((len(indices),), flipped)).cpu())
        self.pictures.account.finish()
        return LatentStatistics(moments.mean.float(), (moments.squares / moments.count).float())


def encode_images(encoder: FrozenEncoder, images: Tensor, batch_size: int) -> Tensor:
    """uint8 images (B H W 3) -> tokens (B N D, fp32) on the encoder's device, `batch_size` at a time."""
    parts = (to_pixels(part.to(encoder.device)) for part in images.split(batch_size))
    return torch.cat([encoder.encode(part) for part in parts])
