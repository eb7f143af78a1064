"""Records to batches: what is missing is counted or refused, orders are fixed by the seed."""

import json
import random
from pathlib import Path

import pyarrow
import pytest
import torch
from PIL import Image, ImageFile
from pyarrow import parquet

from encoder.data.account import BadSample
from encoder.runtime.checkpoint import load_tensors
from llava_bridge.batches import collate
from llava_bridge.data import build_dataset, read_records, training_order
from llava_bridge.hf import UnitImageProcessor
from llava_bridge.labels import IGNORE
from llava_bridge.pictures import CachedPictures, LivePictures


def dataset(records, pictures, tokenizer, **options):
    return build_dataset(
        records, pictures, "vicuna_v1", tokenizer, num_image_tokens=4, max_length=200, **options
    )


def test_missing_pictures_are_an_error_beyond_the_allowed_fraction(llava_data, tokenizer):
    records, pictures = read_records([llava_data / "train.json"]), CachedPictures(llava_data)
    records[0]["image"] = "images/lost.png"
    with pytest.raises(ValueError, match=r"1 of 10 pictures are missing.*images/lost\.png"):
        dataset(records, pictures, tokenizer)
    report = dataset(records, pictures, tokenizer, max_missing_fraction=0.1).report
    assert (report.num_samples, report.num_text_only, report.num_missing, report.missing) == (
        31,
        8,
        1,
        ["images/lost.png"],
    )


def test_unreadable_picture_counts_as_missing(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    pictures = LivePictures(tmp_path, UnitImageProcessor(32))
    assert "broken.png" not in pictures
    assert "absent.png" not in pictures


def test_picture_without_mark_is_refused(llava_data, tokenizer):
    records = read_records([llava_data / "train.json"])
    records[3]["image"] = "images/1.png"
    with pytest.raises(ValueError, match="sample sample-3: 0 '<image>' marks for one picture"):
        dataset(records, CachedPictures(llava_data), tokenizer)


def test_several_pictures_in_a_sample_are_refused_by_name(llava_data, tokenizer):
    records = read_records([llava_data / "train.json"])
    records[1]["image"] = ["images/1.png", "images/2.png"]
    with pytest.raises(ValueError, match="sample sample-1: 'image' must name one picture"):
        dataset(records, CachedPictures(llava_data), tokenizer)


@pytest.mark.parametrize("content", ["[{", '[{"id": 1}]'])
def test_bad_json_is_named(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"bad\.json"):
        read_records([path])


def test_parquet_rows_are_the_records_of_json(llava_data, tmp_path):
    records = read_records([llava_data / "train.json"])
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "train.parquet")
    assert read_records([tmp_path / "train.parquet"]) == records
    assert read_records([tmp_path]) == records  # a folder stands for its files
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no parquet file in the folder"):
        read_records([tmp_path / "empty"])
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"bad\.parquet is not parquet"):
        read_records([tmp_path / "bad.parquet"])


def test_pictures_are_looked_for_in_each_root_and_a_broken_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # lmms-eval sets it
    colours = {"a/one.png": (255, 0, 0), "b/two.png": (0, 255, 0), "b/one.png": (0, 0, 255)}
    for name, colour in colours.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), colour).save(tmp_path / name)
    pictures = LivePictures([tmp_path / "a", tmp_path / "b"], UnitImageProcessor(32))
    assert "two.png" in pictures
    assert "three.png" not in pictures
    means = pictures.stack(["one.png", "two.png"]).mean((2, 3))
    torch.testing.assert_close(means, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), atol=1e-5, rtol=0)
    whole = (tmp_path / "b" / "two.png").read_bytes()
    (tmp_path / "b" / "two.png").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"cut off or broken: 1, .*two\.png"):
        pictures.stack(["two.png"])


@pytest.mark.parametrize(
    ("aspect", "expected"),
    [
        ("stretch", [[0.0, 1.0]] * 4),
        ("crop", [[0.0, 1.0]] * 4),
        ("pad", [[0.5, 0.5], [0.0, 1.0], [0.5, 0.5]]),
    ],
)
def test_aspect_decides_what_becomes_of_a_wide_picture(aspect, expected):
    wide = Image.new("RGB", (64, 32))  # left half black, right half white
    wide.paste((255, 255, 255), (32, 0, 64, 32))
    (pixels,) = UnitImageProcessor(64, aspect=aspect, fill=(128, 128, 128))(wide)["pixel_values"]
    assert pixels.shape == (3, 64, 64)
    rows = [8, 32, 56] if aspect == "pad" else [8, 24, 40, 56]
    seen = pixels[0][rows][:, [4, 60]]  # far left and far right
    torch.testing.assert_close(seen, torch.tensor(expected), atol=0.01, rtol=0)


def test_what_is_left_out_is_named_in_one_file_and_the_account_adds_up(llava_data, tokenizer, tmp_path):
    records = read_records([llava_data / "train.json"])
    human, gpt = {"from": "human", "value": "what is this"}, {"from": "gpt", "value": "a cat"}
    records += [
        {"id": "literal", "conversations": [{**human, "value": "<image> this"}, gpt]},
        {"id": "unanswered", "conversations": [human, gpt, human]},
        {"id": "gpt-only", "conversations": [gpt]},
        {"id": "long", "conversations": [{**human, "value": "what " * 300}, gpt]},
        {"id": "lost", "image": "lost.png", "conversations": [{**human, "value": "<image>"}, gpt]},
        {"id": "cut", "conversations": [human, {**gpt, "value": "cat " * 300}]},
    ]
    options = {
        "max_missing_fraction": 0.1,
        "refused": [BadSample("b.json row 7", "not JSON")],
        "skipped_file": tmp_path / "skipped.jsonl",
    }
    data = dataset(records, CachedPictures(llava_data), tokenizer, max_bad_fraction=5 / 39, **options)
    report, names = data.report, ["literal", "unanswered", "gpt-only", "long"]
    assert (report.num_read, report.num_samples, report.num_skipped, report.num_without_picture) == (
        39,
        33,
        5,
        1,
    )
    assert report.num_read == report.num_samples + report.num_skipped + report.num_without_picture
    rows = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted(row["name"] for row in rows) == sorted(
        ["b.json row 7", "sample lost", *(f"sample {name}" for name in names)]
    )
    assert all(row["reason"] for row in rows)
    assert len(data[32].input_ids) == 200  # the text beyond max_length is cut
    with pytest.raises(ValueError, match=r"5 of 39 records cannot be used.* named in .*skipped\.jsonl"):
        dataset(records, CachedPictures(llava_data), tokenizer, max_bad_fraction=4 / 39, **options)
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 6


def test_hundreds_of_damaged_records_train_on_the_rest(llava_data, tokenizer, tmp_path):
    draw = random.Random(1)
    odd = [None, 3, "", [], {}, "<image>", "\ud800", [{"type": "image"}], "lost.png", "gpt", "what " * 300]
    whole, rows = json.loads((llava_data / "train.json").read_text()), []
    for i in range(400):
        row = json.loads(json.dumps(whole[i % len(whole)]))
        place = draw.choice([row, draw.choice(row["conversations"])])
        place[draw.choice(list(place))] = draw.choice(odd)
        if draw.random() < 0.2:
            draw.shuffle(row["conversations"] if isinstance(row.get("conversations"), list) else [])
        rows.append(row)
    (tmp_path / "train.json").write_text(json.dumps(rows))
    refused = []
    records = read_records(
        [tmp_path / "train.json"], refuse=lambda name, reason: refused.append(BadSample(name, reason))
    )
    limits = {"max_missing_fraction": 1.0, "max_bad_fraction": 1.0, "skipped_file": tmp_path / "skipped"}
    for template in ("plain", "vicuna_v1"):
        data = build_dataset(
            records,
            CachedPictures(llava_data),
            template,
            tokenizer,
            num_image_tokens=4,
            max_length=200,
            refused=refused,
            **limits,
        )
        report = data.report
        assert report.num_read == 400
        assert report.num_samples + report.num_skipped + report.num_without_picture == 400
        assert min(report.num_samples, report.num_skipped) > 50
        assert len((tmp_path / "skipped").read_text().splitlines()) == 400 - report.num_samples
        assert all((data[i].labels != IGNORE).any() for i in range(len(data)))


def test_text_rows_become_captions(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"id": "t", "text": "a red cat"}) + "\n")
    (record,) = read_records([path])
    assert [turn["value"] for turn in record["conversations"]] == ["", "a red cat"]


def test_batch_holds_each_sample_and_its_own_picture(llava_data, tokenizer):
    pictures = CachedPictures(llava_data)
    data = dataset(read_records([llava_data / "train.json"]), pictures, tokenizer)
    batch = collate(
        [data[i] for i in (13, 3, 2)], pictures, tokenizer.pad_token_id
    )  # the second has no picture
    tokens = load_tensors(Path(llava_data) / "tokens.safetensors")["tokens"]
    assert torch.equal(batch["image_tokens"], tokens[[1, 2]])
    for row, i in enumerate((13, 3, 2)):
        length = len(data[i].input_ids)
        assert torch.equal(batch["input_ids"][row, :length], data[i].input_ids)
        assert batch["attention_mask"][row].sum() == length
        assert (batch["labels"][row, length:] == IGNORE).all()


def test_training_order_shows_every_sample_once_an_epoch_and_depends_on_the_seed_alone():
    lengths = torch.randint(5, 50, (100,), generator=torch.Generator().manual_seed(0))
    order = training_order(lengths, 10, 20, seed=3)
    assert len(order) == 200
    assert sorted(order) == sorted(2 * list(range(100)))
    assert order == training_order(lengths, 10, 20, seed=3)
    assert order != training_order(lengths, 10, 20, seed=4)


def test_training_order_batches_similar_lengths():
    lengths = torch.randint(5, 500, (640,), generator=torch.Generator().manual_seed(0))
    batches = lengths[torch.tensor(training_order(lengths, 10, 64, seed=0))].view(-1, 10)
    padded = (batches.amax(1) * 10).sum() / lengths.sum()
    assert padded < 1.1


def test_a_long_line_is_padded_at_a_size_that_fits_in_memory():
    line = Image.new("RGB", (4_000_000, 1), "white")
    (pixels,) = UnitImageProcessor(8, aspect="pad", fill=(0, 0, 0))(line)["pixel_values"]
    assert pixels.shape == (3, 8, 8) and pixels.min() >= 0 and pixels.max() <= 1
