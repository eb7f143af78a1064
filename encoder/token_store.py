"""Frozen tokens on disk, for both bridges: shards that many processes write and that are mapped when read.

A folder holds `index.json` and one shard, `tokens.safetensors`, or several, `shards/NNNNN.safetensors`:

- index.json: whose tokens these are (encoder, features, fingerprint, grid, width, can_decode, dtype, flips),
  `keys` of the pictures in order, `shards` with the number of pictures in each, and what was `skipped`.
- a shard: "tokens" M N D (fp16 or fp32), "flipped" alike (the tokens of the mirror images), "labels" M
  (int64; -1 where a picture has no class), and, if the writer wants them, the exact moments of its tokens,
  mirrored ones too: "count", "mean" N D, "squares" N D, in float64. Its metadata hold its own keys, what was
  skipped, and what it was made of: a run that goes on keeps exactly the shards that are its own.

Letters: M pictures of a shard, B pictures of a batch, N tokens a picture, D width of a token.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from encoder.data.account import Account, BadSample
from encoder.runtime.checkpoint import save_tensors
from encoder.runtime.stage import DONE, write_json

INDEX, WHOLE_FILE, SHARDS = "index.json", "tokens.safetensors", "shards"
NO_CLASS = -1  # the label of a picture without one
_ORIGIN = ("encoder", "features", "fingerprint")
_CONTENTS = "contents"  # the name of a shard's metadata; one alone, as several have no fixed order
_CHUNK = 256  # pictures whose tokens are held in float64 at a time


class StreamingMoments:
    """Exact mean and variance of a stream of batches, in float64, whatever the batch sizes.

    Accumulators of separate streams (processes, shards) merge. Source: Chan, Golub and LeVeque, 1983.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())  # sum of squared deviations from the mean

    def update(self, batch: Tensor) -> None:
        """Take in a batch (B ...)."""
        batch = batch.double()
        one = StreamingMoments()
        one.count, one.mean = len(batch), batch.mean(dim=0)
        one.squares = (batch - one.mean).square().sum(dim=0)
        self.merge(one)

    def merge(self, other: StreamingMoments) -> None:
        """Take in all that another accumulator has seen."""
        if other.count == 0:
            return
        total = self.count + other.count
        difference = other.mean - self.mean
        self.squares = self.squares + other.squares + difference.square() * (self.count * other.count / total)
        self.mean = self.mean + difference * (other.count / total)
        self.count = total


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What goes into one shard: M pictures, in order."""

    keys: Sequence[str]
    tokens: Tensor  # M N D
    flipped: Tensor | None  # M N D
    labels: Tensor  # M, int64
    skipped: Sequence[BadSample] = ()  # pictures that could not be read


@dataclass(frozen=True, slots=True)
class TokenWriter:
    """Writes a folder of tokens shard by shard; processes may write different shards at the same time.

    about: what index.json says of the tokens. sources: for each shard, what it is made of.
    """

    folder: Path
    about: Mapping[str, Any]
    sources: Sequence[str]
    has_moments: bool = False

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / _file_name(number, len(self.sources))

    def missing(self) -> list[int]:
        """The shards that are not there, not whole, or made of other pictures or by another encoder."""
        return [number for number in range(len(self.sources)) if not self._has(number)]

    def _has(self, number: int) -> bool:
        try:
            contents = _Shard.open(self.path(number)).contents
        except (FileNotFoundError, ValueError):
            return False
        return contents.get("about") == self._identity(number)

    def _identity(self, number: int) -> dict[str, Any]:
        return {**self.about, "source": self.sources[number], "moments": self.has_moments}

    def write(self, number: int, encoded: Encoded) -> None:
        """Write a shard, atomically."""
        tensors = {"tokens": encoded.tokens, "labels": encoded.labels}
        if encoded.flipped is not None:
            tensors["flipped"] = encoded.flipped
        if self.has_moments:
            moments = _moments(encoded.tokens, encoded.flipped)
            tensors |= {"mean": moments.mean, "squares": moments.squares}
            tensors["count"] = torch.tensor(moments.count, dtype=torch.float64)
        self.path(number).parent.mkdir(exist_ok=True)
        skipped = [[bad.name, bad.reason] for bad in encoded.skipped]
        contents = {"keys": list(encoded.keys), "skipped": skipped, "about": self._identity(number)}
        save_tensors(self.path(number), tensors, {_CONTENTS: contents})

    def finish(self, max_bad_fraction: float) -> dict[str, Any]:
        """Write index.json, once every shard is there; returns what it says, without the keys.

        Raises:
            FileNotFoundError, ValueError: a shard is missing or damaged, or too many pictures were skipped.
        """
        keys, skipped, counts = [], [], []
        for number in range(len(self.sources)):
            contents = _Shard.open(self.path(number)).contents
            keys += contents["keys"]
            skipped += contents["skipped"]
            counts.append(len(contents["keys"]))
        state = {"num_good": len(keys), "num_bad": len(skipped), "first": skipped}
        Account(max_bad_fraction, what="pictures", state=state).finish()
        named = [str(BadSample(*each)) for each in skipped]
        summary = {**self.about, "shards": counts, "skipped": named}
        write_json(self.folder / INDEX, {**summary, "keys": keys})
        return summary


class TokenStore:
    """The tokens of a folder. Opening maps every shard and reads none: a batch reads its own rows from the
    disk, and processes of one machine share what the system keeps in memory.
    """

    def __init__(self, folder: Path):
        """Raises: FileNotFoundError, ValueError: a file is missing or damaged, or two do not fit together."""
        self.folder = folder
        self.about, self.keys = _read_index(folder)
        counts = self.about["shards"]
        self.shards = [_Shard.open(folder / _file_name(i, len(counts))) for i in range(len(counts))]
        for shard, count in zip(self.shards, counts, strict=True):
            shard.check(count, self.shards[0].tokens)
        self.ends = torch.tensor(list(itertools.accumulate(counts)))  # number of pictures up to each
        self.has_flips = all(shard.flipped is not None for shard in self.shards)
        # each shard's tensor of the pictures as they are, and of their mirror images
        self._sides = [[shard.tokens for shard in self.shards], [shard.flipped for shard in self.shards]]
        self.num_tokens, self.width = self.shards[0].tokens.shape[1:]

    def __reduce__(self) -> tuple:
        """Another process maps the files anew instead of receiving what is in them."""
        return TokenStore, (self.folder,)

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Tensor:
        """The tokens (N D) of a picture by its key."""
        return self.named([key])[0]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.keys)}

    @cached_property
    def labels(self) -> Tensor:
        """The pictures' classes, int64 (pictures,); -1 where there is none."""
        return torch.cat([shard.labels for shard in self.shards])

    @property
    def origin(self) -> dict[str, str]:
        """Encoder, features, and the fingerprint of the two."""
        return {key: self.about[key] for key in _ORIGIN}

    def named(self, keys: Sequence[str]) -> Tensor:
        """The tokens (B N D) of pictures by their keys."""
        return self.rows(torch.tensor([self._places[key] for key in keys], dtype=torch.long))

    def rows(self, indices: Tensor, is_flipped: Tensor | None = None) -> Tensor:
        """The tokens (B N D, as stored) of the pictures at `indices` (B,), of the mirror image where asked.

        Raises:
            IndexError: an index is beyond the last picture.
            ValueError: mirror images are asked for and there are none.
        """
        if is_flipped is not None and not self.has_flips:
            raise ValueError(f"{self.folder} holds no mirror images; rae_bridge.cache writes them")
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= len(self)):
            raise IndexError(
                f"{self.folder} holds {len(self)} pictures, wanted {indices.min()} to {indices.max()}"
            )
        if len(self.shards) == 1 and is_flipped is None:
            return self.shards[0].tokens[indices]
        if not len(indices):
            return self.shards[0].tokens[:0]
        places = torch.bucketize(indices, self.ends, right=True)
        rows = indices - torch.cat([torch.zeros(1, dtype=torch.long), self.ends])[places]
        flips = [False] * len(indices) if is_flipped is None else is_flipped.tolist()
        found = zip(places.tolist(), rows.tolist(), flips, strict=True)
        return torch.stack([self._sides[flip][place][row] for place, row, flip in found])

    def moments(self) -> StreamingMoments:
        """The exact moments of all tokens (N D), mirrored ones too: as the shards hold them, else counted."""
        total = StreamingMoments()
        for shard in self.shards:
            total.merge(shard.moments or _moments(shard.tokens, shard.flipped))
        return total


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard's file, mapped."""

    path: Path
    tokens: Tensor
    flipped: Tensor | None
    labels: Tensor
    moments: StreamingMoments | None
    metadata: str  # JSON of what it holds and what it was made of

    @property
    def contents(self) -> dict[str, Any]:
        return json.loads(self.metadata)

    @staticmethod
    def open(path: Path) -> _Shard:
        """Map a file.

        Raises: FileNotFoundError, ValueError: it is missing or damaged.
        """
        folder = path.parent.parent if path.parent.name == SHARDS else path.parent
        remedy = f"delete {folder / DONE} and run its stage again: whole shards are kept"
        if not path.is_file():
            raise FileNotFoundError(f"shard not found: {path}; {remedy}")
        try:
            with safe_open(path, framework="pt") as file:
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                contents = (file.metadata() or {}).get(_CONTENTS, "{}")
            tokens = held["tokens"]
            labels = held.get("labels", torch.full((len(tokens),), NO_CLASS))
        except Exception as error:  # safetensors has kinds of its own, which are not importable everywhere
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            raise ValueError(f"shard damaged: {path} ({reason}); {remedy}") from None
        moments = None
        if "count" in held:
            moments = StreamingMoments()
            moments.count = int(held["count"])
            moments.mean, moments.squares = held["mean"], held["squares"]
        return _Shard(path, tokens, held.get("flipped"), labels.long(), moments, contents)

    def check(self, count: int, first: Tensor) -> None:
        """Raises: ValueError if the shard does not hold `count` pictures of the first shard's kind."""
        tokens = self.tokens
        wanted = (count, *first.shape[1:])
        if tokens.shape != wanted or tokens.dtype != first.dtype or len(self.labels) != count:
            raise ValueError(
                f"{self.path} holds tokens {tuple(tokens.shape)} {tokens.dtype} and {len(self.labels)} "
                f"labels, expected {wanted} {first.dtype} by {INDEX}; delete the folder and write it anew"
            )


def _file_name(number: int, num_shards: int) -> str:
    return WHOLE_FILE if num_shards == 1 else f"{SHARDS}/{number:05d}.safetensors"


def _read_index(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What index.json says, and the keys. Folders that were written before there were shards have one."""
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"no tokens in {folder} ({INDEX}); run encoder.tokens or rae_bridge.cache")
    try:
        about = json.loads(path.read_text())
        keys = about.pop("keys")
        num_held = sum(about.setdefault("shards", [len(keys)]))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0][:120]
        raise ValueError(f"{path} is not an index of tokens ({reason}); write the folder anew") from None
    if num_held != len(keys):
        raise ValueError(f"{path} names {len(keys)} pictures, its shards hold {num_held}")
    return about, keys


def _moments(tokens: Tensor, flipped: Tensor | None) -> StreamingMoments:
    moments = StreamingMoments()
    for part in (tokens, flipped) if flipped is not None else (tokens,):
        for chunk in part.split(_CHUNK):
            moments.update(chunk)
    return moments
