"""Which views of a picture the frozen tower sees, and how many tokens of them the language model sees.

A picture is fitted into one of a few canvases, each a whole number of tiles, and seen `1 + rows x columns`
times: first the whole picture squashed to one tile, then the canvas's tiles in row-major order.

Sizes and canvases are (height, width), as in transformers; only `tiles` in configs are (columns, rows), as
both public recipes write them. Letters: V views, S side of a tile in pixels, g tokens along it.
Source: LLaVA-VL/LLaVA-NeXT@df17966, llava/mm_utils.py (select_best_resolution, resize_and_pad_image,
process_anyres_image) and llava/model/llava_arch.py (unpad_image); own code.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Size = tuple[int, int]  # height, width


@dataclass(frozen=True, slots=True)
class Views:
    """How pictures become views: of `side` px and `grid` x `grid` tokens each, on one of `canvases` (px).

    Of canvases that fit a picture equally well the first is taken, so their order is part of a recipe.
    """

    side: int
    grid: int
    canvases: tuple[Size, ...]

    @classmethod
    def of(cls, tiles: Sequence[Sequence[int]], side: int, grid: int) -> "Views":
        """tiles: [columns, rows] of each canvas, whatever the tower's size."""
        return cls(side, grid, tuple((rows * side, columns * side) for columns, rows in tiles))

    @classmethod
    def for_tower(
        cls, tiles: Sequence[Sequence[int]], side: int, grid: tuple[int, int], source: str
    ) -> "Views":
        """Those for a tower of `side` px whose tokens are `grid` (rows, columns).

        Raises:
            ValueError: no square grid, so that tiles cannot be laid side by side, or one that does not divide
                the side.
        """
        if grid[0] != grid[1]:
            raise ValueError(
                f"llava_next lays tiles' tokens side by side, and the grid of '{source}' is {grid[0]} x "
                f"{grid[1]}, not square; use framework=llava_1_5"
            )
        if side // (side // grid[0]) != grid[0]:
            raise ValueError(
                f"llava_next: transformers counts {side // (side // grid[0])} tokens along {side} px of "
                f"'{source}', which has {grid[0]}; give it an image_size that {grid[0]} divides"
            )
        return cls.of(tiles, side, grid[0])

    def choose(self, size: Size) -> Size:
        """The canvas that shows most pixels of a picture, then the one that wastes fewest."""
        height, width = size

        def fit(canvas: Size) -> tuple[int, int]:
            scale = min(canvas[1] / width, canvas[0] / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            return shown, shown - canvas[0] * canvas[1]

        return max(self.canvases, key=fit)  # the first of equals

    def num_views(self, size: Size) -> int:
        """The whole picture and its tiles."""
        height, width = self.choose(size)
        return 1 + (height // self.side) * (width // self.side)

    def kept(self, size: Size) -> tuple[int, int]:
        """Rows and columns of the tiles' token map once what lies over padding alone is cut off; no rows or
        no columns for a picture that is hardly more than a line. An odd remainder leaves one of padding in.
        """
        height, width = size
        rows, columns = (length // self.side * self.grid for length in self.choose(size))
        # rounded like transformers, whose quotients would else fall just below a whole number
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        return rows, columns

    def num_tokens(self, size: Size) -> int:
        """Tokens of a picture for the language model: g x g of the whole, then each row of the tiles' map and
        one newline at its end."""
        rows, columns = self.kept(size)
        return self.grid**2 + rows * (columns + 1)

    def cut(self, picture: Image.Image | np.ndarray) -> np.ndarray:
        """An RGB picture's views, uint8 V S S 3. The whole loses the picture's shape; the canvas keeps it,
        with black around it. Bicubic, as PIL does it."""
        picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        canvas = self.choose((picture.height, picture.width))
        padded = np.asarray(_fit(picture, canvas))
        rows, columns = canvas[0] // self.side, canvas[1] // self.side
        tiles = padded.reshape(rows, self.side, columns, self.side, 3).swapaxes(1, 2)
        return np.concatenate([self.whole(picture), tiles.reshape(-1, self.side, self.side, 3)])

    def whole(self, picture: Image.Image) -> np.ndarray:
        """The first view alone, uint8 1 S S 3."""
        return np.asarray(picture.resize((self.side, self.side), Image.Resampling.BICUBIC))[None]


def _fit(picture: Image.Image, canvas: Size) -> Image.Image:
    """The picture as large as fits, in the middle of a black canvas; an odd pixel more at its end."""
    height, width = canvas
    across, along = width / picture.width, height / picture.height
    if across < along:
        inner = width, min(math.ceil(picture.height * across), height)
    else:
        inner = min(math.ceil(picture.width * along), width), height
    padded = Image.new("RGB", (width, height))
    corner = (width - inner[0]) // 2, (height - inner[1]) // 2
    padded.paste(picture.resize(inner, Image.Resampling.BICUBIC), corner)
    return padded
