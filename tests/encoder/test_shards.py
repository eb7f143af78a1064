"""Reading shards: bad samples are counted, named and skipped, up to a limit."""

import io
import json
import tarfile
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageFile

from encoder.data.account import TooManyBadSamples
from encoder.data.shards import ShardReader, find_shards, load_images, read_samples


@pytest.fixture(autouse=True)
def strict_pillow(monkeypatch):
    """As in every stage that reads shards; importing lmms-eval makes Pillow accept cut-off pictures."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)


def picture(size=(8, 8), kind="PNG", value=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def good(value=0):
    return {"png": picture(value=value), "txt": b"a cat", "json": b'{"label": 1}'}


def write_shard(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for suffix, data in sample.items():
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


BROKEN = {
    "cut-off picture": good() | {"png": picture((64, 64), value=7)[:60]},
    "not a picture": good() | {"png": b"hello"},
    "no picture": {"txt": b"a cat", "json": b"{}"},
    "empty text": good() | {"txt": b"  "},
    "text that is not UTF-8": good() | {"txt": b"\xff\xfe\xfa"},
    "no JSON": {"png": picture(), "txt": b"a cat"},
    "JSON cut off": good() | {"json": b'{"label": '},
    "JSON that is a list": good() | {"json": b"[1]"},
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_a_bad_sample_is_counted_named_and_skipped(tmp_path, broken):
    shard = write_shard(tmp_path / "0.tar", [good(), broken, good()])
    reader = ShardReader([shard], max_bad_fraction=0.5)
    assert [sample.key for sample in reader] == ["0000", "0002"]
    assert (reader.account.num_good, reader.account.num_read) == (2, 3)
    assert [bad.name for bad in reader.bad] == ["0.tar:0001"]
    assert reader.bad[0].reason


def test_beyond_the_limit_reading_stops_and_names_the_samples(tmp_path):
    shard = write_shard(tmp_path / "0.tar", [good(), BROKEN["not a picture"], good()])
    with pytest.raises(TooManyBadSamples, match=r"1 of 3 samples .* 1.00%: 0.tar:0001"):
        list(ShardReader([shard], max_bad_fraction=0.01))


def test_the_limit_stops_a_long_read_early(tmp_path, monkeypatch):
    monkeypatch.setattr("encoder.data.account.PATIENCE", 4)
    shard = write_shard(tmp_path / "0.tar", [BROKEN["no picture"]] * 3 + [good()] * 50)
    reader = ShardReader([shard], max_bad_fraction=0.5)
    with pytest.raises(TooManyBadSamples):
        list(reader)
    assert reader.account.num_good == 0


@pytest.mark.parametrize(
    "length", [6144, 5300, 4000, 3700]
)  # after a sample, in a header, in data, in padding
def test_a_cut_off_shard_is_named_and_the_next_is_read(tmp_path, length):
    first = write_shard(tmp_path / "0.tar", [good(), good(), good()])
    first.write_bytes(first.read_bytes()[:length])
    second = write_shard(tmp_path / "1.tar", [good(9)])
    reader = ShardReader([first, second], max_bad_fraction=0.9)
    samples = list(reader)
    assert samples[-1].pixels[0, 0, 0] == 9
    assert samples[0].key == "0000"
    assert {bad.name.split(":")[0] for bad in reader.bad} == {"0.tar"}
    assert "shard" in " ".join(bad.reason for bad in reader.bad)


def test_a_picture_with_too_many_pixels_is_not_decoded(tmp_path):
    shard = write_shard(tmp_path / "0.tar", [good(), good() | {"png": picture((40, 40))}])
    reader = ShardReader([shard], max_bad_fraction=0.5, max_pixels=100)
    assert len(list(reader)) == 1
    assert "40x40" in reader.bad[0].reason


def test_member_names_outside_the_folder_are_never_extracted(tmp_path):
    path = tmp_path / "in" / "0.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for suffix, data in good().items():
            member = tarfile.TarInfo(f"../../escaped.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    list(ShardReader([path], max_bad_fraction=1.0))
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["0.tar"]


def test_grey_and_jpeg_pictures_come_as_rgb(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 100).save(buffer, "PNG")
    rest = {"txt": b"x", "json": b"{}"}
    samples = [{"png": buffer.getvalue()} | rest, {"jpg": picture(kind="JPEG")} | rest]
    shapes = [sample.pixels.shape for sample in read_samples([write_shard(tmp_path / "0.tar", samples)])]
    assert shapes == [(8, 8, 3), (8, 8, 3)]


def test_one_size_is_made_on_request_and_demanded_otherwise(tmp_path):
    write_shard(tmp_path / "train/0.tar", [good(), good() | {"png": picture((10, 6))}])
    pixels, records = load_images(tmp_path, "train", image_size=16)
    assert pixels.shape == (2, 16, 16, 3)
    assert records[0] == {"key": "0000", "label": 1, "txt": "a cat"}
    with pytest.raises(ValueError, match="image_size"):
        load_images(tmp_path, "train")


@pytest.mark.parametrize("limit", [None, 1, 64, 65, 500])
def test_pictures_are_held_once_while_they_are_read(tmp_path, limit):
    side, num = 96, 200
    colours = [(i, 255 - i, i // 2) for i in range(num)]
    for start in (0, 120):
        files = []
        for colour in colours[start : 120 if start == 0 else num]:
            buffer = io.BytesIO()
            Image.new("RGB", (side, side), colour).save(buffer, "PNG")
            files.append({"png": buffer.getvalue(), "txt": b"x", "json": b"{}"})
        write_shard(tmp_path / f"train/{start:03d}.tar", files)
    tracemalloc.start()
    pixels, records = load_images(tmp_path, "train", limit)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    expected = np.array(colours, np.uint8)[: limit or num, None, None]
    np.testing.assert_array_equal(pixels, np.broadcast_to(expected, (len(expected), side, side, 3)))
    assert len(records) == len(pixels) and pixels.flags.owndata and pixels.flags.c_contiguous
    # an eighth of room to grow, the pictures that are being decoded, and what importing and decoding takes
    assert len(pixels) < num or peak < 1.45 * pixels.nbytes


def test_text_may_stand_in_the_json_alone(tmp_path):
    record = json.dumps({"re_caption": "a large cat"}).encode()
    shard = write_shard(tmp_path / "0.tar", [{"png": picture(), "json": record}])
    assert next(read_samples([shard])).record["re_caption"] == "a large cat"


def test_missing_shards_say_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"encoder\.data\.scenes\.write"):
        find_shards(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"gone\.tar"):
        list(read_samples([tmp_path / "gone.tar"]))
