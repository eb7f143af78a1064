"""Stage: the frozen tokens of every picture, computed once for both bridges.

`python -m encoder.tokens <config.yaml> <out_dir>` writes tokens.safetensors ("tokens" M N D; "labels" M, -1
where there is none) and index.json (keys in the same order, the encoder's fingerprint, what was skipped).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from encoder.data.batch import to_pixels
from encoder.data.pictures import decode_picture
from encoder.data.records import picture_names
from encoder.data.shards import ShardReader, find_shards, in_order, num_threads
from encoder.frozen import FrozenEncoder
from encoder.load import load_encoder
from encoder.options import TokensConfig
from encoder.runtime.config import ROOT
from encoder.runtime.stage import main, progress, write_json

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_SAFETENSORS = {torch.float16: "F16", torch.float32: "F32"}  # its names of them
MAX_BAD_FRACTION = 0.01
Picture = tuple[str, np.ndarray, int]  # key, uint8 H W 3, label


def read_files(folder: Path, names: list[str], skipped: list[str]) -> Iterator[Picture]:
    """Pictures of one folder by name; an unreadable one goes to `skipped`.

    Raises: ValueError once more than MAX_BAD_FRACTION of all names were skipped.
    """
    for name, pixels in in_order(partial(_read_file, folder), names, num_threads()):
        if isinstance(pixels, Exception):
            skipped.append(f"{name}: {pixels}")
            if len(skipped) > MAX_BAD_FRACTION * len(names):
                named = "; ".join(skipped[:5])
                raise ValueError(f"too many unreadable pictures in {folder}: {named}")
        else:
            yield name, pixels, -1


def _read_file(folder: Path, name: str) -> tuple[str, np.ndarray | Exception]:
    """A picture's name and pixels, or why it cannot be read."""
    try:
        return name, np.array(decode_picture(folder / name))
    except (OSError, ValueError) as error:
        return name, error


def read_shards(reader: ShardReader) -> Iterator[Picture]:
    """Pictures of shards, with their class where the record has one."""
    for sample in reader:
        yield sample.key, sample.pixels, int(sample.record.get("label", -1))


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


def encode_batch(encoder: FrozenEncoder, pictures: list[Picture], dtype: torch.dtype) -> Tensor:
    """Pictures of equal size -> tokens (B N D) as `dtype`.

    Raises: ValueError if a token does not fit the type.
    """
    images = torch.as_tensor(np.stack([pixels for _, pixels, _ in pictures]))
    tokens = encoder.encode(to_pixels(images.to(encoder.device))).to(dtype).cpu()
    if not torch.isfinite(tokens).all():
        raise ValueError(f"tokens of {encoder.name} near {pictures[0][0]} overflow {dtype}; set dtype=fp32")
    return tokens


class TokenFile:
    """tokens.safetensors, written batch by batch: the tokens of 558,000 pictures fill more than a memory.

    The header comes last, into room kept for it. Used as a context: complete under its own name after
    `finish`, or nothing.
    """

    _ROOM = 1024  # bytes of the header: its length (8 bytes) and JSON, which may end in spaces

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.shape, self.dtype = (), torch.float16  # of a picture's tokens: N D

    def __enter__(self) -> TokenFile:
        self.file = self.temporary.open("wb")
        self.file.seek(self._ROOM)
        return self

    def add(self, tokens: Tensor) -> None:
        """Append the tokens (B N D) of the next pictures.

        Raises: ValueError if they are not as many, as wide and of the type of those before.
        """
        if self.shape not in ((), tuple(tokens.shape[1:])):
            raise ValueError(f"tokens of a picture are {tuple(tokens.shape[1:])}, before {self.shape}")
        self.shape, self.dtype = tuple(tokens.shape[1:]), tokens.dtype
        self.file.write(tokens.contiguous().numpy().tobytes())

    def finish(self, labels: list[int]) -> None:
        """Append a label for each picture, write the header, and give the file its name."""
        end = self.file.tell() - self._ROOM
        gap, num_bytes = -end % 8, 8 * len(labels)  # labels are int64 and start at a multiple of 8
        self.file.write(bytes(gap) + np.array(labels, "<i8").tobytes())
        about = {
            "tokens": {
                "dtype": _SAFETENSORS[self.dtype],
                "shape": [len(labels), *self.shape],
                "data_offsets": [0, end],
            },
            "labels": {
                "dtype": "I64",
                "shape": [len(labels)],
                "data_offsets": [end + gap, end + gap + num_bytes],
            },
        }
        if gap:  # safetensors allows no byte that belongs to nothing
            about["padding"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
        header = json.dumps(about).encode().ljust(self._ROOM - 8)
        self.file.seek(0)
        self.file.write(len(header).to_bytes(8, "little") + header)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.temporary.replace(self.path)

    def __exit__(self, *_error: object) -> None:
        self.file.close()
        self.temporary.unlink(missing_ok=True)


def run(config: TokensConfig, out_dir: Path) -> dict:
    """Encode, write, and return the counts."""
    torch.set_flush_denormal(True)
    encoder = load_encoder(config.encoder, vae=config.vae, features=config.features, device=config.device)
    skipped: list[str] = []
    reader = None
    if config.records:
        names = picture_names([ROOT / path for path in config.records])[: config.limit]
        pictures, total = read_files(ROOT / config.data, names, skipped), len(names)
    else:
        reader = ShardReader(find_shards(ROOT / config.data, config.split), max_bad_fraction=MAX_BAD_FRACTION)
        pictures, total = read_shards(reader), config.limit or 0
    keys: list[str] = []
    labels: list[int] = []
    with TokenFile(out_dir / "tokens.safetensors") as file:
        for batch in batches(pictures, config.batch_size):
            if config.limit is not None:
                batch = batch[: config.limit - len(keys)]
            keys += [key for key, _, _ in batch]
            labels += [label for _, _, label in batch]
            file.add(encode_batch(encoder, batch, DTYPES[config.dtype]))
            progress(out_dir, len(keys), max(total, len(keys)), "pictures")
            if len(keys) == config.limit:
                break
        if not keys:
            raise ValueError(f"no usable picture in {config.data}")
        file.finish(labels)
    skipped += [str(bad) for bad in reader.bad] if reader else []
    about = {
        "encoder": encoder.name, "fingerprint": encoder.fingerprint, "features": encoder.features,
        "grid": list(encoder.grid), "width": encoder.width, "can_decode": encoder.can_decode,
    }  # fmt: skip
    write_json(out_dir / "index.json", {**about, "skipped": skipped, "keys": keys})
    return {**about, "num_pictures": len(keys), "num_skipped": len(skipped)}


if __name__ == "__main__":
    main(TokensConfig, run)
