"""The pictures of a split and their tokens, as the decoder's training reads them: read, cut and encoded by
each process as they are asked for. Nothing is kept: the tokens of ImageNet would take half a terabyte.

Letters: B batch, N tokens, D token width, S pixels on a side.

Source: RAE (arXiv:2510.11690; src/train_stage1.py at a4d18c4) brings the shorter side to 384 px, takes a
random square of 256, mirrors nothing, and encodes at every step.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from encoder.data.picture_set import Split, open_pictures
from encoder.frozen import FrozenEncoder
from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT
from rae_bridge.config import TrainDecoderConfig
from rae_bridge.live import encode_images
from rae_bridge.pictures_config import LivePicturesConfig
from rae_bridge.readable import ReadablePictures


def draw_cuts(config: TrainDecoderConfig, step: int) -> Tensor:
    """Three numbers in [0, 1) for each picture of a step (B 3), from (seed, step): how far down and how far
    right it is cut, and whether it is mirrored."""
    return torch.rand(config.batch_size, 3, generator=checkpoint.step_generator(config.seed, step, "cut"))


@dataclass(frozen=True, slots=True)
class LiveSplit:
    """The pictures of a set and a frozen encoder."""

    pictures: ReadablePictures
    encoder: FrozenEncoder
    size: int  # S
    config: LivePicturesConfig

    @staticmethod
    def open(
        config: TrainDecoderConfig, encoder: FrozenEncoder, split: Split, limit: int | None
    ) -> "LiveSplit":
        """The pictures that a config names.

        Raises:
            FileNotFoundError, ValueError: there are no such pictures.
        """
        live, size = config.live, config.image_size or encoder.image_size
        pictures = open_pictures(ROOT / config.data, split, cache=ROOT / live.picture_cache)
        readable = ReadablePictures(pictures, limit, ThreadPoolExecutor(live.num_threads))
        return LiveSplit(readable, encoder, size, live)

    def __len__(self) -> int:
        return len(self.pictures)

    def rows(self, indices: Tensor, cuts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (B N D, fp32, on the encoder's device) and pictures (B S S 3, uint8) at `indices` (B,), cut
        as `cuts` (B 3) and the config say; None: as ADM cuts ImageNet.

        Raises:
            ValueError: as `ReadablePictures.images`.
        """
        places = cuts[:, :2] if cuts is not None and self.config.crop == "random" else None
        images = self.pictures.images(indices, self.size, places)
        if cuts is not None and self.config.flip:
            images = torch.where(cuts[:, 2, None, None, None] < 0.5, images.flip(2), images)
        return encode_images(self.encoder, images, self.config.encode_batch_size), images
