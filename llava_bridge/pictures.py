"""Pictures of the training data as a batch takes them: visual tokens that `encoder.tokens` wrote once (the
projector stays live), or pixels of picture files and rows that the tower encodes at every step.

A file is looked at twice. Before the first step its header is read, and its last bytes where the format has
an end mark; without the mark it is decoded whole. What is broken in the middle shows when it is read: the
sample then keeps its place and its length, takes a black picture, and none of its tokens carries a loss
(see `batches.collate`). That depends on the sample alone, so it is the same after a resume and on any number
of processes.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image
from torch import Tensor

from encoder.data.account import BadSample, TooManyBadSamples
from encoder.data.embedded import EmbeddedPictures
from encoder.data.pictures import decode_picture, open_header, picture_fault
from encoder.data.roots import find_picture
from encoder.runtime.config import ROOT
from encoder.runtime.stage import write_json
from encoder.token_store import TokenStore
from llava_bridge.config import LlavaConfig
from llava_bridge.tower import FrozenTowerConfig, resize_grid

END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # in a whole file's last bytes
_TAIL_BYTES = 64  # cameras and servers append a few
_NAMED = 3  # so many broken pictures are named in the error
_log = logging.getLogger(__name__)


class BrokenPictures:
    """The bad samples that passed the look before the first step: their pictures could not be decoded.

    An `Account` counts one reading. Here epochs, processes and attempts of a run meet the same pictures
    again, so each is noted once, by its name. folder: takes a small file for each, so that all count
    together; None: this process alone. `limit`: beyond it, reading stops.
    """

    def __init__(self, folder: Path | None = None, limit: int = 0):
        self.folder, self.limit = folder, limit
        self._own: dict[str, BadSample] = {}  # of this process, by name

    def __contains__(self, name: str | None) -> bool:
        return name in self._own

    def add(self, name: str, reason: object) -> None:
        """Note one more.

        Raises:
            TooManyBadSamples: they are more than `limit`; the first are named.
        """
        bad = self._own[name] = BadSample.of(name, reason)
        _log.warning("dropped the sample of a broken picture: %s", bad)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            key = hashlib.sha256(name.encode()).hexdigest()[:24]
            write_json(self.folder / f"{key}.json", {"picture": name, "reason": bad.reason})
        found = self.read()
        if len(found) > self.limit:
            named = "; ".join(str(BadSample(*each)) for each in list(found.items())[:_NAMED])
            raise TooManyBadSamples(
                f"pictures cut off or broken: {len(found)}, allowed beside the missing ones: {self.limit} "
                f"(max_missing_fraction); the first: {named}"
            )

    def read(self) -> dict[str, str]:
        """{name: reason} of all processes and attempts, by name."""
        rows = [json.loads(path.read_text()) for path in self.folder.glob("*.json")] if self.folder else []
        own = {name: bad.reason for name, bad in self._own.items()}
        found = own | {row["picture"]: row["reason"] for row in rows}
        return dict(sorted(found.items()))


class CachedPictures:
    """Visual tokens of pictures by name, from a folder that `encoder.tokens` wrote; the projector runs on
    them live. num_tokens: what the tower resizes its grid to, None where it does not."""

    needs_tower = False  # at every step
    identity = None  # a look at one costs nothing

    def __init__(self, folder: Path, num_tokens: int | None = None):
        self.store, self.num_tokens = TokenStore(folder), num_tokens
        self.fingerprint = self.store.about["fingerprint"]
        self.broken = BrokenPictures()  # none: `encoder.tokens` left them out
        self.embedded = None

    def __contains__(self, name: str) -> bool:
        return self.fault(name) is None

    def fault(self, name: str) -> str | None:
        """Why a picture cannot be used; None where nothing is wrong."""
        return None if name in self.store else f"{self.store.folder} holds no tokens of it"

    def inputs(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The model's inputs for the named pictures."""
        return {"image_tokens": self.stack(names)}

    def stack(self, names: Sequence[str]) -> Tensor:
        """Tokens of the named pictures, B N D; no names give one zero picture (see `batches.collate`)."""
        tokens = self.store.named(names) if names else torch.zeros_like(self.store.rows(torch.tensor([0])))
        if self.num_tokens is None:
            return tokens
        return resize_grid(tokens, self.store.about["grid"], self.num_tokens)


class LivePictures:
    """Pixels of picture files under one or several folders, or inside parquet files, prepared by the model's
    image processor; the tower encodes them each step."""

    needs_tower = True

    def __init__(
        self,
        roots: Path | Sequence[Path],
        image_processor,
        broken: BrokenPictures | None = None,
        embedded: EmbeddedPictures | None = None,
        *,
        allow_outside_root: bool = False,
    ):
        self.roots = [roots] if isinstance(roots, Path) else list(roots)
        self.allow_outside_root = allow_outside_root
        self.image_processor = image_processor
        self.broken = broken or BrokenPictures()
        self.embedded = embedded

    @property
    def identity(self) -> list[str]:
        """Where the pictures are looked for, by which looks at them are remembered."""
        return [*(str(root.absolute()) for root in self.roots), f"outside={self.allow_outside_root}"]

    def open(self, name: str) -> BinaryIO:
        """The picture's bytes: from a parquet file, or from the first folder that has it.

        Raises:
            FileNotFoundError: no folder has it.
            ValueError: the name leads out of the folders; see `encoder.data.roots`.
        """
        if self.embedded is not None and name in self.embedded:
            return io.BytesIO(self.embedded[name])
        return find_picture(name, self.roots, allow_outside_root=self.allow_outside_root).open("rb")

    def __contains__(self, name: str) -> bool:
        return self.fault(name) is None

    def fault(self, name: str) -> str | None:
        """Why a picture cannot be used, by a look at its file: it is not there, its header is no picture's,
        or its end is missing; None where nothing is wrong."""
        try:
            with self.open(name) as file:
                check_picture(file)
        except Exception as error:  # of any kind: PIL's readers raise whatever the bytes make them
            return _fault(error)
        return None

    def inputs(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The model's inputs for the named pictures."""
        return {"pixel_values": self.stack(names)}

    def stack(self, names: Sequence[str]) -> Tensor:
        """Pixels in [0, 1] of the named pictures, B 3 H W, a broken one black and noted in `broken`; no names
        give one black picture (see `batches.collate`).

        Raises:
            TooManyBadSamples: more pictures are broken than allowed.
        """
        pictures = [self.read(name) for name in names] or [_black()]
        return self.image_processor(pictures, return_tensors="pt")["pixel_values"]

    def read(self, name: str) -> Image.Image:
        """A picture; a black one in place of one that is broken, which is noted.

        Raises:
            TooManyBadSamples: more pictures are broken than allowed.
        """
        if name in self.broken:
            return _black()
        try:
            with self.open(name) as file:
                return decode_picture(file)
        except (OSError, ValueError) as error:
            self.broken.add(name, error)
        return _black()


def open_live(config: LlavaConfig, image_processor, out_dir: Path) -> LivePictures:
    """The picture files of a stage's records; broken ones are noted in `out_dir`."""
    roots = [ROOT / root for root in (config.image_root, *config.more_image_roots) if root is not None]
    broken = BrokenPictures(out_dir / "broken_pictures")
    embedded = EmbeddedPictures(ROOT / config.picture_cache)
    outside = config.allow_outside_root
    return LivePictures(roots, image_processor, broken, embedded, allow_outside_root=outside)


def open_pictures(
    config: LlavaConfig, tower: FrozenTowerConfig, image_processor, out_dir: Path
) -> CachedPictures | LivePictures:
    """Cached tokens of this very tower's encoder, or the picture files; broken ones are noted in `out_dir`.

    Raises:
        ValueError: the cached tokens come from other weights, preprocessing or features.
    """
    if config.tokens is None:
        return open_live(config, image_processor, out_dir)
    is_resized = tower.num_encoder_tokens not in (0, tower.num_tokens)
    pictures = CachedPictures(ROOT / config.tokens, tower.num_tokens if is_resized else None)
    check_fingerprint(config, tower, pictures.fingerprint)
    return pictures


def check_fingerprint(config: LlavaConfig, tower: FrozenTowerConfig, fingerprint: str) -> None:
    """Raises: ValueError: cached tokens come from other weights, preprocessing or features."""
    if fingerprint != tower.fingerprint:
        raise ValueError(
            f"{config.tokens} holds tokens of another encoder or other features than {config.encoder}; "
            "run encoder.tokens for this one"
        )


def check_picture(file: BinaryIO) -> None:
    """Look at a picture's header and end; decode it only where the format's end mark is missing.

    Raises:
        Exception: of any kind, where it is no picture, has more than MAX_PIXELS, or is cut off.
    """
    with open_header(file) as picture:
        mark = END_MARKS.get(picture.format, b"")
        place = file.tell()
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        is_whole = mark in file.read()
        file.seek(place)
        if not is_whole:
            picture.load()


def _fault(error: Exception) -> str:
    """Of a file that is not there its name, of a picture what is wrong with it."""
    is_plain = isinstance(error, FileNotFoundError)
    return str(error) if is_plain else picture_fault(error)


def _black() -> Image.Image:
    return Image.new("RGB", (8, 8))
