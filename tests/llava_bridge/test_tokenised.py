"""Records tokenised once: the same samples as made anew, kept by content, whole or not there."""

import threading
from dataclasses import replace

import pytest
import torch
from PIL import Image

import llava_bridge.data as data
import llava_bridge.looks as looks
import llava_bridge.tokenised as tokenised
from llava_bridge.data import build_dataset, read_dataset, read_records
from llava_bridge.hf import UnitImageProcessor
from llava_bridge.labels import IGNORE
from llava_bridge.pictures import CachedPictures, LivePictures
from llava_bridge.prompt import encode_conversations

NUM_PICTURES = 12  # as in conftest


@pytest.fixture
def config(align, llava_data, tmp_path):
    """The settings of stage 2's data, its records in a file of the test's own."""
    (tmp_path / "train.json").write_bytes((llava_data / "train.json").read_bytes())
    return replace(align, stage=2, data=[str(tmp_path / "train.json")])


@pytest.fixture
def read(config, llava_data, tokenizer, tmp_path):
    """Opens the data set, four tokens a picture unless told otherwise."""

    def read(changed=config, num_image_tokens=4, pictures=None, tokenizer=tokenizer):
        pictures = pictures or CachedPictures(llava_data)
        return read_dataset(changed, num_image_tokens, tokenizer, pictures, tmp_path)

    return read


@pytest.fixture
def nothing_is_made(monkeypatch):
    """From its call on, reading or tokenising records is an error."""

    def forbid():
        def refuse(*args, **kwargs):
            raise AssertionError("records are read or tokenised again")

        monkeypatch.setattr(data, "read_records", refuse)
        monkeypatch.setattr(tokenised, "encode_conversations", refuse)

    return forbid


def assert_same(found, expected):
    assert len(found) == len(expected)
    assert found.report == expected.report
    assert torch.equal(found.lengths, expected.lengths)
    assert torch.equal(found.has_picture, expected.has_picture)
    for i in range(len(found)):
        one, other = found[i], expected[i]
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)
        assert one.picture == other.picture


@pytest.mark.parametrize(("num_image_tokens", "is_short"), [(4, False), (9, True), (1, True)])
def test_stored_samples_are_those_tokenised_and_cut_one_by_one(
    config, read, llava_data, tokenizer, nothing_is_made, num_image_tokens, is_short
):
    records, refused = read_records([llava_data / "train.json"]), {}
    samples = encode_conversations(records, "vicuna_v1", tokenizer, num_image_tokens, 1000)
    firsts = sorted((sample.labels != IGNORE).argmax() for sample in samples)
    max_length = int(firsts[16]) if is_short else 200  # short: half of the samples have nothing left
    expected = encode_conversations(
        records, "vicuna_v1", tokenizer, num_image_tokens, max_length, refused.__setitem__
    )
    cut = replace(config, max_length=max_length, max_bad_fraction=1.0)
    first = read(cut, num_image_tokens)
    nothing_is_made()
    second = read(cut, num_image_tokens)
    assert_same(second, first)
    kept = [(record, sample) for record, sample in zip(records, expected, strict=True) if sample is not None]
    assert (len(first), first.report.num_skipped) == (len(kept), len(refused))
    assert 8 <= len(kept) <= 24 if is_short else len(kept) == 32
    assert first.report.skipped == [f"{name}: {reason}" for name, reason in refused.items()]
    for i, (record, sample) in enumerate(kept):
        assert first[i].input_ids.tolist() == sample.input_ids.tolist()
        assert first[i].labels.tolist() == sample.labels.tolist()
        assert first[i].picture == record.get("image")
        assert first.lengths[i] == len(sample.input_ids)
    assert read(config, 16).report.num_samples == 32  # another encoder, another length: the same store


def test_the_store_follows_the_content_the_tokenizer_and_the_template(
    config, read, tokenizer, tmp_path, nothing_is_made
):
    folders = set()

    def stores():
        found = {path.parent.name for path in (tmp_path / "records").glob("*/about.json")}
        new = found - folders
        folders.update(found)
        return len(new)

    read()
    assert stores() == 1
    file = tmp_path / "train.json"
    text = file.read_text()
    file.write_text(text.replace('sample-1"', 'sample-X"'))  # as long as before
    assert read().store.names[1] == "sample-X"
    assert stores() == 1
    read(replace(config, stage=1))
    assert stores() == 1
    other = type(tokenizer).from_pretrained(config.init)
    other.add_tokens(["cat"])
    assert (read(tokenizer=other)[0].input_ids >= 0).all()
    assert stores() == 1
    file.write_text(text)
    file.touch()
    nothing_is_made()
    read()
    assert stores() == 0


def test_a_store_that_was_cut_short_is_begun_anew(config, read, tmp_path, monkeypatch):
    whole = read(replace(config, records_cache=str(tmp_path / "whole")))
    monkeypatch.setattr(tokenised, "_RECORDS_AT_ONCE", 8)
    calls = []

    def break_off(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode_conversations(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokenised, "encode_conversations", break_off)
        read()
    (folder,) = (path for path in (tmp_path / "records").iterdir() if path.is_dir())
    assert not list(folder.iterdir())
    assert_same(read(), whole)
    (folder / "input_ids").write_bytes((folder / "input_ids").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"input_ids is damaged; delete .*records"):
        read()


def test_one_process_tokenises_and_another_that_comes_meanwhile_waits(read, monkeypatch):
    calls, has_begun, may_end = [], threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        calls.append(1)
        has_begun.set()
        assert may_end.wait(60)
        return encode_conversations(*args, **kwargs)

    monkeypatch.setattr(tokenised, "encode_conversations", slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(read())) for _ in range(2)]
    threads[0].start()
    assert has_begun.wait(60)
    threads[1].start()
    threads[1].join(0.5)
    assert not found
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert len(calls) == 1
    assert_same(*found)


@pytest.fixture
def live(tmp_path):
    """The records' pictures as files, one of them missing."""
    for i in range(NUM_PICTURES):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "5.png").unlink()

    class Counting(LivePictures):
        looked = ()

        def fault(self, name):
            self.looked = (*self.looked, name)
            return super().fault(name)

    return lambda: Counting(tmp_path, UnitImageProcessor(32))


def test_a_picture_found_whole_is_not_looked_at_again_and_a_missing_one_is(config, read, live, tmp_path):
    allowing = replace(config, max_missing_fraction=0.12)
    first = live()
    report = read(allowing, pictures=first).report
    assert report.missing == ["images/5.png"]
    assert set(first.looked) == {f"images/{i}.png" for i in range(NUM_PICTURES) if i % 4 != 3}
    again = live()
    assert read(allowing, pictures=again).report == report
    assert set(again.looked) == {"images/5.png"}
    with pytest.raises(ValueError, match=r"1 of 9 pictures are missing .*images/5\.png"):
        read(config, pictures=live())
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "5.png")
    mended, after = live(), live()
    assert read(config, pictures=mended).report.num_missing == 0
    assert read(config, pictures=after).report.num_missing == 0
    assert (mended.looked, after.looked) == (("images/5.png",), ())


def test_looks_that_were_cut_short_go_on(live, tmp_path, monkeypatch):
    names = [f"images/{i}.png" for i in range(NUM_PICTURES)]
    monkeypatch.setattr(looks, "_LOOKS_BETWEEN_SAVES", 3)
    first = live()

    def die(name):
        if name == names[7]:
            raise KeyboardInterrupt
        return LivePictures.fault(first, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(first, "fault", die)
        looks.absent_pictures(names, first, tmp_path / "kept")
    second = live()
    assert list(looks.absent_pictures(names, second, tmp_path / "kept")) == [5]
    assert set(second.looked) == {names[5], *names[6:]}
    elsewhere = LivePictures(tmp_path / "images", UnitImageProcessor(32))
    assert len(looks.absent_pictures(names, elsewhere, tmp_path / "kept")) == NUM_PICTURES


def test_a_folder_that_is_missing_shows_before_anything_is_tokenised(read, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("tokenised too soon")

    nowhere = LivePictures(tmp_path / "nowhere", UnitImageProcessor(32))
    monkeypatch.setattr(tokenised, "encode_conversations", fail)
    with pytest.raises(ValueError, match="9 of 9 pictures are missing"):
        read(pictures=nowhere)


def test_records_in_memory_give_the_same_samples(read, llava_data, tokenizer):
    records, options = read_records([llava_data / "train.json"]), {"num_image_tokens": 4, "max_length": 2048}
    expected = build_dataset(records, CachedPictures(llava_data), "vicuna_v1", tokenizer, **options)
    found = read()
    assert_same(found, expected)
    assert any((found[i].labels != IGNORE).any() for i in range(len(found)))
