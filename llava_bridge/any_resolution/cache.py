"""Stage: the frozen side of LLaVA-NeXT, once for every view of the training pictures.

`python -m llava_bridge.any_resolution.cache <config.yaml> <out_dir>` writes a folder that
`encoder.token_store` reads, a row for each view, and sizes.json: {picture: [height, width]}. Several
processes share the work, as in `encoder.tokens`. A row holds the tower's tokens or, of an OpenVision 3, the
VAE's latents (C h w as h w tokens of width C), a fifteenth as large at the paper's B/16.
"""

import bisect
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from encoder.data.account import BadSample
from encoder.data.pictures import open_header, upright_size
from encoder.data.roots import find_picture
from encoder.data.shards import in_order, num_threads
from encoder.frozen import FrozenEncoder
from encoder.load import load_encoder
from encoder.runtime.config import ROOT
from encoder.runtime.distributed import from_first, process_number
from encoder.runtime.ranks import Ranks
from encoder.runtime.stage import main, sha256_json, write_json
from encoder.tokens import FilePictures, Picture, store
from llava_bridge.any_resolution.views import Size, Views
from llava_bridge.config import ViewsConfig

SIZES = "sizes.json"
_UNREADABLE = (1, 1)  # the size of a picture without a header; it is named when its turn comes


def view_key(name: str, view: int) -> str:
    """The key of a picture's view in the folder."""
    return f"{name}#{view}"


class ViewPictures:
    """The views of picture files, one after another, as `encoder.tokens` reads pictures. The first process
    reads the pictures' sizes, for all."""

    def __init__(self, files: FilePictures, views: Views):
        self.files, self.views = files, views
        found = list(in_order(self._size, files.names, num_threads())) if process_number() == 0 else None
        self.sizes = from_first(found)
        counts = [views.num_views(size) for size in self.sizes]
        self.starts = [0, *itertools.accumulate(counts)]

    def _size(self, name: str) -> Size:
        try:
            path = find_picture(name, [self.files.root], allow_outside_root=self.files.allow_outside_root)
            with path.open("rb") as file, open_header(file) as picture:
                return upright_size(picture)
        except Exception:  # of any kind: PIL's readers raise whatever the bytes make them
            return _UNREADABLE

    def __len__(self) -> int:
        return self.starts[-1]

    def describe(self, part: range) -> str:
        """A hash of the pictures' names and sizes, and of which views they are."""
        pictures = self._pictures(part)
        named = [(self.files.names[i], self.sizes[i]) for i in pictures]
        return sha256_json([self.files.allow_outside_root, named, part.start - self.starts[pictures.start]])

    def read(self, part: range) -> Iterator[Picture | BadSample]:
        """The views of a part in order; of a picture that cannot be read its name, once for each view."""
        pictures = self._pictures(part)
        found = self.files.read(pictures)
        refused = list(itertools.islice(found, len(self.files.refused) if pictures.start == 0 else 0))
        yield from refused if part.start == 0 else []
        for place, picture in zip(pictures, found, strict=True):
            wanted = range(max(part.start, self.starts[place]), min(part.stop, self.starts[place + 1]))
            yield from self._views(place, picture, [row - self.starts[place] for row in wanted])

    def _views(
        self, place: int, picture: Picture | BadSample, wanted: list[int]
    ) -> Iterator[Picture | BadSample]:
        if not isinstance(picture, BadSample) and picture[1].shape[:2] != self.sizes[place]:
            picture = BadSample(picture[0], "its header gives another size than it has")
        if isinstance(picture, BadSample):
            yield from itertools.repeat(picture, len(wanted))
            return
        name, pixels, label = picture
        cut = self.views.cut(pixels)
        yield from ((view_key(name, view), cut[view], label) for view in wanted)

    def _pictures(self, part: range) -> range:
        """The pictures that a part has views of."""
        first = bisect.bisect_right(self.starts, part.start) - 1
        return range(first, bisect.bisect_left(self.starts, part.stop))


class LatentEncoder:
    """An OpenVision 3's VAE, as `encoder.tokens` asks an encoder: latents as h w tokens of width C.

    Raises: ValueError: the encoder is another, or has no VAE.
    """

    can_decode = False

    def __init__(self, encoder: FrozenEncoder):
        if not hasattr(encoder, "encode_latents"):
            raise ValueError(f"{encoder.name} has no VAE latents to hold; take holds=tokens")
        self.encoder = encoder
        self.name, self.features = encoder.name, encoder.features
        self.fingerprint, self.device = encoder.fingerprint, encoder.device
        size = encoder.image_size
        example = encoder.latents(torch.zeros(1, 3, size, size, device=encoder.device))
        _, self.width, *grid = example.shape
        self.grid, self.num_tokens = tuple(grid), grid[0] * grid[1]

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (B 3 H W in [0, 1]) -> B (h w) C."""
        return rearrange(self.encoder.latents(pixels), "B C h w -> B (h w) C")


def run(config: ViewsConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring."""
    ranks = Ranks.start(config.device)
    encoder = load_encoder(config.encoder, vae=config.vae, features=config.features, device=ranks.device)
    views = Views.for_tower(config.tiles, encoder.image_size, encoder.grid, encoder.name)
    records, outside = [ROOT / path for path in config.records], config.allow_outside_root
    files = FilePictures(ROOT / config.data, records, config.limit, allow_outside_root=outside)
    if not len(files):
        raise ValueError(f"no picture in {', '.join(config.records)}")
    pictures = ViewPictures(files, views)
    if ranks.is_main:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_json(out_dir / SIZES, dict(zip(files.names, pictures.sizes, strict=True)))
    held = LatentEncoder(encoder) if config.holds == "latents" else encoder
    more = {"holds": config.holds, "views": [views.side, views.grid, *map(list, views.canvases)]}
    result = store(config, out_dir, ranks, pictures, held, more=more)
    return result | {"num_files": len(files)}


def read_sizes(folder: Path) -> dict[str, Size]:
    """The (height, width) of each picture that a folder of views holds.

    Raises: FileNotFoundError: the folder holds no views.
    """
    if not (folder / SIZES).is_file():
        raise FileNotFoundError(
            f"no views in {folder} ({SIZES}); write them by llava_bridge.any_resolution.cache"
        )
    return {name: tuple(size) for name, size in json.loads((folder / SIZES).read_text()).items()}


if __name__ == "__main__":
    main(ViewsConfig, run)
