"""Stage: the frozen tokens of a split, and of its mirror images, in shards; and what training reads.

`python -m rae_bridge.cache <config.yaml> <out_dir>` writes out_dir/shards/NNNNN.safetensors ("tokens" M N D
fp16; "flipped" alike; "labels" M; "mean", "squares" and "count": the shard's exact moments in float64) and
index.json. Shards that are there are kept, so an interrupted run goes on; several processes share the shards
among them. Moments merge exactly, so the statistics do not depend on how many processes wrote them.

Source: RAE encodes each picture anew at every step; both flips cached are the same data without the encoder.
"""

import bisect
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from encoder.data.batch import to_pixels
from encoder.data.shards import ShardReader, find_shards
from encoder.frozen import FrozenEncoder
from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT
from encoder.runtime.stage import main, progress, write_json
from rae_bridge.codec import load_for_generation, origin_of
from rae_bridge.config import CacheConfig
from rae_bridge.latents import LatentStatistics, StreamingMoments, TokenCache, grid_side, to_latents
from rae_bridge.ranks import Ranks

SHARDS = "shards"
MAX_BAD_FRACTION = 0.01


class Cache(Protocol):
    """What training reads of frozen tokens."""

    labels: Tensor
    origin: dict[str, str]
    side: int
    width: int
    has_flips: bool

    def latents(self, indices: Tensor, is_flipped: Tensor | None = None) -> Tensor: ...

    def statistics(self) -> LatentStatistics: ...


@dataclass(frozen=True, slots=True)
class ShardedCache:
    """Shards by this module's stage. Tokens stay on the disk; a batch reads its own rows."""

    files: list  # open safetensors files
    starts: list[int]  # number of pictures before each
    labels: Tensor  # (pictures,)
    side: int
    width: int
    has_flips: bool
    origin: dict[str, str]  # encoder, features, and the fingerprint of the two

    @staticmethod
    def load(folder: Path) -> "ShardedCache":
        """Open out_dir of this module's stage.

        Raises:
            FileNotFoundError, ValueError: it is incomplete, damaged, or some picture has no class.
        """
        about = json.loads((folder / "index.json").read_text())
        files = []
        for name in about["shards"]:
            path = folder / SHARDS / name
            if not path.is_file():
                raise FileNotFoundError(f"shard not found: {path}; run rae_bridge.cache again")
            try:
                files.append(safe_open(path, framework="pt"))
            except Exception as error:  # safetensors' own kind
                raise ValueError(
                    f"shard damaged: {path} ({str(error)[:100]}); delete it, write it again"
                ) from None
        labels = [file.get_tensor("labels") for file in files]
        starts = [0, *itertools.accumulate(len(each) for each in labels)][:-1]
        labels = torch.cat(labels)
        if labels.min() < 0:
            raise ValueError(f"{folder}: some pictures have no class; class-conditional training needs all")
        _, num_tokens, width = files[0].get_slice("tokens").get_shape()
        origin = {key: about[key] for key in ("encoder", "features", "fingerprint")}
        return ShardedCache(files, starts, labels, grid_side(num_tokens), width, about["flips"], origin)

    def latents(self, indices: Tensor, is_flipped: Tensor | None = None) -> Tensor:
        """Latents (B D h w, fp32, not normalised) of the pictures at `indices` (B,), mirrored where asked."""
        flips = [False] * len(indices) if is_flipped is None else is_flipped.tolist()
        rows = []
        for index, flip in zip(indices.tolist(), flips, strict=True):
            shard = bisect.bisect_right(self.starts, index) - 1
            row = index - self.starts[shard]
            rows.append(self.files[shard].get_slice("flipped" if flip else "tokens")[row : row + 1])
        return to_latents(torch.cat(rows).float(), self.side)

    def statistics(self) -> LatentStatistics:
        """Exact statistics over all tokens, mirrored ones too, from the shards' moments."""
        total = StreamingMoments()
        for file in self.files:
            part = StreamingMoments()
            part.count, part.mean, part.squares = (
                file.get_tensor(name) for name in ("count", "mean", "squares")
            )
            part.count = int(part.count)
            total.merge(part)
        return total.statistics()


def open_cache(folder: Path) -> Cache:
    """The tokens that `encoder.tokens` or this module's stage wrote to a folder.

    Raises:
        FileNotFoundError, ValueError: it is neither, or damaged.
    """
    return ShardedCache.load(folder) if (folder / SHARDS).is_dir() else TokenCache.load(folder)


def encode_shard(
    encoder: FrozenEncoder, images: Tensor, labels: Tensor, config: CacheConfig
) -> dict[str, Tensor]:
    """The tensors of one shard for uint8 images (M H W 3) of classes labels (M,)."""
    tensors, moments = {"labels": labels}, StreamingMoments()
    for name in ("tokens", "flipped") if config.flips else ("tokens",):
        parts = []
        for batch in images.split(config.batch_size):
            batch = batch.flip(2) if name == "flipped" else batch
            tokens = encoder.encode(to_pixels(batch.to(encoder.device))).half().cpu()
            if not torch.isfinite(tokens).all():
                raise ValueError(f"tokens of {encoder.name} overflow fp16; choose other features")
            moments.update(to_latents(tokens, encoder.grid[0]))
            parts.append(tokens)
        tensors[name] = torch.cat(parts)
    count = torch.tensor(moments.count)
    return tensors | {"mean": moments.mean, "squares": moments.squares, "count": count}


def read_shards(config: CacheConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """uint8 images (M H W 3) and classes (M,) of each shard in order."""
    reader = ShardReader(find_shards(ROOT / config.data, config.split), max_bad_fraction=MAX_BAD_FRACTION)
    samples = itertools.islice(reader, config.limit)
    while held := list(itertools.islice(samples, config.shard_size)):
        if len({sample.pixels.shape for sample in held}) > 1:
            raise ValueError(f"{config.data}: pictures of several sizes; write them in one size first")
        images = torch.stack([torch.tensor(sample.pixels) for sample in held])
        yield images, torch.tensor([int(sample.record.get("label", -1)) for sample in held])


def run(config: CacheConfig, out_dir: Path) -> dict:
    """Encode and write; see the module's docstring."""
    torch.set_flush_denormal(True)
    ranks = Ranks.start(config.device)
    encoder = load_for_generation(config.encoder, config.features, ranks.device)
    grid_side(encoder.num_tokens)
    folder = out_dir / SHARDS
    folder.mkdir(exist_ok=True)
    names, num_pictures = [], 0
    for i, (images, labels) in enumerate(read_shards(config)):
        names.append(f"{i:05d}.safetensors")
        num_pictures += len(labels)
        if i % ranks.world == ranks.rank and not (folder / names[-1]).is_file():
            checkpoint.save_tensors(folder / names[-1], encode_shard(encoder, images, labels, config))
        if ranks.is_main:
            progress(out_dir, num_pictures, config.limit or num_pictures, "pictures")
    if not names:
        raise ValueError(f"no usable picture in {config.data}/{config.split}")
    ranks.wait()
    about = origin_of(encoder) | {"flips": config.flips, "num_pictures": num_pictures}
    if ranks.is_main:
        write_json(out_dir / "index.json", {**about, "shards": names})
        ShardedCache.load(out_dir).statistics().save(out_dir / "latent_stats.pt")
    ranks.wait()
    return about | {"num_shards": len(names)}


if __name__ == "__main__":
    main(CacheConfig, run)
