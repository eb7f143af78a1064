"""LLaVA's records in every form they come in, and damaged ones by the hundred: read, or refused by name."""

import json
import random

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from encoder.data.records import picture_names, read_records

QUESTION, ANSWER = "<image>\nwhat is this", "a cat"
EXPECTED = {
    "id": 7,
    "image": "a.png",
    "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}],
}


def written(folder, rows, name="records.json"):
    path = folder / name
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(lines if name.endswith("l") else json.dumps(rows), encoding="utf-8")
    return path


def messages(user, assistant, **rest):
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"id": 7, **rest, "messages": turns}


TEXT = {"type": "text", "text": "\nwhat is this"}


@pytest.mark.parametrize(
    "row",
    [
        EXPECTED,
        EXPECTED | {"image": ["a.png"]},
        EXPECTED | {"image": None, "images": ["a.png"]},
        messages(QUESTION, ANSWER, image="a.png"),
        messages([{"type": "image"}, TEXT], [{"type": "text", "text": ANSWER}], image=["a.png"]),
        messages([{"type": "image", "image": "a.png"}, TEXT], ANSWER),
        messages([{"type": "image", "text": None, "path": "a.png"}, TEXT, ""], ANSWER),
        {"id": 7, "image": "a.png", "conversations": messages(QUESTION, ANSWER)["messages"]},
    ],
)
def test_every_form_is_read_as_llavas_own(tmp_path, row):
    for name in ("records.json", "records.jsonl"):
        path = written(tmp_path, [row], name)
        assert read_records([path]) == [EXPECTED]
        assert picture_names([path, path]) == ["a.png"]


def test_parquet_rows_are_read_alike(tmp_path):
    parts = messages([{"type": "image", "text": None}, TEXT], [{"type": "text", "text": ANSWER}])
    for row in (EXPECTED, messages(QUESTION, ANSWER, image="a.png"), parts | {"images": ["a.png"]}):
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "records.parquet")
        assert read_records([tmp_path / "records.parquet"]) == [EXPECTED]
        assert picture_names([tmp_path]) == ["a.png"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_lines_end_at_a_line_feed_alone(tmp_path, separator):
    row = {"id": 1, "text": f"a{separator}cat"}
    path = written(tmp_path, [row, row], "records.jsonl")
    turns = [{"from": "human", "value": ""}, {"from": "gpt", "value": row["text"]}]
    assert read_records([path]) == [{**row, "conversations": turns}] * 2


@pytest.mark.parametrize("name", ["records.json", "records.jsonl"])
def test_a_byte_order_mark_is_read(tmp_path, name):
    path = written(tmp_path, [EXPECTED], name)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_records([path]) == [EXPECTED]


HUMAN = {"from": "human", "value": "what"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (3, "must be an object, got 3"),
        (None, "must be an object, got None"),
        ({"id": 1}, "needs 'conversations', 'messages' or 'text', got keys 'id'"),
        ({"text": None}, "must be text, got None"),
        ({"text": "\ud800"}, "half of a surrogate pair"),
        ({"conversations": "what"}, "must be a list of turns, got 'what'"),
        ({"conversations": [HUMAN, "yes"]}, "turn 1 must be an object"),
        (
            {"conversations": [HUMAN, {"from": "gpt", "value": None}]},
            r"turn 1 .* text, got None",
        ),
        ({"conversations": [HUMAN, {"from": "gpt", "value": 3}]}, r"turn 1 \(gpt\) must be text, got 3"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": {"a": 1}}]}, "must be text, got a dict"),
        ({"conversations": [HUMAN, {"from": "tool", "value": "yes"}]}, "turn 1 is by 'tool'"),
        ({"conversations": [HUMAN, {"from": ["gpt"], "value": "yes"}]}, "turn 1 is by a list"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "neither text nor an image"),
        (EXPECTED | {"image": 5}, "a picture's name must be text, got 5"),
        (EXPECTED | {"image": {"bytes": "x"}}, "a picture's name must be text, got a dict"),
        (EXPECTED | {"image": ["a.png", "b.png"]}, "names 2 pictures"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name_and_the_rest_is_kept(tmp_path, row, reason):
    path = written(tmp_path, [EXPECTED, row, EXPECTED])
    with pytest.raises(ValueError, match=rf"records\.json row 1: .*{reason}"):
        read_records([path])
    refused = {}
    assert read_records([path], refuse=refused.__setitem__) == [EXPECTED, EXPECTED]
    assert list(refused) == [f"{path} row 1"]


def test_a_damaged_line_is_refused_and_a_damaged_file_stops_the_run(tmp_path):
    path = tmp_path / "records.jsonl"
    good = json.dumps(EXPECTED).encode()
    path.write_bytes(
        b"\n".join([good, good[:-9], b"\xff\xfe", b"[" * 100_000, b'{"id": ' + b"9" * 5000, good])
    )
    refused = {}
    assert read_records([path], refuse=refused.__setitem__) == [EXPECTED] * 2
    assert [name.rpartition(" ")[2] for name in refused] == ["1", "2", "3", "4"]
    for content in (b"[{", b"\xff\xff", b"[" * 100_000, b'{"id": 1}'):
        (tmp_path / "whole.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"whole\.json (is not JSON|must hold a list)"):
            read_records([tmp_path / "whole.json"])
    parquet.write_table(pyarrow.Table.from_pylist([EXPECTED] * 50), tmp_path / "records.parquet")
    whole = (tmp_path / "records.parquet").read_bytes()
    for damaged in (whole[:-20], whole[: len(whole) // 2], whole[:4] + bytes(200) + whole[204:]):
        (tmp_path / "records.parquet").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"records\.parquet is (not parquet|damaged)"):
            read_records([tmp_path / "records.parquet"])


def test_hundreds_of_damaged_records_leave_no_traceback_and_the_account_adds_up(tmp_path):
    draw = random.Random(0)
    odd = [None, 3, -1.5, True, "", "\x00", [], {}, [[]], [None], [{}], {"type": "image"}, "<image>", "../x"]
    rows = []
    for _ in range(600):
        row = json.loads(json.dumps(draw.choice([EXPECTED, messages([{"type": "image"}, TEXT], ANSWER)])))
        target = row
        for _ in range(draw.randrange(4)):  # walk to some place in the record
            inner = [value for value in (target.values() if isinstance(target, dict) else target)
                     if isinstance(value, dict | list) and value]  # fmt: skip
            target = draw.choice(inner) if inner else target
        key = draw.choice(list(target) if isinstance(target, dict) else range(len(target)))
        target[key] = draw.choice(odd)
        rows.append(row)
    lines = [json.dumps(row).encode() for row in rows]
    lines = [line[: draw.randrange(1, len(line))] if draw.random() < 0.2 else line for line in lines]
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\n".join(lines))
    refused, refused_pictures = {}, {}
    kept = read_records([path], refuse=refused.__setitem__)
    names = picture_names([path], refuse=refused_pictures.__setitem__)
    assert len(kept) + len(refused) == len(lines)
    assert min(len(kept), len(refused)) > 100
    for record in kept:
        assert all(
            isinstance(t["value"], str) and t["from"] in ("human", "gpt") for t in record["conversations"]
        )
        assert set(record) <= {"id", "image", "conversations"}
    assert {record["image"] for record in kept if "image" in record} <= set(names)


def test_one_row_of_parquet_that_is_not_utf_8_costs_itself_alone(tmp_path):
    offsets = pyarrow.py_buffer(np.array([0, 1, 2, 4], np.int32).tobytes())
    names = pyarrow.StringArray.from_buffers(3, offsets, pyarrow.py_buffer(b"a\xffcd"))
    talk = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    table = pyarrow.table({"id": names, "conversations": pyarrow.array([talk] * 3)})
    parquet.write_table(table, tmp_path / "ROWS.PARQUET")  # a name in capitals is parquet too
    refused = []
    found = read_records([tmp_path / "ROWS.PARQUET"], refuse=lambda *each: refused.append(each))
    assert [record["id"] for record in found] == ["a", "cd"]
    ((place, reason),) = refused
    assert place.endswith("ROWS.PARQUET row 1") and reason.startswith("not UTF-8")


def test_the_end_of_a_name_may_be_in_capitals(tmp_path):
    (tmp_path / "TALK.JSONL").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert [record["text"] for record in read_records([tmp_path / "TALK.JSONL"])] == ["a", "b"]
