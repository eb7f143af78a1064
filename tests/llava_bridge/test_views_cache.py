"""Views of training pictures: the stage that runs the frozen side once, and what a batch takes of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import llava_bridge.any_resolution.cache as stage
from encoder.load import load_encoder
from encoder.token_store import TokenStore
from llava_bridge.any_resolution.pictures import CachedViews, LiveViews
from llava_bridge.any_resolution.views import Views
from llava_bridge.config import ViewsConfig
from llava_bridge.pictures import LivePictures

SIZES = [(128, 128), (64, 200), (70, 30), (9, 400), (64, 64)]
NAMES = [f"{i}.png" for i in range(len(SIZES))]
TILES = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    for name, size in zip(NAMES, SIZES, strict=True):
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.fromarray(draw.integers(0, 256, (64, 120, 3), dtype=np.uint8)).save(
        tmp_path / "turned.jpg", exif=turned
    )
    turns = [{"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": "a cat"}]
    records = [{"id": name, "image": name, "conversations": turns} for name in [*NAMES, "turned.jpg"]]
    (tmp_path / "records.json").write_text(json.dumps(records))
    return tmp_path


@pytest.fixture
def config(folder):
    return ViewsConfig(
        encoder="ov3-demo",
        data=str(folder),
        records=[str(folder / "records.json")],
        dtype="fp32",
        shard_size=7,
    )


@pytest.fixture
def live(folder):
    return LiveViews(LivePictures(folder, None), Views.of(TILES, 64, 4))


@pytest.mark.parametrize("holds", ["tokens", "latents"])
def test_cached_views_are_what_the_tower_makes_of_live_ones(config, folder, live, tmp_path, holds):
    result = stage.run(replace(config, holds=holds), tmp_path / "views")
    names = [*NAMES, "turned.jpg"]
    cached = CachedViews(tmp_path / "views", live.views)
    assert cached.needs_tower == (holds == "latents")
    assert result["num_pictures"] == sum(live.num_views(name) for name in names) == 5 + 4 + 3 + 4 + 3 + 3
    assert result["num_files"] == 6 and result["num_shards"] == 4  # a picture's views may lie in two
    assert [cached.num_tokens(name) for name in names] == [live.num_tokens(name) for name in names]
    found, expected = cached.inputs(names), live.inputs(names)
    assert torch.equal(found["image_sizes"], expected["image_sizes"])
    assert expected["image_sizes"].tolist() == [*map(list, SIZES), [120, 64]]
    encoder = load_encoder("ov3-demo", features="last")
    tokens = encoder.encode(expected["pixel_values"])
    held = encoder.encode_latents(found["pixel_values"]) if holds == "latents" else found["image_tokens"]
    torch.testing.assert_close(held, tokens, atol=1e-5, rtol=1e-5)  # batches of other sizes


def test_first_views_alone_are_squashed_pictures(config, live, folder, tmp_path):
    stage.run(config, tmp_path / "views")
    whole = LiveViews(live.pictures, live.views, is_whole=True)
    cached = CachedViews(tmp_path / "views", live.views, is_whole=True)
    assert whole.num_tokens("0.png") == cached.num_tokens("0.png") == 16
    inputs = whole.inputs(NAMES)
    assert inputs.keys() == {"pixel_values"} and cached.inputs(NAMES).keys() == {"image_tokens"}
    squashed = np.asarray(Image.open(folder / "1.png").resize((64, 64), Image.Resampling.BICUBIC))
    assert (inputs["pixel_values"][1].permute(1, 2, 0).mul(255).round().numpy() == squashed).all()
    encoder = load_encoder("ov3-demo", features="last")
    tokens = encoder.encode(inputs["pixel_values"])
    torch.testing.assert_close(cached.inputs(NAMES)["image_tokens"], tokens, atol=1e-5, rtol=1e-5)


def test_no_pictures_are_one_blank_view_without_a_size(config, live, tmp_path):
    stage.run(config, tmp_path / "views")
    for pictures in (live, CachedViews(tmp_path / "views", live.views)):
        inputs = pictures.inputs([])
        assert inputs["image_sizes"].shape == (0, 2)
        (views,) = (tensor for name, tensor in inputs.items() if name != "image_sizes")
        assert len(views) == 1 and (views == 0).all()


def test_broken_picture_keeps_its_number_of_views(live, folder):
    whole = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(whole[: len(whole) // 2] + whole[-20:])  # cut in the middle, the end there
    live.broken.limit = 1
    assert live.fault("0.png") is None
    inputs = live.inputs(["0.png", "4.png"])
    assert "0.png" in live.broken
    assert len(inputs["pixel_values"]) == 5 + 3
    assert (inputs["pixel_values"][:5] == 0).all() and inputs["pixel_values"][5:].std() > 0.1


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_picture_that_vanishes_on_the_way_is_a_broken_one(live, folder, is_whole):
    pictures = LiveViews(live.pictures, live.views, is_whole=is_whole)
    counted = [pictures.num_tokens(name) for name in NAMES]  # as the data are read, before the first step
    (folder / "0.png").unlink()
    pictures.broken.limit = 1
    seen = pictures.inputs(["0.png", "4.png"])["pixel_values"]
    num_views = 1 if is_whole else 5
    assert "0.png" in pictures.broken and pictures.num_tokens("0.png") == counted[0]
    assert (seen[:num_views] == 0).all() and seen[num_views:].std() > 0.1


def test_headers_are_read_once_before_the_first_step(folder, live, monkeypatch):
    (folder / "3.png").write_text("no picture")
    opened = []
    original = LivePictures.open

    def open_noted(self, name):
        opened.append(name)
        return original(self, name)

    monkeypatch.setattr(LivePictures, "open", open_noted)
    absent = {2: "not there"}
    live.read_sizes(NAMES, absent)
    assert sorted(opened) == [name for name in NAMES if name != "2.png"]
    assert absent.keys() == {2, 3} and absent[2] == "not there" and "not a picture" in absent[3]
    assert [live.size(NAMES[place]) for place in (0, 1, 4)] == [SIZES[0], SIZES[1], SIZES[4]]
    assert len(opened) == 4  # nothing is read again


def test_unreadable_pictures_are_skipped_and_named(config, folder, live, tmp_path, monkeypatch):
    monkeypatch.setattr("encoder.tokens.MAX_BAD_FRACTION", 0.5)
    (folder / "2.png").write_text("no picture")
    result = stage.run(config, tmp_path / "views")
    assert result["num_skipped"] == 3  # a view each of a picture without a size
    cached = CachedViews(tmp_path / "views", live.views)
    assert cached.fault("2.png") is not None and cached.fault("3.png") is None
    assert "2.png: not a picture" in TokenStore(tmp_path / "views").about["skipped"][0]


def test_views_of_other_tiles_or_none_are_refused(config, folder, tmp_path):
    stage.run(config, tmp_path / "views")
    with pytest.raises(ValueError, match=r"write them by llava_bridge.* with these tiles"):
        CachedViews(tmp_path / "views", Views.of(TILES[::-1], 64, 4))
    with pytest.raises(FileNotFoundError, match=r"no views in .* \(sizes.json\)"):
        CachedViews(folder, Views.of(TILES, 64, 4))
    with pytest.raises(ValueError, match="clip-demo has no VAE latents to hold; take holds=tokens"):
        stage.run(replace(config, encoder="clip-demo", holds="latents"), tmp_path / "clip")
    with pytest.raises(ValueError, match=r"tiles must be \[columns, rows\] of one or more canvases"):
        replace(config, tiles=[[1]])
    with pytest.raises(ValueError, match="of the pictures that records name"):
        replace(config, records=[])
