"""What a probe sees: the tokens of a picture, or of all its views, written before or encoded now."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import llava_bridge.any_resolution.cache as cache
from encoder.load import load_encoder
from encoder.token_store import TokenStore
from harness.probe.sight import Sight
from llava_bridge.any_resolution.views import Views
from llava_bridge.config import TILES, ViewsConfig


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("ov3-demo", features="last")


@pytest.fixture
def views_of(tmp_path):
    """The views of pictures as the stage writes them."""

    def write(images, **given):
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"{i}.png")
        records = [{"image": f"{i}.png", "conversations": []} for i in range(len(images))]
        (tmp_path / "records.json").write_text(json.dumps(records))
        config = ViewsConfig(
            encoder="ov3-demo", features="last", data=str(tmp_path), records=[str(tmp_path / "records.json")],
            batch_size=4, **given,
        )  # fmt: skip
        cache.run(config, tmp_path / "views")
        return TokenStore(tmp_path / "views")

    return write


def pictures(*shapes):
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def test_views_written_before_are_those_encoded_now(views_of, encoder):
    images = pictures(*[(128, 128)] * 3)
    store = views_of(images)
    sight = Sight.of(store, encoder, most=8)
    names, known = sight.known(store)
    assert names == ["0.png", "1.png", "2.png"] and known.shape == (3, 5 * encoder.num_tokens * encoder.width)
    assert torch.allclose(sight.encode(np.stack(images)), known, atol=0.02)  # fp16
    # by hand: the whole picture's tokens, then each tile's, one after another
    cut = Views.of(TILES, encoder.image_size, encoder.grid[0]).cut(images[1])
    by_hand = encoder.encode(torch.from_numpy(cut).permute(0, 3, 1, 2).float() / 255).flatten()
    assert torch.allclose(known[1], by_hand, atol=0.02)


def test_a_tile_shows_what_the_whole_does_not(views_of, encoder):
    """One changed pixel block moves the tokens of its own tile and of the whole, and of no other tile."""
    plain = np.full((128, 128, 3), 90, np.uint8)
    marked = plain.copy()
    marked[100:116, 100:116] = 250  # in the last of the four tiles
    store = views_of([plain, marked])
    _, known = Sight.of(store, encoder, most=8).known(store)
    moved = (known[0] - known[1]).reshape(5, -1).abs().amax(dim=1)
    assert moved[0] > 0.05 and moved[4] > 0.05 and moved[1:4].max() == 0


def test_pictures_of_several_shapes_and_latents_are_refused(views_of, encoder):
    store = views_of(pictures((128, 128), (64, 192)))
    with pytest.raises(ValueError, match="pictures of 4 and of 5 views: a probe needs pictures of one shape"):
        Sight.of(store, encoder, most=8).known(store)
    store = views_of(pictures((128, 128)), holds="latents")
    with pytest.raises(ValueError, match="holds latents; a probe reads tokens"):
        Sight.of(store, encoder, most=8)
