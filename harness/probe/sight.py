"""What a probe sees of a picture: its frozen tokens as one row, of the whole or of all LLaVA-NeXT's views.

Letters: M pictures, B of a batch, V views of a picture, D width of the row.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from encoder.data.batch import to_pixels
from encoder.frozen import FrozenEncoder
from encoder.token_store import TokenStore
from harness.probe.readers import flat_tokens
from llava_bridge.any_resolution.views import Views

_BATCH = 1024  # rows read at a time


@dataclass(frozen=True)
class Sight:
    """Pictures as a probe sees them. most: places on a side of a view at most, more are averaged; views: None
    for the whole picture alone."""

    encoder: FrozenEncoder
    most: int
    views: Views | None = None

    @classmethod
    def of(cls, store: TokenStore, encoder: FrozenEncoder, most: int) -> Sight:
        """As the pictures were seen whose tokens a folder holds.

        Raises: ValueError: it holds a VAE's latents, not tokens.
        """
        if store.about.get("holds", "tokens") != "tokens":
            raise ValueError(f"the folder holds {store.about['holds']}; a probe reads tokens")
        if "views" not in store.about:
            return cls(encoder, most)
        side, grid, *canvases = store.about["views"]
        return cls(encoder, most, Views(side, grid, tuple(map(tuple, canvases))))

    def known(self, store: TokenStore) -> tuple[list[str], Tensor]:
        """Names and rows (M D) of the pictures in the folder.

        Raises: ValueError: pictures differ in their number of views.
        """
        batches = torch.arange(len(store)).split(_BATCH)
        flat = torch.cat([flat_tokens(store.rows(rows), self.encoder.grid, self.most) for rows in batches])
        if self.views is None:
            return list(store.keys), flat
        places: dict[str, list[int]] = defaultdict(list)
        for place, key in enumerate(store.keys):
            places[key.rpartition("#")[0]].append(place)
        counts = sorted({len(rows) for rows in places.values()})
        if len(counts) > 1:
            raise ValueError(
                f"{store.folder} holds pictures of {counts[0]} and of {counts[-1]} views: a probe needs "
                "pictures of one shape, all cut into as many tiles"
            )
        return list(places), flat[torch.tensor(list(places.values()))].flatten(1)

    def encode(self, images: np.ndarray) -> Tensor:
        """uint8 images of one size (B H W 3) -> B D."""
        views = images[:, None] if self.views is None else np.stack([self.views.cut(each) for each in images])
        pixels = to_pixels(torch.from_numpy(views.reshape(-1, *views.shape[2:])).to(self.encoder.device))
        flat = flat_tokens(self.encoder.encode(pixels), self.encoder.grid, self.most).cpu()
        return rearrange(flat, "(b v) d -> b (v d)", b=len(images))
