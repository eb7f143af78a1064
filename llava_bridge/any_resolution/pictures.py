"""Views of the training pictures as a batch takes them: from a folder that `cache` wrote, or cut at every
step from picture files and rows. `pictures` says what happens to a picture that breaks when it is read.

Letters: M pictures of a batch, V their views together.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from encoder.data.pictures import open_header, picture_fault, upright_size
from encoder.data.shards import in_order, num_threads
from encoder.runtime.config import ROOT
from encoder.runtime.distributed import from_first, process_number
from encoder.token_store import TokenStore
from llava_bridge.any_resolution.cache import read_sizes, view_key
from llava_bridge.any_resolution.views import Size, Views
from llava_bridge.config import LlavaConfig
from llava_bridge.pictures import BrokenPictures, LivePictures, check_fingerprint, open_live
from llava_bridge.tower import FrozenTowerConfig


class _Viewed(ABC):
    """What both kinds count alike. is_whole: the first view alone."""

    views: Views
    is_whole: bool

    @abstractmethod
    def size(self, name: str) -> Size:
        """(height, width) of a picture."""

    def num_views(self, name: str) -> int:
        """Views of a picture that the tower sees."""
        return 1 if self.is_whole else self.views.num_views(self.size(name))

    def num_tokens(self, name: str) -> int:
        """Tokens of a picture that the language model sees."""
        return self.views.grid**2 if self.is_whole else self.views.num_tokens(self.size(name))

    def inputs(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The model's inputs for the named pictures: all views, V ..., and image_sizes (M 2), which the first
        views alone do without. No names give one blank view and no sizes (see `batches.collate`)."""
        if self.is_whole:
            return self.stack(names)
        sizes = torch.tensor([self.size(name) for name in names], dtype=torch.long).view(-1, 2)
        return self.stack(names) | {"image_sizes": sizes}

    @abstractmethod
    def stack(self, names: Sequence[str]) -> dict[str, Tensor]:
        """All views of the named pictures."""


class CachedViews(_Viewed):
    """Views from a folder that `cache` wrote: the tower's tokens, or latents that the ViT reads live."""

    identity = None  # a look at one costs nothing
    embedded = None

    def __init__(self, folder: Path, views: Views, *, is_whole: bool = False):
        """Raises: FileNotFoundError, ValueError: no views there, or views of another kind."""
        self.sizes, self.views, self.is_whole = read_sizes(folder), views, is_whole
        self.store = TokenStore(folder)
        self.fingerprint = self.store.about["fingerprint"]
        self.holds_latents = self.store.about["holds"] == "latents"
        self.broken = BrokenPictures()  # none: `cache` left them out
        wanted, found = [views.side, views.grid, *map(list, views.canvases)], self.store.about["views"]
        if found != wanted:
            raise ValueError(
                f"{folder} holds views {found} (px, tokens, canvases), wanted {wanted}; write them by "
                "llava_bridge.any_resolution.cache with these tiles"
            )

    @property
    def needs_tower(self) -> bool:
        """Whether the tower runs at every step."""
        return self.holds_latents

    def __contains__(self, name: str) -> bool:
        return self.fault(name) is None

    def fault(self, name: str) -> str | None:
        """Why a picture cannot be used; None where nothing is wrong."""
        is_there = name in self.sizes and all(key in self.store for key in self._keys(name))
        return None if is_there else f"{self.store.folder} holds no views of it"

    def size(self, name: str) -> Size:
        return self.sizes[name]

    def _keys(self, name: str) -> list[str]:
        return [view_key(name, view) for view in range(self.num_views(name))]

    def stack(self, names: Sequence[str]) -> dict[str, Tensor]:
        """image_tokens (V N D), or pixel_values: latents (V C h w)."""
        keys = [key for name in names for key in self._keys(name)]
        held = self.store.named(keys) if keys else torch.zeros_like(self.store.rows(torch.tensor([0])))
        if not self.holds_latents:
            return {"image_tokens": held}
        return {"pixel_values": rearrange(held, "V (h w) C -> V C h w", h=self.store.about["grid"][0])}


class LiveViews(_Viewed):
    """Views cut from picture files, or from rows of parquet files, at every step."""

    needs_tower = True

    def __init__(self, pictures: LivePictures, views: Views, *, is_whole: bool = False):
        self.pictures, self.views, self.is_whole = pictures, views, is_whole
        self.broken, self.embedded = pictures.broken, pictures.embedded
        self._sizes: dict[str, Size] = {}

    @property
    def identity(self) -> list[str]:
        """Where the pictures are looked for, by which looks at them are remembered."""
        return self.pictures.identity

    def __contains__(self, name: str) -> bool:
        return name in self.pictures

    def fault(self, name: str) -> str | None:
        """Why a picture cannot be used, by a look at its file; None where nothing is wrong."""
        return self.pictures.fault(name)

    def size(self, name: str) -> Size:
        """As the picture's header gives it.

        Raises:
            Exception: of any kind, where it is no picture; `fault` says so before.
        """
        if name not in self._sizes:
            with self.pictures.open(name) as file, open_header(file) as picture:
                self._sizes[name] = upright_size(picture)
        return self._sizes[name]

    def read_sizes(self, names: Sequence[str], absent: dict[int, str]) -> None:
        """Read the sizes of the named pictures but for those that are absent, {place: reason}, in the first
        process, for all. One that cannot be read is absent too. Every process of a launch calls."""
        if self.is_whole:  # which asks for none
            return
        places = [place for place in range(len(names)) if place not in absent]
        wanted = [names[place] for place in places]
        found = list(in_order(self._header, wanted, num_threads())) if process_number() == 0 else None
        for place, size in zip(places, from_first(found), strict=True):
            if isinstance(size, str):
                absent[place] = size
            else:
                self._sizes[names[place]] = size

    def _header(self, name: str) -> Size | str:
        """A picture's size, or why it cannot be used."""
        try:
            return self.size(name)
        except Exception as error:  # of any kind: PIL's readers raise whatever the bytes make them
            return picture_fault(error)

    def stack(self, names: Sequence[str]) -> dict[str, Tensor]:
        """pixel_values (V 3 S S in [0, 1]); the views of a broken picture are black.

        Raises:
            TooManyBadSamples: more pictures are broken than allowed.
        """
        side = self.views.side
        views = [self._cut(name) for name in names] or [np.zeros((1, side, side, 3), np.uint8)]
        pixels = torch.from_numpy(np.concatenate(views))
        return {"pixel_values": rearrange(pixels, "V h w c -> V c h w").float() / 255}

    def _cut(self, name: str) -> np.ndarray:
        picture = self.pictures.read(name)
        found = (picture.height, picture.width)
        if not self.is_whole and name not in self.broken and found != self.size(name):
            self.broken.add(name, f"its header gives {self.size(name)}, it has {found}")
        if name in self.broken:
            return np.zeros((self.num_views(name), self.views.side, self.views.side, 3), np.uint8)
        return self.views.whole(picture) if self.is_whole else self.views.cut(picture)


def open_views(
    config: LlavaConfig, tower: FrozenTowerConfig, views: Views, out_dir: Path
) -> CachedViews | LiveViews:
    """The views of a stage's pictures, cached or from the picture files; broken ones are noted in `out_dir`.

    Raises:
        FileNotFoundError, ValueError: no cached views there, or of other weights, preprocessing or tiles.
    """
    is_whole = config.views == "whole"
    if config.tokens is None:
        return LiveViews(open_live(config, None, out_dir), views, is_whole=is_whole)
    pictures = CachedViews(ROOT / config.tokens, views, is_whole=is_whole)
    check_fingerprint(config, tower, pictures.fingerprint)
    return pictures
