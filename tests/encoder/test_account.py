"""The account of bad samples: kept and skipped are what was read, all are named, too many stop it."""

import json

import pytest

from encoder.data import account
from encoder.data.account import Account, TooManyBadSamples


def test_kept_and_skipped_are_what_was_read_and_the_file_names_all(tmp_path, monkeypatch):
    monkeypatch.setattr(account, "KEPT", 3)
    own = Account(0.5, file=tmp_path / "bad.jsonl")
    for number in range(10):
        own.add_good(2)
        own.add_bad(f"0.tar:{number}", ValueError("two\nlines"))
    assert (own.num_good, own.num_bad, own.num_read) == (20, 10, 30)
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert rows == [{"name": f"0.tar:{number}", "reason": "two lines"} for number in range(10)]
    assert [str(bad) for bad in own.bad] == [f"0.tar:{number}: two lines" for number in range(3)]
    own.finish()


def test_too_many_stop_it_after_a_patience_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(account, "PATIENCE", 4)
    early = Account(0.5, what="pictures")
    early.add_bad("a", "x"), early.add_bad("b", "y")
    with pytest.raises(
        TooManyBadSamples, match=r"^3 of 3 pictures are unusable, .* 50.00%: a: x; b: y; c: z$"
    ):
        early.add_bad("c", "z")
    late = Account(0.5, file=tmp_path / "bad.jsonl")
    late.add_bad("a", "x")
    late.add_good()
    late.finish()  # 1 of 2
    late.add_bad("b", "y")
    with pytest.raises(TooManyBadSamples, match=r"^2 of 3 samples .*; all are named in .*bad\.jsonl$"):
        late.finish()


def test_an_account_goes_on_from_its_state_and_a_new_one_replaces_the_file(tmp_path):
    file = tmp_path / "bad.jsonl"
    first = Account(1.0, file=file)
    first.add_bad("a", "x")
    first.add_good(5)
    second = Account(1.0, file=file, state=json.loads(json.dumps(first.state())))
    second.add_bad("b", "y")
    assert (second.num_good, second.num_bad) == (5, 2)
    assert [bad.name for bad in second.bad] == ["a", "b"]
    assert len(file.read_text().splitlines()) == 2
    Account(1.0, file=file)
    assert not file.exists()
