"""Stage: encode a training set once. `python -m encoder.cache <config.yaml> <out_dir>`

Writes out_dir/<split>/<shard's name>.tar: for each usable sample KEY.z_vae.safetensors (bf16; 32 KiB at
256 px), the picture as the VAE saw it, KEY.txt and KEY.json. Training reads them with `stream.latents: true`.
A shard is written under a temporary name and renamed when complete: a cache that is stopped goes on with the
next one. Several machines share a set by patterns of their own, each with its own out_dir.
"""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image

from encoder.data.batch import to_pixels
from encoder.data.options import CacheConfig, SourceConfig, StreamConfig
from encoder.data.shards import UNUSABLE, TooManyBadSamples
from encoder.data.stream import LATENTS, OpenShard, Row, decode, expand_shards
from encoder.models.vae import FrozenVAE, load_vae
from encoder.runtime.device import require_device
from encoder.runtime.stage import main, progress

SUFFIX = {"png": "PNG", "jpeg": "JPEG"}


def read_shard(url: str, config: CacheConfig, bad: list[str]) -> Iterator[tuple[str, Row]]:
    """Keys and rows of a shard in order; what cannot be used is named in `bad`."""
    how = StreamConfig(
        sources=[SourceConfig(shards=config.shards)],
        image_size=config.image_size,
        crop=config.crop,
        max_pixels=config.max_pixels,
    )
    shard, name = OpenShard(url), url.rsplit("/", 1)[-1]
    while raws := shard.take(config.batch_size):
        for raw in raws:
            try:
                yield raw["__key__"], decode(raw, how, random.Random(0))
            except UNUSABLE as error:
                bad.append(f"{name}:{raw['__key__']}: {error}")
    bad += [f"{name}:*: {each}" for each in shard.damage]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@torch.no_grad()
def write_shard(path: Path, rows: Iterator[tuple[str, Row]], vae: FrozenVAE, config: CacheConfig) -> int:
    """Write one shard of latents, atomically; returns how many samples it holds."""
    temporary, count = path.with_name(f".{path.name}.{os.getpid()}.tmp"), 0
    device = next((each.device for each in vae.parameters()), torch.device("cpu"))
    with temporary.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        while some := list(islice(rows, config.batch_size)):
            images = torch.stack([torch.from_numpy(row.pixels.copy()) for _, row in some])
            z_vae = vae.encode(to_pixels(images).to(device)).bfloat16().cpu()
            for (key, row), latents in zip(some, z_vae, strict=True):
                picture = io.BytesIO()
                Image.fromarray(row.pixels).save(picture, SUFFIX[config.picture], quality=95)
                record = {name: value for name, value in row.record.items() if name != "txt"}
                key = key.replace(".", "_")
                add(tar, f"{key}.{config.picture}", picture.getvalue())
                add(tar, f"{key}.{LATENTS}", safetensors.torch.save({"z_vae": latents.contiguous()}))
                add(tar, f"{key}.txt", row.record["txt"].encode())
                add(tar, f"{key}.json", json.dumps(record).encode())
                count += 1
        tar.close()
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return count


def cache(config: CacheConfig, out_dir: Path) -> dict:
    """Write every shard that is not there yet.

    Raises: ValueError if a picture cannot be encoded at this size; TooManyBadSamples; FileNotFoundError.
    """
    vae = load_vae(config.vae, device=require_device(config.device))
    if config.image_size % vae.downsample:
        raise ValueError(f"image_size {config.image_size} must be a multiple of the VAE's {vae.downsample}")
    folder = out_dir / config.split
    folder.mkdir(parents=True, exist_ok=True)
    shards = expand_shards(config.shards)
    num_samples, bad = 0, []
    for index, url in enumerate(shards):
        path = folder / url.rsplit("/", 1)[-1]
        if not path.is_file():
            num_samples += write_shard(path, read_shard(url, config, bad), vae, config)
        if len(bad) > config.max_bad_fraction * max(num_samples + len(bad), 1000):
            raise TooManyBadSamples(f"{len(bad)} samples are unusable, of them {'; '.join(bad[:5])}")
        progress(out_dir, index + 1, len(shards), "shards", num_samples=num_samples, bad_samples=len(bad))
    return {"num_shards": len(shards), "num_samples": num_samples, "bad_samples": bad}


if __name__ == "__main__":
    main(CacheConfig, cache)
