"""Stage: pictures of a split through a frozen encoder and back, for rFID, PSNR and SSIM.

`python -m rae_bridge.reconstruct <config.yaml> <out_dir>` (several processes: `accelerate launch -m
rae_bridge.reconstruct ...`) writes out_dir/reconstructions.npz and, in the same order, originals.npz (arr_0:
uint8 M S S 3; labels M, -1 where there is none). Finished batches are kept, so an interrupted run goes on
where it stopped, on any number of processes.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from encoder.data.account import Account
from encoder.frozen import resize_square
from encoder.runtime import checkpoint
from encoder.runtime.ahead import made_ahead
from encoder.runtime.config import ROOT
from encoder.runtime.ranks import Ranks
from encoder.runtime.stage import main, progress
from encoder.tokens import MAX_BAD_FRACTION, Picture
from rae_bridge.codec import Codec, load_codec, to_images
from rae_bridge.config import ReconstructConfig
from rae_bridge.parts import IMAGES, PARTS, batches, own, path_of, write_npz
from rae_bridge.squares import Squares, judge

ORIGINALS, LABELS = "originals", "labels"


@dataclass(frozen=True, slots=True)
class Work:
    """What one process does to a batch of pictures, and where it keeps what it made."""

    config: ReconstructConfig
    codec: Codec
    pictures: Squares
    ranks: Ranks
    account: Account
    folder: Path

    def make(self, parts: Sequence[range], num_wanted: int) -> None:
        """Reconstruct this process's share of the batches that are not there yet; two are read ahead."""
        missing = [part for part in parts if not path_of(self.folder, part).is_file()]
        self.ranks.wait()  # all have looked before any writes
        mine = own(missing, self.ranks)

        def read(number: int) -> list[Picture]:
            return list(self.pictures.read(mine[number], self.account))

        numbers = range(len(mine))
        for part, held in zip(mine, made_ahead(read, numbers), strict=True):
            checkpoint.save_tensors(path_of(self.folder, part), self._reconstructed(held))
            if self.ranks.is_main:
                progress(self.folder, min(part.stop, num_wanted), num_wanted, "pictures")
        self.ranks.wait()

    def _reconstructed(self, held: Sequence[Picture]) -> dict[str, Tensor]:
        """The tensors of a batch's file; empty ones where nothing in it was usable."""
        size = self.pictures.size
        labels = torch.tensor([label for _, _, label in held], dtype=torch.long)
        if not held:
            empty = torch.empty((0, size, size, 3), dtype=torch.uint8)
            return {IMAGES: empty, ORIGINALS: empty.clone(), LABELS: labels}
        originals = torch.from_numpy(np.stack([pixels for _, pixels, _ in held]))
        pixels = resize_square(self.codec.reconstruct(originals, self.ranks.device), size)
        images = to_images(pixels, self.config.rounding)
        return {IMAGES: images, ORIGINALS: originals, LABELS: labels}


def run(config: ReconstructConfig, out_dir: Path) -> dict:
    """Reconstruct and write; see the module's docstring.

    Raises:
        FileNotFoundError, ValueError: there are no pictures, too many are unusable, or the encoder has no way
            back to pixels.
    """
    torch.set_flush_denormal(True)
    ranks = Ranks.start(config.device)
    codec = load_codec(config.encoder, decoder=config.decoder, device=ranks.device)
    size = config.image_size or codec.image_size
    pictures = Squares.open(ROOT / config.data, config.split, size, ranks)
    num_wanted = len(range(len(pictures))[: config.limit])
    (out_dir / PARTS).mkdir(exist_ok=True)
    if ranks.is_main:
        progress(out_dir, 0, num_wanted, "pictures")  # marks the folder as begun with this config
    work = Work(config, codec, pictures, ranks, Account(MAX_BAD_FRACTION, what="pictures"), out_dir)

    # in place of each picture that is unusable, one more is read at the end
    paths, labels, num_read = [], torch.empty(0, dtype=torch.long), 0
    while len(labels) < num_wanted and num_read < len(pictures):
        more = range(num_read, min(num_read + num_wanted - len(labels), len(pictures)))
        parts = batches(more, config.batch_size)
        work.make(parts, num_wanted)
        found = [path_of(out_dir, part) for part in parts]
        labels = torch.cat([labels, *(checkpoint.load_tensors(path)[LABELS] for path in found)])
        paths, num_read = paths + found, more.stop
    judge(len(labels), num_read - len(labels), ranks.gather(work.account.state()))

    if ranks.is_main:
        write_npz(out_dir / "reconstructions.npz", paths, labels)
        write_npz(out_dir / "originals.npz", paths, labels, ORIGINALS)
        shutil.rmtree(out_dir / PARTS)
    ranks.wait()  # no process is done before the files are
    return {"num_samples": len(labels), "image_size": size, "encoder": codec.encoder.name}


if __name__ == "__main__":
    main(ReconstructConfig, run)
