"""Records to batches: what is missing is counted or refused, orders are fixed by the seed."""

import json
from pathlib import Path

import pytest
import torch

from encoder.checkpoint import load_tensors
from llava_bridge.data import (
    CachedPictures,
    LivePictures,
    build_dataset,
    collate,
    read_records,
    training_order,
)
from llava_bridge.hf import UnitImageProcessor
from llava_bridge.prompt import IGNORE


def dataset(records, pictures, tokenizer, **options):
    return build_dataset(
        records, pictures, "vicuna_v1", tokenizer, num_image_tokens=4, max_length=200, **options
    )


def test_missing_pictures_are_an_error_beyond_the_allowed_fraction(llava_data, tokenizer):
    records, pictures = read_records([llava_data / "train.json"]), CachedPictures(llava_data)
    records[0]["image"] = "images/lost.png"
    with pytest.raises(ValueError, match=r"1 of 24 pictures are missing.*images/lost\.png"):
        dataset(records, pictures, tokenizer)
    report = dataset(records, pictures, tokenizer, max_missing_fraction=0.05).report
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


@pytest.mark.parametrize("content", ["[{", '[{"id": 1}]'])
def test_bad_json_is_named(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"bad\.json"):
        read_records([path])


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
