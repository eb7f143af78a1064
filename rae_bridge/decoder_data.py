"""The pictures of a split and their tokens, as the decoder's training reads them: on the disk, mapped.

<split>/NNNNN.safetensors holds "images" (M S S 3 uint8) and "tokens" (M N D fp16) of up to 1,000 pictures.
Each is made by one process, which decodes and encodes these pictures alone; those that are there are kept, so
an interrupted run goes on. A batch reads its own rows, and processes of one machine share what is in memory.

Letters: M pictures, B batch, N tokens, D token width, S pixels on a side.
"""

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from encoder.data.account import Account
from encoder.frozen import FrozenEncoder
from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT
from encoder.runtime.ranks import Ranks
from encoder.runtime.stage import progress
from encoder.tokens import MAX_BAD_FRACTION, Picture, batches, encode_batch
from rae_bridge.config import TrainDecoderConfig
from rae_bridge.squares import Squares, judge

CHUNK = 1000  # pictures of a file
BATCH = 100  # pictures that are encoded at a time


@dataclass(frozen=True, slots=True)
class Split:
    """Pictures with their tokens, mapped from files."""

    images: list[Tensor]  # of each file: M S S 3, uint8
    tokens: list[Tensor]  # of each file: M N D, fp16
    starts: list[int]  # number of pictures before each file's

    @staticmethod
    def open(paths: list[Path]) -> "Split":
        """Map files that `write_split` wrote.

        Raises:
            ValueError: they hold no picture, or one is damaged.
        """
        held = [checkpoint.load_tensors(path) for path in paths]
        counts = [len(each["images"]) for each in held]
        if not sum(counts):
            raise ValueError(f"no usable picture in {paths[0].parent}")
        starts = [0, *itertools.accumulate(counts)][:-1]
        return Split([each["images"] for each in held], [each["tokens"] for each in held], starts)

    def __len__(self) -> int:
        return self.starts[-1] + len(self.images[-1])

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B N D, fp16) and pictures (B S S 3, uint8) at `indices` (B,)."""
        places = [self._place(index) for index in indices.tolist()]
        tokens = torch.stack([self.tokens[file][row] for file, row in places])
        return tokens, torch.stack([self.images[file][row] for file, row in places])

    def _place(self, index: int) -> tuple[int, int]:
        file = bisect.bisect_right(self.starts, index) - 1
        return file, index - self.starts[file]


def prepare_split(
    config: TrainDecoderConfig,
    encoder: FrozenEncoder,
    ranks: Ranks,
    out_dir: Path,
    split: str,
    limit: int | None,
) -> Split:
    """Decode and encode what out_dir/<split> lacks, each process its own files; then map them all.

    Raises:
        FileNotFoundError, ValueError: there are no shards, or too many pictures are unusable.
    """
    size, folder = config.image_size or encoder.image_size, ROOT / config.data
    pictures = Squares.open(folder, split, size, ranks, crop=config.crop, limit=limit)
    folder, num = out_dir / split, len(pictures)
    folder.mkdir(exist_ok=True)
    parts = [range(first, min(first + CHUNK, num)) for first in range(0, num, CHUNK)]
    paths = [folder / f"{number:05d}.safetensors" for number in range(len(parts))]
    account = Account(MAX_BAD_FRACTION, what="pictures")
    for number in range(ranks.rank, len(parts), ranks.world):
        if not paths[number].is_file():
            checkpoint.save_tensors(paths[number], _encoded(pictures.read(parts[number], account), encoder))
        if ranks.is_main:
            progress(out_dir, parts[number].stop, num, f"tokens of {split}")
    states = ranks.gather(account.state())  # all files are there before any process maps them
    judge(*(sum(state[name] for state in states) for name in ("num_good", "num_bad")), states)
    return Split.open(paths)


def _encoded(squares: Iterator[Picture], encoder: FrozenEncoder) -> dict[str, Tensor]:
    """The tensors of a file."""
    images, tokens = [torch.empty(0, dtype=torch.uint8)], [torch.empty(0, dtype=torch.float16)]
    for batch in batches(squares, BATCH):
        images.append(torch.from_numpy(np.stack([pixels for _, pixels, _ in batch])))
        tokens.append(encode_batch(encoder, batch, torch.float16, flip=False))
    return {"images": torch.cat(images), "tokens": torch.cat(tokens)}
