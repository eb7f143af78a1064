"""Pictures of a split in their order, as squares of one size, of which any part can be read.

Letters: S pixels on a side.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from encoder.data.account import Account, BadSample
from encoder.data.options import Crop
from encoder.data.picture_set import PictureSet, Split, are_captioned, open_pictures
from encoder.data.shards import find_shards, in_order, num_threads
from encoder.data.stream import crop
from encoder.runtime.ranks import Ranks
from encoder.tokens import MAX_BAD_FRACTION, Picture, TarPictures


@dataclass(frozen=True, slots=True)
class SetPictures:
    """The first `limit` pictures of a set, cut to squares of `size` px as ADM cuts ImageNet."""

    pictures: PictureSet
    limit: int | None
    size: int

    def __len__(self) -> int:
        return len(range(len(self.pictures))[: self.limit])

    def read(self, part: range) -> Iterator[Picture | BadSample]:
        """The pictures of a part in order; in place of an unreadable one, its name with the reason."""
        return in_order(self._read, part, num_threads())

    def _read(self, index: int) -> Picture | BadSample:
        name = self.pictures.names[index]
        try:
            return name, self.pictures.images([index], self.size)[0].numpy(), int(self.pictures.labels[index])
        except (ValueError, OSError) as error:
            return BadSample(name, str(error))


@dataclass(frozen=True, slots=True)
class Squares:
    """`size`: S; `crop`: how oblong pictures of shards with texts become square; other sets are cut as ADM
    does."""

    pictures: TarPictures | SetPictures
    size: int
    crop: Crop = "squash"

    @staticmethod
    def open(
        folder: Path,
        split: Split,
        size: int,
        ranks: Ranks,
        *,
        crop: Crop = "squash",
        limit: int | None = None,
    ) -> "Squares":
        """The first `limit` pictures of a split, readable or not.

        Raises:
            FileNotFoundError, ValueError: there are none.
        """
        if are_captioned(folder, split):
            pictures = TarPictures(find_shards(folder, split), limit, ranks)
        else:
            pictures = SetPictures(open_pictures(folder, split), limit, size)
        if not len(pictures):
            raise ValueError(f"no picture of split {split} in {folder}")
        return Squares(pictures, size, crop)

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, part: range, account: Account) -> Iterator[Picture]:
        """The usable pictures of a part (S S 3) in order; `account` counts and names the others.

        Raises:
            TooManyBadSamples: naming the first ones.
        """
        for picture in self.pictures.read(part):
            if isinstance(picture, BadSample):
                account.add_bad(picture.name, picture.reason)
                continue
            account.add_good()
            key, pixels, label = picture
            # no way of cropping here draws anything
            square = crop(Image.fromarray(pixels), self.crop, self.size, (1, 1), random.Random(0))
            yield key, np.asarray(square), label


def judge(num_good: int, num_bad: int, states: list[dict]) -> None:
    """Judge what all processes read; `states` are their accounts', which name some that are bad.

    Raises:
        TooManyBadSamples: naming the first ones.
    """
    first = [bad for state in states for bad in state["first"]]
    state = {"num_good": num_good, "num_bad": num_bad, "first": first}
    Account(MAX_BAD_FRACTION, what="pictures", state=state).finish()
