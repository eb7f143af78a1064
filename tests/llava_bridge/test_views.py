"""Views of pictures of any size: against a search by hand, against transformers' own functions, and the token
counts that the recipe is known by."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextProcessor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches, unpad_image

from llava_bridge.any_resolution.views import Views

TILES = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
TOWERS = [(224, 14), (256, 16), (336, 24), (64, 4)]  # px, tokens a side


def sizes(count: int) -> list[tuple[int, int]]:
    return [tuple(each) for each in np.random.default_rng(0).integers(8, 1600, (count, 2)).tolist()]


def search(size, views) -> tuple[int, int]:
    """The best canvas, found by looking at each in turn."""
    height, width = size
    best = None
    for place, (canvas_height, canvas_width) in enumerate(views.canvases):
        scale = (
            canvas_width / width if canvas_width / width < canvas_height / height else canvas_height / height
        )
        shown = min(int(width * scale) * int(height * scale), width * height)
        rank = (-shown, canvas_height * canvas_width - shown, place)
        best = min(best or rank, rank)
    return views.canvases[best[2]]


def count_rows_and_columns(size, canvas, side, grid) -> tuple[int, int]:
    """Token rows and columns left after unpadding, in exact arithmetic."""
    height, width = size
    rows, columns = canvas[0] // side * grid, canvas[1] // side * grid
    if Fraction(width, height) > Fraction(columns, rows):
        margin = (rows - Fraction(height * columns, width).__floor__()) // 2
        return len(range(rows)[margin : rows - margin]), columns
    margin = (columns - Fraction(width * rows, height).__floor__()) // 2
    return rows, len(range(columns)[margin : columns - margin])


@pytest.mark.parametrize("side, grid", TOWERS)
def test_canvas_and_counts_are_those_of_a_search_by_hand(side, grid):
    views = Views.of(TILES, side, grid)
    for size in sizes(10_000):
        canvas = search(size, views)
        assert views.choose(size) == canvas, size
        rows, columns = count_rows_and_columns(size, canvas, side, grid)
        assert views.kept(size) == (rows, columns), size
        assert views.num_tokens(size) == grid * grid + rows * (columns + 1)
        assert views.num_views(size) == 1 + canvas[0] * canvas[1] // side**2


@pytest.mark.parametrize("side, grid", TOWERS)
def test_canvas_and_counts_are_those_of_transformers(side, grid):
    views = Views.of(TILES, side, grid)
    pinpoints = [list(canvas) for canvas in views.canvases]
    for size in sizes(10_000):
        assert views.choose(size) == select_best_resolution(size, pinpoints), size
        assert views.num_views(size) == image_size_to_num_patches(size, pinpoints, side)
        rows, columns = (length // side * grid for length in views.choose(size))
        assert views.kept(size) == unpad_image(torch.empty(1, rows, columns), size).shape[1:], size


def test_ties_follow_the_order_of_the_list_and_lie_on_small_squares_alone():
    """[1, 2] before [2, 1] takes the tall canvas, as the original code does; transformers' own default list
    begins with the wide one. The two differ where a picture fits both equally: it is square and small."""
    tall, wide = Views.of(TILES, 224, 14), Views.of([[2, 1], [1, 2], *TILES[2:]], 224, 14)
    assert tall.choose((200, 200)) == (448, 224)
    assert wide.choose((200, 200)) == (224, 448)
    differing = [size for size in sizes(10_000) if tall.choose(size) != wide.choose(size)]
    assert 50 < len(differing) < 1000  # a few of a hundred sizes
    assert all(max(size) <= 224 for size in differing)  # neither canvas makes them smaller
    swapped = [size for size in sizes(10_000) if tall.num_tokens(size) != wide.num_tokens(size)]
    assert set(swapped) <= set(differing)


@pytest.mark.parametrize(
    "grid, side, size, tokens",
    [
        (14, 224, (480, 640), 834),
        (14, 224, (640, 480), 840),
        (14, 224, (500, 500), 1008),
        (14, 224, (200, 200), 406),
        (16, 256, (480, 640), 1048),
        (16, 256, (640, 480), 1056),
        (16, 256, (500, 500), 1312),
        (16, 256, (200, 200), 528),
        (24, 336, (480, 640), 2340),
        (24, 336, (640, 480), 2352),
        (24, 336, (500, 500), 2928),
        (24, 336, (200, 200), 1176),
        (14, 224, (20, 1400), 196),  # a line: no row of its tiles is left
        (16, 256, (20, 1400), 256),
        (4, 64, (128, 128), 88),
    ],
)
def test_known_token_counts(grid, side, size, tokens):
    assert Views.of(TILES, side, grid).num_tokens(size) == tokens


@pytest.mark.parametrize(
    "size", [(480, 640), (333, 777), (20, 1400), (1400, 20), (1, 900), (64, 64), (200, 200)]
)
def test_pixels_are_those_of_transformers_pil_processor(size):
    views = Views.of(TILES, 64, 4)
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = LlavaNextImageProcessorPil(
        size={"height": 64, "width": 64},
        crop_size={"height": 64, "width": 64},  # the tiles' side, cropped or not
        do_center_crop=False,
        do_normalize=False,
        image_grid_pinpoints=[list(canvas) for canvas in views.canvases],
    )
    expected = theirs([Image.fromarray(pixels)], return_tensors="np")
    found = views.cut(Image.fromarray(pixels))
    assert found.shape == (views.num_views(size), 64, 64, 3)
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2) / 255, expected["pixel_values"][0], atol=1e-6)
    assert tuple(expected["image_sizes"][0]) == size


def test_first_view_is_the_squashed_whole_and_tiles_follow_row_by_row():
    colors = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [90, 90, 90]]], dtype=np.uint8)
    picture = Image.fromarray(colors.repeat(64, 0).repeat(64, 1))  # 128 x 128, a colour each quarter
    whole, *tiles = Views.of(TILES, 64, 4).cut(picture)
    for tile, color in zip(tiles, colors.reshape(4, 3), strict=True):
        assert (tile == color).all()
    assert (whole[[0, 0, -1, -1], [0, -1, 0, -1]] == colors.reshape(4, 3)).all()


def test_padding_is_black_and_the_odd_pixel_is_at_the_end():
    white = Image.new("RGB", (128, 43), (255, 255, 255))  # on two tiles side by side
    _, left, right = Views.of(TILES, 64, 4).cut(white)
    rows = np.concatenate([left, right], 1).min((1, 2))
    assert (rows[:10] == 0).all() and (rows[-11:] == 0).all() and (rows[10:-11] == 255).all()


def test_processor_of_transformers_counts_alike():
    views = Views.of(TILES, 64, 4)
    pinpoints = [list(canvas) for canvas in views.canvases]
    count = LlavaNextProcessor._get_number_of_features
    processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
    processor.patch_size, processor.num_additional_image_tokens = 16, 0
    processor.image_processor = LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints)
    for size in sizes(10_000):
        assert views.num_tokens(size) == count(processor, *size, 64, 64), size
