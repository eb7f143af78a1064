"""Pictures with a class, in any order: ImageNet as folders of synsets, as the hub's parquet files, or shards.

    <folder>/<split>/<class>/<picture>              labels in the order of the classes' names
    <folder>/<split>-*.parquet, <folder>/data/...   an `image` of {bytes, path} and a `label`, as on the hub
    <folder>/<split>/*.tar                          KEY.<picture> and KEY.json with `label`, or KEY.cls

Nothing is decoded before it is asked for. Letters: N pictures, S pixels on a side.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from encoder.data.captions import DEFAULT_KEYS
from encoder.data.embedded import EmbeddedPictures
from encoder.data.pictures import MAX_PIXELS, decode_picture
from encoder.data.shards import PICTURE_SUFFIXES, load_images, num_threads
from encoder.data.tars import MEMBER_NAME, OpenShard
from encoder.runtime.config import ROOT

Split = Literal["train", "val", "test"]
MAX_LABEL = 2**31 - 1  # of a class
NAMES = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}  # of folders and files
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
_AT_ONCE = 64  # pictures decoded between two copies into the whole
CACHE = ROOT / "runs" / "pictures"  # where parquet's pictures are copied once, to be read in any order


@dataclass(frozen=True, slots=True)
class PictureSet:
    """N pictures: `read(i)` gives the bytes of the i-th file, `labels` (N,) its class, `names` its name."""

    labels: Tensor
    names: Sequence[str]
    read: Callable[[int], bytes]
    class_names: tuple[str, ...]  # in order of their labels; empty where the files do not say

    def __len__(self) -> int:
        return len(self.labels)

    def images(
        self,
        indices: Sequence[int],
        size: int,
        pool: ThreadPoolExecutor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """uint8 (B S S 3): the pictures at `indices`, cut to a square of `size` px as ADM cuts ImageNet, or,
        with `places` (B 2 in [0, 1)), as `place_crop` does.

        Raises: ValueError, naming the picture that cannot be decoded.
        """
        run = pool.map if pool is not None else map
        cuts = [None] * len(indices) if places is None else places.tolist()
        return torch.from_numpy(np.stack(list(run(partial(self._square, size), indices, cuts))))

    def _square(self, size: int, index: int, place: tuple[float, float] | None) -> np.ndarray:
        try:
            picture = decode_picture(self.read(index))
            return np.asarray(
                centre_crop(picture, size) if place is None else place_crop(picture, size, place)
            )
        except ValueError as error:
            raise ValueError(f"picture {self.names[index]}: {error}") from None


def centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture at `size` px: halved by averaging while twice as large, then bicubic.

    Source: openai/guided-diffusion, image_datasets.py (center_crop_arr), which DiT, SiT and RAE copy.
    """
    if _is_line(picture, size):
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        return square.resize((size, size), Image.Resampling.BICUBIC)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize(
        (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def place_crop(picture: Image.Image, size: int, place: tuple[float, float]) -> Image.Image:
    """A square of `size` px of a picture whose shorter side is brought to 1.5 times as much (384 px for 256,
    bicubic): `place` in [0, 1) says how far down and how far right of all places at which it fits.

    Source: RAE's first stage (arXiv:2510.11690; src/train_stage1.py at a4d18c4), torchvision's Resize and
    RandomCrop.
    """
    side, short = size * 3 // 2, min(picture.size)
    if _is_line(picture, side):
        return _cut(picture, short, place).resize((size, size), Image.Resampling.BICUBIC)
    width, height = (side if each == short else int(side * each / short) for each in picture.size)
    return _cut(picture.resize((width, height), Image.Resampling.BICUBIC), size, place)


def _is_line(picture: Image.Image, size: int) -> bool:
    """Whether a picture is so long and thin that it is too large once its shorter side is `size` px."""
    side = min(picture.size)
    return side < size and size * max(picture.size) > MAX_PIXELS * side


def _cut(picture: Image.Image, size: int, place: tuple[float, float]) -> Image.Image:
    """The square of `size` px of a picture at a place in [0, 1), down and right."""
    top, left = (int(at * (room - size + 1)) for at, room in zip(place, picture.size[::-1], strict=True))
    return picture.crop((left, top, left + size, top + size))


def open_pictures(folder: Path | str, split: Split, *, cache: Path = CACHE) -> PictureSet:
    """The pictures of a split, in a fixed order; `cache` takes the copies of parquet's.

    Raises:
        FileNotFoundError: the folder holds the split in none of the three layouts.
        ValueError: a file of it is damaged, or a picture has no class.
    """
    folder = Path(folder)
    for name in NAMES[split]:
        place = folder / name
        if any(place.glob("*.tar")):
            return _from_shards(sorted(place.glob("*.tar")))
        if place.is_dir() and any(each.is_dir() for each in place.iterdir()):
            return _from_folders(place)
        for parent in (folder, folder / "data", place):
            if files := sorted(parent.glob(f"{name}-*.parquet")):
                return _from_parquet(files, cache)
    tried = ", ".join(f"{name}/<class>/, {name}-*.parquet, {name}/*.tar" for name in NAMES[split])
    raise FileNotFoundError(f"no pictures of split {split} in {folder}: it holds none of {tried}")


def _from_folders(place: Path) -> PictureSet:
    classes = sorted(each.name for each in place.iterdir() if each.is_dir())
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(each for each in (place / name).iterdir() if each.suffix.lower() in SUFFIXES)
        files += found
        labels += [label] * len(found)
    if not files:
        raise ValueError(
            f"no pictures ({', '.join(SUFFIXES)}) in the {len(classes)} class folders of {place}"
        )
    names = [f"{each.parent.name}/{each.name}" for each in files]
    return PictureSet(torch.tensor(labels), names, lambda i: files[i].read_bytes(), tuple(classes))


def _from_parquet(files: Sequence[Path], cache: Path) -> PictureSet:
    from pyarrow import parquet

    pictures, names, labels = EmbeddedPictures(cache), [], []
    for path in files:
        names += pictures.add(path)
        labels += parquet.read_table(path, columns=["label"]).column(0).to_pylist()
    missing = [i for i, name in enumerate(names) if name is None or labels[i] is None]
    if missing:
        raise ValueError(f"{files[0].parent}: row {missing[0]} has no picture or no label")
    return PictureSet(torch.tensor(labels), names, lambda i: pictures[names[i]], ())


def _from_shards(shards: Sequence[Path]) -> PictureSet:
    places, labels, names = [], [], []
    for shard in shards:
        pictures: dict[str, tuple[int, int]] = {}
        classes: dict[str, int] = {}
        for key, suffix, member, content in _members(shard):
            if suffix in PICTURE_SUFFIXES:
                pictures[key] = (member.offset_data, member.size)
            elif suffix in ("cls", "json") and key not in classes:
                classes[key] = _label(content(), suffix, f"{shard.name}:{key}")
        for key, place in pictures.items():
            if key not in classes:
                raise ValueError(f"{shard.name}:{key} has no class: no KEY.cls, no `label` in KEY.json")
            labels.append(classes[key])
            places.append((shard, *place))
            names.append(f"{shard.name}:{key}")

    def read(index: int) -> bytes:
        shard, start, size = places[index]
        with shard.open("rb") as file:
            file.seek(start)
            return file.read(size)

    return PictureSet(torch.tensor(labels), names, read, ())


def _members(shard: Path) -> Iterator[tuple[str, str, tarfile.TarInfo, Callable[[], bytes]]]:
    """Key, suffix, place and content of each member that belongs to a sample.

    Raises: ValueError: the file is no plain tar, or damaged.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                found = MEMBER_NAME.fullmatch(member.name)
                if member.isreg() and member.sparse is None and found is not None:
                    yield found[1], found[2].lower(), member, tar.extractfile(member).read
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{shard} is damaged or packed ({error}); pictures are read at any place, so it must be plain tar"
        ) from None


def _label(data: bytes, suffix: str, name: str) -> int:
    try:
        label = int(data) if suffix == "cls" else json.loads(data)["label"]
    except (ValueError, KeyError, TypeError):
        label = None
    if type(label) is not int or not 0 <= label <= MAX_LABEL:
        raise ValueError(f"{name} has no class: {re.sub(rb'[^ -~]+', b' ', data[:60]).decode()}")
    return label


def are_captioned(folder: Path, split: Split) -> bool:
    """Whether a split lies in shards of pictures with texts, as Scenes' and img2dataset's, not with classes
    alone: the first sample says it."""
    shards = sorted((folder / split).glob("*.tar"))
    if not shards:
        return False
    with closing(OpenShard(str(shards[0]))) as shard:
        first = next(iter(shard.take(1)), {})
    if "txt" in first:
        return True
    if "json" not in first:
        return "cls" not in first
    try:
        record = json.loads(first["json"])
    except ValueError:  # damaged: its reader counts it
        return True
    has_label = isinstance(record, dict) and "label" in record
    return not has_label or any(record.get(key) for key in (*DEFAULT_KEYS.alt, *DEFAULT_KEYS.dense))


def load_pictures(
    folder: Path | str, split: Split, limit: int | None = None, *, image_size: int | None = None
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The first `limit` pictures of a split in memory: uint8 (N S S 3), with key, label and class of each.

    Shards of pictures with texts are read as they are; anything else is cut to `image_size` as ADM does.

    Raises:
        FileNotFoundError: no such pictures.
        ValueError: a damaged file; or no image_size for pictures of any size.
    """
    folder = Path(folder)
    if are_captioned(folder, split):
        return load_images(folder, split, limit, image_size=image_size)
    pictures = open_pictures(folder, split)
    if image_size is None:
        raise ValueError(f"pictures of {folder} have sizes of their own: give image_size")
    indices = range(len(pictures))[:limit]
    images = np.empty((len(indices), image_size, image_size, 3), np.uint8)
    with ThreadPoolExecutor(num_threads()) as pool:
        for start in range(0, len(indices), _AT_ONCE):
            part = indices[start : start + _AT_ONCE]
            images[start : start + len(part)] = pictures.images(part, image_size, pool).numpy()
    labels = pictures.labels.tolist()
    classes = pictures.class_names
    records = [
        {"key": pictures.names[i], "label": labels[i], "class_name": classes[labels[i]] if classes else ""}
        for i in indices
    ]
    return images, records
