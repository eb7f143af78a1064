"""The one reader of tar shards: nothing is lost in silence, whatever the bytes; the account adds up."""

import io
import json
import random
import tarfile

import numpy as np
import pytest
from PIL import Image

from encoder.data.captions import choose_texts
from encoder.data.options import StreamConfig
from encoder.data.shards import ShardReader
from encoder.data.stream import Lane, find_stream_shards
from encoder.data.tars import OpenShard, Unreachable
from encoder.runtime.config import load


def picture(value=0, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def good(value=0):
    return {"png": picture(value), "txt": b"a cat", "json": b'{"label": 1}'}


def tar_of(members, kind="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=kind) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def shard_of(samples):
    return tar_of(
        (f"{i:04d}.{suffix}", data) for i, each in enumerate(samples) for suffix, data in each.items()
    )


def read(tmp_path, content, **options):
    """(keys that were read, the reader)"""
    (tmp_path / "0.tar").write_bytes(content)
    reader = ShardReader([tmp_path / "0.tar"], **({"max_bad_fraction": 1.0} | options))
    keys = [sample.key for sample in reader]
    assert reader.account.num_good == len(keys)
    assert reader.account.num_read == len(keys) + len(reader.bad)
    return keys, reader


def test_a_cut_inside_a_sample_names_it_once_and_never_calls_it_another_fault(tmp_path):
    whole = shard_of([good(), good()])
    keys, reader = read(tmp_path, whole[: 512 * 9])  # the last member's header is there, its content is not
    assert keys == ["0000"]
    assert [str(bad) for bad in reader.bad] == [
        "0.tar:*: shard damaged in 0001.txt (unexpected end of data): what follows is lost"
    ]


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:bz2"])
def test_whole_shards_have_no_damage_packed_or_not(tmp_path, kind):
    content = tar_of([("a/0.png", picture()), ("a/0.json", b"{}"), ("a/0.txt", b"x"), ("README", b"y")], kind)
    keys, reader = read(tmp_path, content)
    assert keys == ["a/0"] and not reader.bad


def test_a_garbled_header_is_damage_and_no_quiet_end(tmp_path):
    content = bytearray(shard_of([good(), good(), good()]))
    content[6 * 512 : 7 * 512] = bytes(range(256)) * 2  # of the second sample's first member
    keys, reader = read(tmp_path, bytes(content))
    assert keys == ["0000"]
    assert "cut off or damaged after 0000.json" in reader.bad[0].reason


def test_a_member_over_the_limit_costs_its_sample_alone(tmp_path):
    content = shard_of([good(), good() | {"png": bytes(5000)}, good()])
    (tmp_path / "0.tar").write_bytes(content)
    raws = list(OpenShard(str(tmp_path / "0.tar"), max_member_bytes=4999))
    assert [raw["__key__"] for raw in raws] == ["0000", "0001", "0002"]
    assert raws[1]["__problem__"] == "0001.png has 5000 bytes; allowed are 4999" and "png" not in raws[1]


def test_a_member_that_claims_a_size_beyond_the_file_ends_the_reading(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("0000.png")
        member.size = 10**12
        tar.fileobj.write(member.tobuf())
    keys, reader = read(tmp_path, buffer.getvalue())
    assert keys == [] and "shard damaged in 0000.png" in reader.bad[0].reason


def test_a_suffix_twice_is_said_and_equal_names_apart_are_two_samples(tmp_path):
    twice = [("a.png", picture()), ("a.png", picture()), ("a.json", b"{}"), ("a.txt", b"x")]
    apart = [("b.png", picture()), ("b.txt", b"x"), ("b.json", b"{}"), ("c.png", b"")]
    keys, reader = read(tmp_path, tar_of([*twice, *apart, *apart[:3]]))
    assert keys == ["b", "b"]
    assert str(reader.bad[0]) == "0.tar:a: a.png is there twice"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (["photo.v2.jpg", "photo.v2.json"], ["no JSON", "v2.jpg, v2.json", "ends at the first dot"]),
        (["0001.jpg", "0001.txt"], ["no JSON", "has jpg, txt"]),
        (["0001.json", "0001.txt", "0001.mp4"], ["no picture", "json, txt, mp4"]),
    ],
)
def test_what_a_sample_lacks_is_said_with_what_it_has(tmp_path, members, words):
    contents = {"json": b"{}", "jpg": picture(kind="JPEG"), "txt": b"x", "mp4": b""}
    _, reader = read(tmp_path, tar_of((name, contents[name.rsplit(".", 1)[1]]) for name in members))
    assert len(reader.bad) == 1
    for word in words:
        assert word in reader.bad[0].reason
    assert ("first dot" in reader.bad[0].reason) == ("v2" in members[0])


TEXTS = {
    "caption": ({"caption": "a red ball"}, "a red ball"),
    "a list of one": ({"re_caption": ["a ball."]}, "a ball."),
    "a BOM": (b"\xef\xbb\xbf" + b'{"caption": "a cup"}', "a cup"),
    "UTF-16": ('{"caption": "a cup"}'.encode("utf-16"), "a cup"),
    "NaN is none": (b'{"caption": NaN, "re_caption": "a dog"}', "a dog"),
    "null and blanks are none": ({"org_caption": None, "caption": " ", "re_caption": " a dog "}, "a dog"),
}


@pytest.mark.parametrize(("record", "text"), TEXTS.values(), ids=TEXTS.keys())
def test_the_text_of_the_json_is_what_is_trained_on(tmp_path, record, text):
    data = record if isinstance(record, bytes) else json.dumps(record).encode()
    (tmp_path / "0.tar").write_bytes(tar_of([("a.png", picture()), ("a.json", data)]))
    (sample,) = ShardReader([tmp_path / "0.tar"])
    texts = choose_texts(sample.record)
    assert (texts.alt, texts.dense) == (text, text)


NO_TEXTS = {
    "NaN": (b'{"caption": NaN}', "no text in org_caption, txt, caption, re_caption"),
    "a number": (b'{"re_caption": 5}', "re_caption is int 5, not one text"),
    "infinity": (b'{"caption": Infinity}', "caption is float inf, not one text"),
    "several": (b'{"caption": ["a", "b"]}', "caption is 2 texts, not one text"),
    "an object": (b'{"caption": {"en": "a"}}', "caption is dict"),
    "half a surrogate": (b'{"caption": "\\ud800"}', "caption has half of a surrogate pair"),
    "deep": (b'{"caption": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON is nested too deep"),
    "a huge number": (b'{"caption": ' + b"9" * 10_000 + b"}", "digits"),
    "not UTF-8": (b'{"caption": "\xff\xfe\xfa"}', "decode"),
    "empty": (b"", "Expecting value"),
}


@pytest.mark.parametrize(("data", "reason"), NO_TEXTS.values(), ids=NO_TEXTS.keys())
def test_what_is_no_caption_is_counted_with_its_reason_and_the_stream_goes_on(tmp_path, data, reason):
    members = [
        ("a.png", picture(3)),
        ("a.json", data),
        ("b.png", picture(9)),
        ("b.json", b'{"caption": "x"}'),
    ]
    keys, reader = read(tmp_path, tar_of(members))
    assert keys == ["b"] and reason in reader.bad[0].reason
    lane = lane_of(tmp_path)
    rows = iter(lane)
    assert [int(next(rows).pixels[0, 0, 0]) for _ in range(3)] == [9, 9, 9]
    assert lane.account.num_good == 3 and lane.bad[0] == reader.bad[0]


def lane_of(folder, **changes):
    values = {"sources": [{"shards": str(folder)}], "image_size": 8, "num_lanes": 1, "shuffle_window": 3}
    chosen = load(StreamConfig, values | {"max_bad_fraction": 1.0, **changes})
    return Lane(0, chosen, find_stream_shards(chosen), seed=0)


def test_other_keys_can_be_named(tmp_path):
    members = [
        ("a.png", picture()),
        ("a.json", b'{"TEXT": "short", "long": "a long one."}'),
        ("a.txt", b"file"),
    ]
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    lane = lane_of(tmp_path, captions={"alt": ["TEXT"], "dense": ["llava", "long"]})
    row = next(iter(lane))
    texts = choose_texts(row.record, lane.config.captions)
    assert (texts.alt, texts.dense) == ("short", "a long one.")


def damaged(content, draw):
    bad = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, width = draw.randrange(len(bad)), draw.randint(1, 600)
        how = draw.choice(["noise", "zeros", "cut", "double", "end"])
        if how == "noise":
            bad[at : at + width] = draw.randbytes(len(bad[at : at + width]))
        elif how == "zeros":
            bad[at : at + width] = bytes(len(bad[at : at + width]))
        elif how == "cut":
            del bad[at : at + width]
        elif how == "double":
            bad[at:at] = bad[at : at + width]
        else:
            del bad[max(1, at) :]
    return bytes(bad)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd metadata
def test_shards_damaged_by_the_hundred_are_read_to_their_end_and_the_account_adds_up(tmp_path):
    kinds = ["PNG", "JPEG", "WEBP", "GIF"]
    samples = [
        {kinds[i % 4].lower(): picture(i, kinds[i % 4]), "txt": b"a cat", "json": b'{"caption": "x"}'}
        for i in range(6)
    ]
    whole, draw = shard_of(samples), random.Random(0)
    assert read(tmp_path, whole)[0] == [f"{i:04d}" for i in range(6)]
    lost = 0
    for _ in range(200):
        keys, reader = read(tmp_path, damaged(whole, draw))
        assert all(len(bad.reason.splitlines()) == 1 for bad in reader.bad)
        missing = {f"{i:04d}" for i in range(6)} - set(keys)
        assert not missing or reader.bad, missing
        lost += bool(missing)
    assert lost > 20


@pytest.mark.filterwarnings("ignore")
def test_a_stream_of_damaged_shards_goes_on_and_says_the_same_again(tmp_path):
    draw = random.Random(1)
    for number in range(12):
        content = shard_of([good(10 * number + i) for i in range(6)])
        (tmp_path / f"{number}.tar").write_bytes(damaged(content, draw) if number % 2 else content)
    first, second = lane_of(tmp_path), lane_of(tmp_path, prefetch=0)
    values = []
    for lane in (first, second):
        rows = iter(lane)
        values.append([int(next(rows).pixels[0, 0, 0]) for _ in range(80)])
    assert values[0] == values[1] and first.state() == second.state()
    assert [str(bad) for bad in first.bad] == [str(bad) for bad in second.bad] and first.bad


def test_a_file_system_that_fails_is_told_from_a_damaged_shard(tmp_path):
    (tmp_path / "0.tar").write_bytes(shard_of([good(), good()]))
    shard = OpenShard(str(tmp_path / "0.tar"))
    shard._file.close()
    with pytest.raises(Unreachable, match="ValueError"):
        shard.take(2)
    assert not shard.damage
