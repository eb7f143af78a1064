"""What a folder of one's own pictures or shards holds, by the names of its files alone.

`<class>/<picture>`, or `<train|test>/<class>/<picture>`, or `<train|test>/*.tar` in img2dataset's layout.
"""

import dataclasses
from pathlib import Path

from encoder.runtime.config import ROOT, ConfigError
from encoder.runtime.stage import sha256_json

SPLITS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a source holds, by name."""

    files: dict[str, list[Path]]  # split (or "" for one that is yet to be split) -> pictures or shards
    has_shards: bool
    class_names: tuple[str, ...]  # of class folders, in order of their labels; empty for shards
    digest: str
    num_bytes: int = 0

    def every_file(self) -> list[Path]:
        """Pictures or shards, and the captions beside them."""
        paths = [path for paths in self.files.values() for path in paths]
        texts = [path.with_suffix(".txt") for path in paths]
        return sorted({*paths, *(path for path in texts if path.is_file())})

    @property
    def num_pictures(self) -> int:
        """Of a folder; 0 for shards, which do not say."""
        return 0 if self.has_shards else sum(len(paths) for paths in self.files.values())


def list_source(source: str) -> Listing:
    """The pictures or shards of a folder.

    Raises:
        FileNotFoundError: no such folder.
        ConfigError: it holds neither, or a test class that train has not.
    """
    folder = ROOT / source
    if not folder.is_dir():
        raise FileNotFoundError(f"own_data.source: no such folder: {folder}")
    splits = SPLITS if all((folder / split).is_dir() for split in SPLITS) else ("",)
    shards = {split: sorted((folder / split).glob("*.tar")) for split in splits}
    has_shards = splits == SPLITS and all(shards.values())
    pictures = {split: _pictures(folder / split) for split in splits}
    files = shards if has_shards else pictures
    if not all(files.values()):
        alone = [split for split in SPLITS if (folder / split).is_dir()]
        hint = f"; {alone[0]} stands alone: a split of your own needs both names" if len(alone) == 1 else ""
        raise ConfigError(
            f"{folder} holds no pictures: expected <class>/<picture>, <train|test>/<class>/<picture> or "
            f"<train|test>/*.tar; pictures end in {', '.join(SUFFIXES)}{hint}"
        )
    names = {split: {path.parent.name for path in paths} for split, paths in pictures.items()}
    class_names = () if has_shards else tuple(sorted(names[splits[0]]))
    if not has_shards and (extra := names[splits[-1]] - set(class_names)):
        raise ConfigError(f"{folder}/test has a class that train has not: {sorted(extra)[0]}")
    every = [path for paths in files.values() for path in paths]
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in every}
    return Listing(
        files=files,
        has_shards=has_shards,
        class_names=class_names,
        digest=sha256_json(sizes),
        num_bytes=sum(sizes.values()),
    )


def _pictures(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if not path.name.startswith("."))
