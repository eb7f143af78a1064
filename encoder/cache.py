"""Stage: encode a training set once. `python -m encoder.cache <config.yaml> <out_dir>`

Writes out_dir/<split>/<shard's name>.tar: for each usable sample KEY.z_vae.safetensors (bf16; 32 KiB at
256 px), the picture as the VAE saw it, KEY.txt and KEY.json. Training reads them with `stream.latents: true`.
A shard is written under a temporary name and renamed when complete: a cache that is stopped goes on with the
next one. Processes started by torchrun or accelerate share the shards; what cannot be used is named in
out_dir/bad_samples.jsonl.
"""

from __future__ import annotations

import io
import json
import random
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image

from encoder.data.account import BAD_SAMPLES, Account
from encoder.data.batch import to_pixels
from encoder.data.options import CacheConfig, SourceConfig, StreamConfig
from encoder.data.shards import in_order, num_threads
from encoder.data.stream import LATENTS, Row, decode, expand_shards
from encoder.data.tars import KEY, OpenShard, add_member, short_name
from encoder.models.vae import FrozenVAE, load_vae
from encoder.runtime.files import replacing
from encoder.runtime.ranks import Ranks
from encoder.runtime.stage import main, progress

SUFFIX = {"png": "PNG", "jpeg": "JPEG"}


def read_shard(url: str, config: CacheConfig, account: Account) -> Iterator[tuple[str, Row]]:
    """Keys and rows of a shard in order, counted in the account.

    Raises: TooManyBadSamples; OSError: the shard is not there or cannot be read.
    """
    how = StreamConfig(
        sources=[SourceConfig(shards=config.shards)],
        image_size=config.image_size,
        crop=config.crop,
        max_pixels=config.max_pixels,
        captions=config.captions,
    )

    def decode_or_say(raw: dict[str, Any]) -> tuple[str, Row | ValueError]:
        try:
            return raw[KEY], decode(raw, how, random.Random(0))
        except ValueError as error:
            return raw[KEY], error

    shard = OpenShard(url)
    with closing(shard):
        for key, row in in_order(decode_or_say, shard, config.num_threads or num_threads()):
            if isinstance(row, Row):
                account.add_good()
                yield key, row
            else:
                account.add_bad(f"{short_name(url)}:{key}", row)
    for damage in shard.damage:
        account.add_bad(f"{short_name(url)}:*", damage)


def shard_names(urls: Sequence[str]) -> list[str]:
    """A file name for each shard: its own, or with its folders where others are called the same.

    Raises: ValueError if two shards are one.
    """
    own = Counter(map(short_name, urls))
    names = [
        short_name(url) if own[short_name(url)] == 1 else re.sub(r"[^\w.-]+", "_", url).strip("_")
        for url in urls
    ]
    if len(set(names)) < len(names):
        twice = next(url for url, name in zip(urls, names, strict=True) if names.count(name) > 1)
        raise ValueError(f"{twice} is there twice, or another shard's name differs in marks alone")
    return names


@torch.no_grad()
def write_shard(path: Path, rows: Iterator[tuple[str, Row]], vae: FrozenVAE, config: CacheConfig) -> int:
    """Write one shard of latents, atomically; returns how many samples it holds."""
    count = 0
    device = next((each.device for each in vae.parameters()), torch.device("cpu"))
    with replacing(path) as temporary, tarfile.open(temporary, "w") as tar:
        while some := list(islice(rows, config.batch_size)):
            images = torch.stack([torch.from_numpy(row.pixels.copy()) for _, row in some])
            z_vae = vae.encode(to_pixels(images).to(device)).bfloat16().cpu()
            for (key, row), latents in zip(some, z_vae, strict=True):
                picture = io.BytesIO()
                Image.fromarray(row.pixels).save(picture, SUFFIX[config.picture], quality=95)
                record = {name: value for name, value in row.record.items() if name != "txt"}
                key = key.replace(".", "_")
                add_member(tar, f"{key}.{config.picture}", picture.getvalue())
                add_member(tar, f"{key}.{LATENTS}", safetensors.torch.save({"z_vae": latents.contiguous()}))
                add_member(tar, f"{key}.txt", row.record["txt"].encode())
                add_member(tar, f"{key}.json", json.dumps(record).encode())
                count += 1
    return count


def cache(config: CacheConfig, out_dir: Path) -> dict:
    """Write every shard that is not there yet.

    Raises: ValueError if a picture cannot be encoded at this size; TooManyBadSamples; FileNotFoundError.
    """
    ranks = Ranks.start(config.device)
    vae = load_vae(config.vae, device=ranks.device)
    if config.image_size % vae.downsample:
        raise ValueError(f"image_size {config.image_size} must be a multiple of the VAE's {vae.downsample}")
    folder = out_dir / config.split
    folder.mkdir(parents=True, exist_ok=True)
    shards = expand_shards(config.shards)
    bad_file = BAD_SAMPLES if ranks.world == 1 else f"{ranks.rank}.{BAD_SAMPLES}"
    # A cache that goes on adds to the names of what was skipped before, but counts only what it still reads:
    # too little to be judged at its end
    account = Account(config.max_bad_fraction, file=out_dir / bad_file, state=Account(0).state())
    named = list(zip(shards, shard_names(shards), strict=True))
    own = named[ranks.rank :: ranks.world]
    for index, (url, name) in enumerate(own):
        if not (folder / name).is_file():
            write_shard(folder / name, read_shard(url, config, account), vae, config)
        if ranks.is_main:
            counts = {"num_samples": account.num_good, "bad_samples": account.num_bad}
            progress(out_dir, index + 1, len(own), "shards of this process", **counts)
    counts = ranks.gather((account.num_good, [str(bad) for bad in account.bad]))
    return {
        "num_shards": len(shards),
        "num_samples": sum(num_good for num_good, _ in counts),
        "bad_samples": [bad for _, each in counts for bad in each],
    }


if __name__ == "__main__":
    main(CacheConfig, cache)
