"""ImageNet-1k: folders of synsets, and the hub's parquet.

Source: torchvision's `datasets/imagenet.py` (train/<wnid>/<wnid>_<number>.JPEG, val/<wnid>/ILSVRC2012_val_
<number>.JPEG once the validation pictures are sorted); the hub's ILSVRC/imagenet-1k (data/<split>-*.parquet,
columns image and label). The 2012 set holds grey JPEGs, 22 in CMYK, and one PNG that is called .JPEG
(n02105855_2933): one of each is in the replica's first class. Synsets and names: timm's `data/_info`.
The published parquet names 1,000 classes in its schema, a replica its own few.
"""

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from encoder.data.scenes.scene import Split
from harness.replica import hub
from harness.replica.config import ReplicaConfig
from harness.replica.mark import README, readme
from harness.replica.pictures import draw, jpeg, png, scenes, size_of

FOLDERS, PARQUET = "imagenet", "imagenet-1k"
HUB_SPLITS = {"train": "train", "val": "validation"}
_TEXT = readme("ImageNet-1k (ILSVRC2012)", "https://www.image-net.org; hub: ILSVRC/imagenet-1k (gated)")
_File = tuple[str, int, bytes]  # name, class, content


def write(root: Path, config: ReplicaConfig) -> str:
    """The forms that `config.imagenet` names."""
    files = {split: list(_files(config, split)) for split in HUB_SPLITS}
    synsets, names = synsets_and_names(config.num_classes)
    if "folders" in config.imagenet:
        for split, of_split in files.items():
            for name, label, data in of_split:
                path = root / FOLDERS / split / synsets[label] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        (root / FOLDERS / README).write_text(_TEXT)
    if "parquet" in config.imagenet:
        from datasets import ClassLabel, Features, Image

        features = Features({"image": Image(), "label": ClassLabel(names=names)})
        rows = {
            HUB_SPLITS[split]: [
                {"image": hub.picture(data, name), "label": label} for name, label, data in of_split
            ]
            for split, of_split in files.items()
        }
        (root / PARQUET).mkdir()
        hub.write_data_set(root / PARQUET, [hub.Config("default", "data", features, rows)], _TEXT, 2)
    counts = ", ".join(f"{len(of_split)} {split}" for split, of_split in files.items())
    return f"{config.num_classes} classes, {counts} pictures as {' and '.join(config.imagenet)}"


@functools.cache
def synsets_and_names(num_classes: int) -> tuple[list[str], list[str]]:
    """ImageNet's first classes: their synsets and the words for them."""
    spec = importlib.util.find_spec("timm")  # its lists, not its code, which takes 10 s to import
    assert spec is not None and spec.origin is not None
    info = Path(spec.origin).parent / "data" / "_info"
    synsets = (info / "imagenet_synsets.txt").read_text().split()[:num_classes]
    lines = (info / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    names = dict(line.split("\t", 1) for line in lines)
    return synsets, [names[synset] for synset in synsets]


def _files(config: ReplicaConfig, split: str) -> Iterator[_File]:
    """Pictures whose main object is of the kind with the class's number, class after class."""
    num = config.train_pictures if split == "train" else config.val_pictures
    synsets, _ = synsets_and_names(config.num_classes)
    of_scenes: Split = "train" if split == "train" else "val"
    by_class: dict[int, list] = {label: [] for label in range(config.num_classes)}
    stream = scenes(config.seed, f"imagenet/{split}", of_scenes)
    while any(len(found) < num for found in by_class.values()):
        scene = next(stream)
        if scene.label in by_class and len(by_class[scene.label]) < num:
            by_class[scene.label].append(scene)
    number = 0
    for label, found in by_class.items():
        for place, scene in enumerate(found):
            number += 1
            picture = draw(scene, size_of(number))
            data = _odd(picture, place) if label == 0 else jpeg(picture)
            stem = f"{synsets[label]}_{number}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
            yield f"{stem}.JPEG", label, data


def _odd(picture: Image.Image, place: int) -> bytes:
    """The first three of a class: grey, CMYK, and a PNG in disguise."""
    if place == 0:
        return jpeg(picture.convert("L"))
    if place == 1:
        return jpeg(picture.convert("CMYK"))
    return png(picture) if place == 2 else jpeg(picture)
