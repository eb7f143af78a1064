"""Stage: the frozen tokens of every picture, computed once for both bridges.

`python -m encoder.tokens <config.yaml> <out_dir>` writes a folder that `encoder.token_store` reads. Several
processes (`torchrun -m encoder.tokens ...`) share the shards among them, and what is written does not depend
on how many they are. Shards that are there are kept: an interrupted run goes on with the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from encoder.data.account import Account, BadSample
from encoder.data.batch import to_pixels
from encoder.data.picture_set import MAX_LABEL
from encoder.data.pictures import decode_picture
from encoder.data.records import picture_names
from encoder.data.roots import find_picture
from encoder.data.shards import find_shards, in_order, num_threads, open_picture, read_record
from encoder.data.tars import OpenShard
from encoder.frozen import FrozenEncoder
from encoder.load import load_encoder
from encoder.options import TokensConfig
from encoder.runtime.config import ROOT
from encoder.runtime.files import remove_leftovers
from encoder.runtime.ranks import Ranks
from encoder.runtime.stage import main, progress, sha256_json
from encoder.token_store import NO_CLASS, SHARDS, Encoded, TokenWriter

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
MAX_BAD_FRACTION = 0.01
SHARD_BYTES = 512_000_000  # of tokens, where the config does not say how many pictures a shard holds
_NUM_COUNTED = 256  # samples held at a time while a tar file's are counted
Picture = tuple[str, np.ndarray, int]  # key, uint8 H W 3, label


class Pictures(Protocol):
    """Pictures in a fixed order, readable or not, of which any part can be read."""

    def __len__(self) -> int: ...

    def describe(self, part: range) -> str:
        """A word for what a part consists of; parts of other pictures have other words."""

    def read(self, part: range) -> Iterator[Picture | BadSample]:
        """The pictures of a part in order; in place of an unreadable one, its name with the reason."""


class FilePictures:
    """Picture files under a folder, by the names that records give; they have no classes.

    Records that cannot be read count as unreadable pictures, before the first.
    """

    def __init__(self, root: Path, records: list[Path], limit: int | None, *, allow_outside_root: bool):
        self.root, self.allow_outside_root = root, allow_outside_root
        self.refused: list[BadSample] = []
        self.names = picture_names(records, self._refuse)[:limit]

    def _refuse(self, place: str, reason: str) -> None:
        self.refused.append(BadSample(place, reason))

    def __len__(self) -> int:
        return len(self.names)

    def describe(self, part: range) -> str:
        return sha256_json([self.allow_outside_root, self.names[part.start : part.stop]])

    def read(self, part: range) -> Iterator[Picture | BadSample]:
        if part.start == 0:
            yield from self.refused
        yield from in_order(self._read, self.names[part.start : part.stop], num_threads())

    def _read(self, name: str) -> Picture | BadSample:
        try:
            path = find_picture(name, [self.root], allow_outside_root=self.allow_outside_root)
            return name, np.array(decode_picture(path)), NO_CLASS
        except (ValueError, OSError) as error:
            return BadSample(name, str(error))


class TarPictures:
    """The first `limit` pictures of tar shards, with their class where the record has one.

    The samples are counted first, so that any process can read any part: each file by one process.
    """

    def __init__(self, paths: list[Path], limit: int | None, ranks: Ranks):
        self.paths, self.starts = paths, [0]
        for first in range(0, len(paths), ranks.world):
            mine = paths[first + ranks.rank : first + ranks.rank + 1]
            for count in ranks.gather(sum(_count_samples(path) for path in mine))[: len(paths) - first]:
                self.starts.append(self.starts[-1] + count)
            if limit is not None and self.starts[-1] >= limit:
                break
        self.num = self.starts[-1] if limit is None else min(limit, self.starts[-1])

    def __len__(self) -> int:
        return self.num

    def describe(self, part: range) -> str:
        places = self._places(part)
        return sha256_json([(path.name, path.stat().st_size, str(taken)) for path, taken, _ in places])

    def read(self, part: range) -> Iterator[Picture | BadSample]:
        for path, taken, is_end in self._places(part):
            shard = OpenShard(str(path))
            shard.take(taken.start)
            raws = (raw for _ in taken for raw in shard.take(1))
            yield from in_order(partial(_decode, path.name), raws, num_threads())
            if is_end and not shard.take(1):  # reading past the last sample finds what was cut off
                yield from (BadSample(f"{path.name}:*", damage) for damage in shard.damage)

    def _places(self, part: range) -> Iterator[tuple[Path, range, bool]]:
        """For a part: each tar file, which of its samples, and whether its last one is among them."""
        for path, (start, stop) in zip(self.paths, itertools.pairwise(self.starts), strict=False):
            first, last = max(part.start, start), min(part.stop, stop)
            if first < last:
                yield path, range(first - start, last - start), last == stop


def _count_samples(path: Path) -> int:
    shard = OpenShard(str(path))
    while shard.take(_NUM_COUNTED):
        pass
    return shard.position


def _decode(tar: str, raw: dict[str, Any]) -> Picture | BadSample:
    try:
        label = read_record(raw).get("label", NO_CLASS)
        if type(label) is not int or not NO_CLASS <= label <= MAX_LABEL:
            raise ValueError(f"label {repr(label)[:40]} is not a class's number")
        return raw["__key__"], np.array(open_picture(raw)), label
    except (ValueError, OSError) as error:
        return BadSample(f"{tar}:{raw['__key__']}", str(error))


def batches(pictures: Iterator[Picture], batch_size: int) -> Iterator[list[Picture]]:
    """Consecutive pictures of equal size, at most `batch_size`."""
    held: list[Picture] = []
    for picture in pictures:
        if held and (len(held) == batch_size or picture[1].shape != held[0][1].shape):
            yield held
            held = []
        held.append(picture)
    if held:
        yield held


def encode_batch(encoder: FrozenEncoder, pictures: list[Picture], dtype: torch.dtype, flip: bool) -> Tensor:
    """Pictures of equal size, or their mirror images -> tokens (B N D) as `dtype`.

    Raises: ValueError if a token does not fit the type, naming the picture.
    """
    images = torch.as_tensor(np.stack([pixels for _, pixels, _ in pictures]))
    if flip:
        images = images.flip(2)
    tokens = encoder.encode(to_pixels(images.to(encoder.device)))
    stored = tokens.to(dtype).cpu()
    is_lost = ~torch.isfinite(stored).flatten(1).all(dim=1)
    if is_lost.any():
        row = int(is_lost.nonzero()[0])
        what = "overflow fp16; set dtype=fp32" if tokens[row].isfinite().all() else "are not finite"
        raise ValueError(f"tokens of {encoder.name} for {pictures[row][0]} {what}, or choose other features")
    return stored


class ShardEncoder:
    """Encodes one part of the pictures after another, and says how far it is."""

    def __init__(self, encoder: FrozenEncoder, config: TokensConfig, pictures: Pictures):
        self.encoder, self.config, self.pictures = encoder, config, pictures
        self.account = Account(MAX_BAD_FRACTION, what="pictures")

    def encode(self, part: range, say: Callable[[int], None]) -> Encoded:
        """What goes into the shard of a part; `say` hears how many pictures are done each time.

        Raises: ValueError: a token does not fit, or too many pictures are unreadable.
        """
        encoder, dtype = self.encoder, DTYPES[self.config.dtype]
        flips = (False, True) if self.config.flips else (False,)
        shape = (len(part), encoder.num_tokens, encoder.width)
        tokens = [torch.empty(shape, dtype=dtype) for _ in flips]  # where each batch finds its place
        keys, labels, skipped = [], [], []
        for batch in batches(self._readable(part, skipped), self.config.batch_size):
            for flip, held in zip(flips, tokens, strict=True):
                held[len(keys) : len(keys) + len(batch)] = encode_batch(encoder, batch, dtype, flip)
            keys += [key for key, _, _ in batch]
            labels += [label for _, _, label in batch]
            say(len(batch))
        say(len(part) - len(keys))
        tokens = [held[: len(keys)] for held in tokens]
        return Encoded(
            keys=keys,
            tokens=tokens[0],
            flipped=tokens[1] if self.config.flips else None,
            labels=torch.tensor(labels, dtype=torch.long),
            skipped=skipped,
        )

    def _readable(self, part: range, skipped: list[BadSample]) -> Iterator[Picture]:
        for picture in self.pictures.read(part):
            if isinstance(picture, BadSample):
                skipped.append(self.account.add_bad(picture.name, picture.reason))
            else:
                self.account.add_good()
                yield picture


def open_pictures(config: TokensConfig, ranks: Ranks) -> Pictures:
    """The pictures of records, or of shards.

    Raises: FileNotFoundError, ValueError: there are none.
    """
    if config.records:
        records, outside = [ROOT / path for path in config.records], config.allow_outside_root
        found = FilePictures(ROOT / config.data, records, config.limit, allow_outside_root=outside)
    else:
        found = TarPictures(find_shards(ROOT / config.data, config.split), config.limit, ranks)
    if not len(found):
        raise ValueError(f"no picture in {', '.join(config.records) or config.data}")
    return found


def about_tokens(encoder: FrozenEncoder, dtype: str, flips: bool = False) -> dict[str, Any]:
    """What index.json says of an encoder's tokens."""
    return {
        "encoder": encoder.name, "fingerprint": encoder.fingerprint, "features": encoder.features,
        "grid": list(encoder.grid), "width": encoder.width, "can_decode": encoder.can_decode,
        "dtype": dtype, "flips": flips,
    }  # fmt: skip


def write_tokens(config: TokensConfig, out_dir: Path, *, has_moments: bool = False) -> dict[str, Any]:
    """Encode and write what is missing; returns whose tokens they are, and counts.

    has_moments: keep in each shard what the statistics of its tokens need.

    Raises: FileNotFoundError, ValueError: there are no pictures, or too many are unreadable.
    """
    ranks = Ranks.start(config.device)
    pictures = open_pictures(config, ranks)
    encoder = load_encoder(config.encoder, vae=config.vae, features=config.features, device=ranks.device)
    return store(config, out_dir, ranks, pictures, encoder, has_moments=has_moments)


def store(
    config: TokensConfig,
    out_dir: Path,
    ranks: Ranks,
    pictures: Pictures,
    encoder: FrozenEncoder,
    *,
    more: Mapping[str, Any] | None = None,
    has_moments: bool = False,
) -> dict[str, Any]:
    """`write_tokens` of these pictures and this encoder. more: what index.json says of them besides.

    Raises: ValueError: too many are unreadable.
    """
    torch.set_flush_denormal(True)
    about = {**about_tokens(encoder, config.dtype, config.flips), **(more or {})}
    num_bytes = encoder.num_tokens * encoder.width * DTYPES[config.dtype].itemsize * (1 + config.flips)
    size = config.shard_size or max(1, SHARD_BYTES // num_bytes)
    parts = [range(first, min(first + size, len(pictures))) for first in range(0, len(pictures), size)]
    writer = TokenWriter(out_dir, about, [pictures.describe(part) for part in parts], has_moments)
    if ranks.is_main:
        remove_leftovers(out_dir / SHARDS)
    missing = ranks.gather(writer.missing() if ranks.is_main else None)[0]
    mine = missing[ranks.rank :: ranks.world]
    num_left, num_mine = (sum(len(parts[number]) for number in some) for some in (missing, mine))
    num_seen = 0

    def say(number: int) -> None:
        nonlocal num_seen
        num_seen += number
        if ranks.is_main:  # the other processes are assumed to be equally far
            left = num_left - num_left * num_seen // num_mine if mine else 0
            progress(out_dir, len(pictures) - left, len(pictures), "pictures")

    say(0)  # marks the folder as begun with this config
    work = ShardEncoder(encoder, config, pictures)
    for number in mine:
        writer.write(number, work.encode(parts[number], say))
    ranks.wait()
    summary = ranks.gather(writer.finish(MAX_BAD_FRACTION) if ranks.is_main else None)[0]
    counts = {"num_pictures": sum(summary["shards"]), "num_skipped": len(summary["skipped"])}
    return about | counts | {"num_shards": len(parts)}


def run(config: TokensConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring."""
    return write_tokens(config, out_dir)


if __name__ == "__main__":
    main(TokensConfig, run)
