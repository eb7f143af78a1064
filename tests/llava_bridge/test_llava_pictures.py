"""Broken pictures: what the look before the first step finds, and what becomes of a sample whose picture
breaks off while it is read."""

import errno
import fcntl
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageFile

import llava_bridge.train as stage
from encoder.data.embedded import EmbeddedPictures, refuse_outside_pictures
from encoder.runtime.checkpoint import load_tensors
from llava_bridge.batches import collate
from llava_bridge.config import LlavaConfig
from llava_bridge.data import build_dataset, read_records
from llava_bridge.hf import UnitImageProcessor
from llava_bridge.labels import IGNORE
from llava_bridge.model import build
from llava_bridge.pictures import BrokenPictures, LivePictures

NUM_PICTURES = 12  # as in conftest
BROKEN = "images/2.png"  # of samples 2, 14 and 26
TALK = [{"from": "human", "value": "<image>\nwhat is this"}, {"from": "gpt", "value": "a cat"}]


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # lmms-eval sets it


def noise(seed: int, kind: str = "PNG") -> bytes:
    """A picture file of 40 x 50 random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def with_wrong_bytes(data: bytes) -> bytes:
    """The file with its middle overwritten: the header and the end are as before."""
    middle = len(data) // 2
    return data[:middle] + bytes(64) + data[middle + 64 :]


@pytest.fixture
def live_data(llava_data, tmp_path) -> Path:
    """The folder of conftest's records with real picture files, one of them broken in the middle."""
    (tmp_path / "images").mkdir()
    for i in range(NUM_PICTURES):
        (tmp_path / "images" / f"{i}.png").write_bytes(noise(i))
    (tmp_path / BROKEN).write_bytes(with_wrong_bytes(noise(2)))
    (tmp_path / "train.json").write_text((llava_data / "train.json").read_text())
    return tmp_path


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_is_cut_off_is_found_before_the_first_step(tmp_path, kind):
    whole = noise(0, kind)
    files = {"whole": whole, "longer": whole + bytes(500), "half": whole[: len(whole) // 2], "no": b"no"}
    files |= {"short": whole[:-40], "empty": b"", "wrong": b"x" + whole}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    pictures = LivePictures(tmp_path, UnitImageProcessor(32))
    usable = {name for name in files if pictures.fault(name) is None}
    # WebP has no end mark, but a length in its header that PIL compares
    assert usable == {"whole", "longer"}


def test_a_picture_that_breaks_off_later_is_black_noted_and_limited(live_data):
    broken = BrokenPictures(live_data / "noted", limit=1)
    pictures = LivePictures(live_data, UnitImageProcessor(32), broken)
    assert pictures.fault(BROKEN) is None
    pixels = pictures.stack(["images/0.png", BROKEN, BROKEN])
    assert pixels[0].std() > 0.1
    assert (pixels[1:] == 0).all()
    assert list(broken.read()) == [BROKEN]
    (live_data / "images" / "5.png").write_bytes(with_wrong_bytes(noise(5)))
    other = LivePictures(live_data, UnitImageProcessor(32), BrokenPictures(live_data / "noted", limit=1))
    with pytest.raises(
        ValueError, match=r"broken: 2, allowed .*: 1 .* the first: images/2\.png: .*; images/5\.png: "
    ):
        other.stack(["images/5.png"])  # of another process of the run


def test_sample_with_a_broken_picture_leaves_the_others_loss_as_it_was(live_data, llm, tokenizer):
    records = read_records([live_data / "train.json"])
    pictures = LivePictures(live_data, UnitImageProcessor(32))
    data = build_dataset(
        records,
        pictures,
        "vicuna_v1",
        tokenizer,
        num_image_tokens=4,
        max_length=200,
        max_missing_fraction=0.12,
    )
    model = build("tiny", None, llm, "eager", seed=0)[0].train()
    samples, rest = [data[i] for i in (0, 2, 3, 5)], [data[i] for i in (0, 3, 5)]
    for pack_length in (None, 400):
        batch = collate(samples, pictures, 0, pack_length=pack_length)
        assert len(batch["pixel_values"]) == 3  # the broken one keeps its place
        assert (batch["labels"] != IGNORE).sum() == sum((sample.labels != IGNORE).sum() for sample in rest)
        expected = model(**collate(rest, pictures, 0)).loss
        torch.testing.assert_close(model(**batch).loss, expected, atol=1e-5, rtol=0)
    alone = model(**collate([data[2]], pictures, 0)).loss
    alone.backward()
    assert alone == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


@pytest.fixture
def config(align, live_data) -> LlavaConfig:
    return replace(
        align,
        data=[str(live_data / "train.json")],
        tokens=None,
        image_root=str(live_data),
        micro_batch_size=1,
        loss_average="samples",
        log_steps=10,
        deepspeed=None,
        max_missing_fraction=0.12,
    )


def test_training_drops_and_states_broken_pictures_and_resumes_alike(config, tmp_path, train_until_killed):
    whole = stage.train(config, tmp_path / "whole")
    assert (whole["data"]["num_broken"], whole["data"]["num_dropped_samples"]) == (1, 3)
    assert list(whole["data"]["broken"]) == [BROKEN]
    train_until_killed(config, tmp_path / "killed", 6)
    killed = stage.train(config, tmp_path / "killed")
    assert killed["data"] == whole["data"]
    one, two = (
        load_tensors(tmp_path / name / "weights" / "model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(ValueError, match=r"broken: 1, allowed .*: 0 .*: images/2\.png"):
        stage.train(replace(config, max_missing_fraction=0.0), tmp_path / "strict")
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["data"] == whole["data"]


def test_a_run_does_not_go_on_over_other_data(config, live_data, tmp_path, train_until_killed):
    """A picture that was missing when the run began and is there now makes more samples, in another order."""
    lost = live_data / "images" / "5.png"
    whole = lost.read_bytes()
    lost.unlink()
    config = replace(config, max_missing_fraction=0.3)
    train_until_killed(config, tmp_path / "out", 6)
    lost.write_bytes(whole)
    with pytest.raises(ValueError, match=r"out was begun on other data: 29 samples, now 32"):
        stage.train(config, tmp_path / "out")
    lost.unlink()
    shutil.rmtree(config.records_cache)  # which remembers that the picture was whole
    assert stage.train(config, tmp_path / "out")["data"]["num_samples"] == 29


def test_a_checkpoint_that_says_nothing_of_its_data_goes_on(config, tmp_path, train_until_killed):
    train_until_killed(config, tmp_path, 6)
    (mark,) = (tmp_path / "checkpoints").glob("checkpoint-*/COMPLETE")
    held = json.loads(mark.read_text())
    assert held["data"]["num_samples"] == 32 and len(held.pop("data")["sha256"]) == 64
    mark.write_text(json.dumps(held))
    assert stage.train(config, tmp_path)["num_steps"] == 8


@pytest.fixture
def on_the_hub(live_data) -> Path:
    """The same records and pictures in one file with the columns of lmms-lab/LLaVA-NeXT-Data."""
    rows = []
    for record in json.loads((live_data / "train.json").read_text()):
        name = record.get("image")
        picture = {"bytes": (live_data / name).read_bytes(), "path": None} if name else None
        rows.append({"id": record["id"], "image": picture, "data_source": "x"})
        rows[-1]["conversations"] = record["conversations"]
    table = Dataset.from_list(rows)
    features = Features(table.features | {"image": ImageFeature()})
    table.cast(features).to_parquet(live_data / "train-00000.parquet", batch_size=8)
    return live_data / "train-00000.parquet"


def test_pictures_inside_parquet_are_those_of_files(live_data, on_the_hub, tokenizer):
    def read(path):
        embedded = EmbeddedPictures(live_data / "cache")
        records = read_records([path], embedded)
        pictures = LivePictures([live_data], UnitImageProcessor(32), embedded=embedded)
        options = {"num_image_tokens": 4, "max_length": 200, "max_missing_fraction": 0.12}
        return records, pictures, build_dataset(records, pictures, "vicuna_v1", tokenizer, **options)

    _, files, expected = read(live_data / "train.json")
    records, pictures, found = read(on_the_hub)
    assert found.report.num_text_only == expected.report.num_text_only == 8
    for rows in ([0, 3, 13], [2, 9]):  # 3 has no picture, that of 2 is broken
        batch = collate([found[i] for i in rows], pictures, 0)
        other = collate([expected[i] for i in rows], files, 0)
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[key], other[key]) for key in batch)
    assert records[2]["image"] in pictures.broken
    assert read(on_the_hub)[2].report.sha256 == found.report.sha256
    with pytest.raises(ValueError, match=r"train-00000\.parquet holds the pictures"):
        read_records([on_the_hub])

    changed = Dataset.from_parquet(str(on_the_hub)).cast_column("image", ImageFeature(decode=False)).to_list()
    changed[0]["image"]["bytes"] = noise(77)  # the same words about another picture
    Dataset.from_list(changed).to_parquet(on_the_hub)
    assert read(on_the_hub)[2].report.sha256 != found.report.sha256


def test_parquet_pictures_are_copied_a_part_at_a_time(tmp_path):
    rows = [{"image": {"bytes": np.random.default_rng(i).bytes(20_000), "path": None}} for i in range(512)]
    Dataset.from_list(rows).to_parquet(tmp_path / "big.parquet", batch_size=64)
    before, pool = pyarrow.default_memory_pool(), pyarrow.proxy_memory_pool(pyarrow.default_memory_pool())
    pyarrow.set_memory_pool(pool)
    try:
        embedded = EmbeddedPictures(tmp_path / "cache")
        names = embedded.add(tmp_path / "big.parquet")
    finally:
        pyarrow.set_memory_pool(before)
    assert pool.max_memory() < 4e6  # of 10 MB in groups of 1.3
    assert all(embedded[name] == row["image"]["bytes"] for name, row in zip(names, rows, strict=True))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "big.parquet").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut\.parquet is not parquet"):
        read_records([tmp_path / "cut.parquet"], embedded)


def test_both_stages_train_on_parquet_at_a_fixed_number_of_tokens(config, on_the_hub, tmp_path):
    parquet = replace(
        config,
        data=[str(on_the_hub.parent)],
        image_root=None,
        picture_cache=str(tmp_path / "cache"),
        num_image_tokens=9,
    )
    first = stage.train(parquet, tmp_path / "align")
    assert (first["encoder"]["num_tokens"], first["encoder"]["num_encoder_tokens"]) == (9, 4)
    # three rows hold the same broken picture
    assert (first["data"]["num_broken"], first["data"]["num_dropped_samples"]) == (1, 3)
    second = replace(parquet, stage=2, init=str(tmp_path / "align" / "weights"), num_image_tokens=None)
    assert stage.train(second, tmp_path / "instruct")["encoder"]["num_tokens"] == 9
    with pytest.raises(ValueError, match="was aligned at 9 picture tokens, not num_image_tokens 4"):
        stage.train(replace(second, num_image_tokens=4), tmp_path / "other")


def test_a_name_that_leads_out_of_the_folders_is_a_missing_picture_unless_allowed(live_data, tokenizer):
    inner = live_data / "images"
    outside = ["../secret.png", str(live_data / "secret.png")]
    (live_data / "secret.png").write_bytes(noise(1))
    pictures = LivePictures(inner, UnitImageProcessor(32))
    assert pictures.fault("0.png") is None and pictures.fault("../images/0.png") is None
    assert pictures.fault("none.png") == f"none.png is in none of {inner}"
    for name in outside:
        assert pictures.fault(name).startswith(f"{name} leads out of {inner}; ")
    records = [{"id": name, "image": name, "conversations": TALK} for name in ("0.png", *outside)]
    options = {"num_image_tokens": 4, "max_length": 200, "max_missing_fraction": 0.7}
    skipped = live_data / "skipped.jsonl"
    data = build_dataset(records, pictures, "vicuna_v1", tokenizer, skipped_file=skipped, **options)
    assert (data.report.num_missing, data.report.missing) == (2, outside)
    lines = [json.loads(line) for line in skipped.read_text().splitlines()]
    assert [line["name"] for line in lines] == [f"sample {name}" for name in outside]
    assert all("leads out of" in line["reason"] for line in lines)
    allowed = LivePictures(inner, UnitImageProcessor(32), allow_outside_root=True)
    expected = LivePictures(live_data, UnitImageProcessor(32)).stack(["secret.png"])
    for name in outside:
        assert allowed.fault(name) is None and torch.equal(allowed.stack([name]), expected)


def test_evaluation_refuses_parquet_that_names_pictures_elsewhere(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "near.png").write_bytes(noise(1))
    (tmp_path / "secret.png").write_bytes(noise(2))
    held, near = {"bytes": noise(0), "path": "/elsewhere/0.png"}, {"bytes": None, "path": "near.png"}
    path = tmp_path / "data" / "test.parquet"
    for rows in ([held], [held, near], [held, None]):
        Dataset.from_list([{"image": row} for row in rows]).to_parquet(path)
        refuse_outside_pictures(path)
    far = {"bytes": None, "path": str(tmp_path / "secret.png")}
    for rows in ([held, far], [[held], [near, far]]):  # SEED-Bench has lists
        Dataset.from_list([{"image": row} for row in rows]).to_parquet(path)
        with pytest.raises(ValueError, match=r"test\.parquet: .*secret\.png leads out of .*; write the pict"):
            refuse_outside_pictures(path)
    Dataset.from_list([{"image": near | {"path": "none.png"}}]).to_parquet(path)
    with pytest.raises(ValueError, match=r"names a picture that it does not hold: none\.png is in none of"):
        refuse_outside_pictures(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"test\.parquet is damaged"):
        refuse_outside_pictures(path)


def test_a_disk_without_locks_gets_a_message(on_the_hub, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=r"has no file locks \(No locks available\); set picture_cache to"):
        EmbeddedPictures(tmp_path / "cache").add(on_the_hub)


def test_what_training_cannot_decode_is_found_before_the_first_step(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.tga")  # Pillow opens it, `decode_picture` does not
    Image.new("1", (20_000, 20_000)).save(tmp_path / "big.png")
    pictures = LivePictures(tmp_path, UnitImageProcessor(32))
    assert "not a picture" in pictures.fault("a.tga")
    assert pictures.fault("big.png") == "400000000 pixels; allowed are 1 to 64000000"
