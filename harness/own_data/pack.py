"""Stage: a folder of one's own pictures, or of shards, as the data of the generation suite.

`python -m harness.own_data <config.yaml> <out_dir>` writes out_dir/<train|test>/*.tar (KEY.png, KEY.txt,
KEY.json), square and of one size, as Scenes does; skipped.txt names what could not be read.

A source is `<class>/<picture>`, split by a hash of each file's bytes (so copies never part), or
`<train|test>/<class>/<picture>`, or `<train|test>/*.tar` in img2dataset's layout with `label` and
`class_name` in each record. `<picture>.txt` beside a picture is its caption; without one, its class is.
"""

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder.data.account import Account
from encoder.data.captions import choose_texts
from encoder.runtime.files import replacing
from encoder.runtime.stage import progress, write_json
from harness.own_data.listing import SPLITS, Listing, list_source

if TYPE_CHECKING:
    from PIL import Image

SKIPPED = "skipped.txt"  # a JSON line for each picture that could not be read
CARD = "card.json"  # beside the splits: how many pictures of each class
_SHARD_SIZE = 1000
_PROGRESS_EVERY = 100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnDataConfig:
    """What to read and what to make of it."""

    source: str  # folder of pictures or shards
    listing: str  # a hash of its files' names and contents, so that a changed folder is read again
    image_size: int  # px; the largest square in the middle is taken, resized bicubic with antialiasing
    num_classes: int | None = None  # None: as many as there are class folders
    test_fraction: float = 0.2  # where the source has no train and test
    max_bad_fraction: float = 0.01  # of pictures that cannot be read, beyond which the stage stops

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"own_data.test_fraction {self.test_fraction} must lie between 0 and 1")
        if self.image_size < 1:
            raise ValueError(f"own_data.image_size {self.image_size} must be above 0")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"own_data.num_classes {self.num_classes} must be 1 or more")


def run(config: OwnDataConfig, out_dir: Path) -> dict:
    """Read, crop, resize, write.

    Raises:
        ValueError: too many pictures cannot be read, a class has none to train on, or there are more classes
            than said.
    """
    listing = list_source(config.source)
    total = sum(len(paths) for paths in listing.files.values())
    account = Account(config.max_bad_fraction, what="pictures", file=out_dir / SKIPPED)
    counts: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    labels: set[int] = set()  # of the train pictures
    with _Writer(out_dir, config.image_size) as writer:
        for split, key, picture, record in _samples(config, listing, account):
            writer.add(split, key, picture, record)
            counts[split][record["class_name"]] = counts[split].get(record["class_name"], 0) + 1
            labels |= {record["label"]} if split == "train" else set()
            done = writer.num_written
            if done % _PROGRESS_EVERY == 0:
                progress(out_dir, done, max(total, done), "pictures")
        account.finish()
    _check_splits(config, listing, counts, labels)
    write_json(out_dir / CARD, {"source": config.source, "counts": counts})
    totals = {split: sum(by_class.values()) for split, by_class in counts.items()}
    return {**totals, "num_classes": len(counts["train"]), "num_skipped": account.num_bad}


def _check_splits(
    config: OwnDataConfig, listing: Listing, counts: dict[str, dict[str, int]], labels: set[int]
) -> None:
    """Raises: ValueError where a split is empty, or a class has no picture to train on."""
    untaught = sorted(set(listing.class_names or counts["test"]) - set(counts["train"]))
    num_classes = config.num_classes or len(listing.class_names) or 1
    unseen = sorted(set(range(num_classes)) - labels)
    if untaught:
        what = f"class {untaught[0]} has no picture in train"
    elif unseen:
        what = (
            f"label {unseen[0]} of own_data.num_classes={num_classes} has no picture in train, "
            f"{len(labels)} labels have"
        )
    elif not counts["test"]:
        what = "test has no picture"
    else:
        return
    raise ValueError(f"{config.source}: {what}; add some or change own_data.test_fraction")


def _samples(
    config: OwnDataConfig, listing: Listing, account: Account
) -> Iterator[tuple[str, str, "Image.Image", dict[str, Any]]]:
    """(split, key, picture, record) of everything that can be read."""
    from PIL import Image  # here: the command line asks this module for a folder's classes only

    from encoder.data.pictures import decode_picture
    from encoder.data.shards import ShardReader

    for split, paths in listing.files.items():
        if listing.has_shards:
            reader = ShardReader(paths, max_bad_fraction=config.max_bad_fraction)
            for sample in reader:
                try:
                    record = _shard_record(sample.record, config.num_classes)
                except ValueError as error:
                    account.add_bad(f"{split}/{sample.key}", error)
                    continue
                account.add_good()
                yield split, sample.key, Image.fromarray(sample.pixels), record
            for bad in reader.bad:
                account.add_bad(bad.name, bad.reason)
            continue
        labels = {name: label for label, name in enumerate(listing.class_names)}
        for index, path in enumerate(paths):
            try:
                content = path.read_bytes()
                picture = decode_picture(content)
            except (OSError, ValueError) as error:
                account.add_bad(str(path), error)
                continue
            account.add_good()
            name = path.parent.name
            beside = path.with_suffix(".txt")
            caption = beside.read_text("utf-8-sig", "replace").strip() if beside.is_file() else ""
            record = {"label": labels[name], "class_name": name, "caption": caption or name}
            yield split or _split(content, config.test_fraction), f"{index:09d}", picture, record


def _shard_record(record: dict[str, Any], num_classes: int | None) -> dict[str, Any]:
    """A shard's record with its label and the name of its class.

    Raises: ValueError if one of the two cannot be used.
    """
    label = record.get("label")
    if type(label) is not int or not 0 <= label < (num_classes or 1):
        bound = f"label must be an integer below own_data.num_classes={num_classes}"
        raise ValueError(f"{bound}, got {ascii(label)[:60]}")
    name = record.get("class_name")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"class_name must be text, got {ascii(name)[:60]}")
    return {**record, "label": label, "class_name": name or str(label)}


def _split(content: bytes, test_fraction: float) -> str:
    share = int.from_bytes(hashlib.sha256(content).digest()[:6], "big") / 2**48
    return "test" if share < test_fraction else "train"


class _Writer:
    """Shards of both splits, each renamed to its name once it is whole."""

    def __init__(self, out_dir: Path, image_size: int) -> None:
        self.out_dir, self.image_size, self.num_written = out_dir, image_size, 0
        self.open: dict[str, tuple[tarfile.TarFile, ExitStack]] = {}
        self.counts = dict.fromkeys(SPLITS, 0)

    def __enter__(self) -> "_Writer":
        for split in SPLITS:
            (self.out_dir / split).mkdir(exist_ok=True)
            for old in (self.out_dir / split).glob("*.tar*"):
                old.unlink()  # of an attempt that was cut short
        return self

    def __exit__(self, *error: Any) -> None:
        for _, shard in self.open.values():
            with nullcontext() if error[0] is None else suppress(OSError):  # the first error is the reason
                shard.__exit__(*error)  # a cut shard never gets its name

    def add(self, split: str, key: str, picture: "Image.Image", record: dict[str, Any]) -> None:
        from encoder.data.tars import add_member  # here: it loads fsspec

        if split not in self.open:
            path = self.out_dir / split / f"{self.counts[split] // _SHARD_SIZE:05d}.tar"
            shard = ExitStack()
            temporary = shard.enter_context(replacing(path))
            tar = tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (closed with `shard`)
            shard.enter_context(tar)
            self.open[split] = (tar, shard)
        for suffix, data in (
            ("json", json.dumps(record).encode()),
            ("png", self._png(picture)),
            ("txt", choose_texts(record).alt.encode()),
        ):
            add_member(self.open[split][0], f"{key}.{suffix}", data)
        self.counts[split] += 1
        self.num_written += 1
        if self.counts[split] % _SHARD_SIZE == 0:
            self.open.pop(split)[1].close()

    def _png(self, picture: "Image.Image") -> bytes:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        size = (self.image_size, self.image_size)
        square = picture.resize(size, resample=3, box=(left, top, left + side, top + side))  # 3: bicubic
        buffer = io.BytesIO()
        square.save(buffer, "PNG")
        return buffer.getvalue()
