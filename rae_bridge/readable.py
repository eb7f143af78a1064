"""The pictures of a set as a training reads them at every step: one that cannot be decoded ends no run.

The next one of its class stands for it, at every epoch and after every kill the same. Letters: B batch,
S pixels on a side.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from encoder.data.account import Account, BadSample
from encoder.data.picture_set import PictureSet
from encoder.tokens import MAX_BAD_FRACTION


@dataclass(frozen=True, slots=True)
class ReadablePictures:
    """The first `limit` pictures of a set; `account` counts and names those that others stood for."""

    pictures: PictureSet
    limit: int | None
    pool: ThreadPoolExecutor  # reads and decodes
    account: Account = field(default_factory=lambda: Account(MAX_BAD_FRACTION, what="pictures"))

    @property
    def labels(self) -> Tensor:
        """Each picture's class (N,)."""
        return self.pictures.labels[: self.limit]

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor, size: int, places: Tensor | None = None) -> Tensor:
        """uint8 (B S S 3): as `PictureSet.images` cuts those at `indices` (B,), or those that stand for them.

        Raises:
            TooManyBadSamples: over 1 % of what was read, at least of 1,000, cannot be decoded.
            ValueError: no picture of a class can.
        """
        cuts = [None] * len(indices) if places is None else places.split(1)
        squares = []
        for square, bad in self.pool.map(partial(self._read, size), indices.tolist(), cuts):
            self.account.add_good()
            for sample in bad:
                self.account.add_bad(sample.name, sample.reason)
            squares.append(square)
        return torch.stack(squares)

    def _read(self, size: int, index: int, cut: Tensor | None) -> tuple[Tensor, list[BadSample]]:
        bad = []
        for each in self._candidates(index):
            try:
                return self.pictures.images([each], size, places=cut)[0], bad
            except ValueError as error:  # a disk that fails is another matter: it ends the run, to be resumed
                name = self.pictures.names[each]
                bad.append(BadSample.of(name, str(error).removeprefix(f"picture {name}: ")))
        raise ValueError(f"no picture of class {int(self.labels[index])} can be decoded, as {bad[0]}")

    def _candidates(self, index: int) -> Iterator[int]:
        """A picture, then the others of its class in order, after the last the first."""
        yield index
        alike = (self.labels == self.labels[index]).nonzero().flatten().tolist()
        own = alike.index(index)
        yield from alike[own + 1 :] + alike[:own]
