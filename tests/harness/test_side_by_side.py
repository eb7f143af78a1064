"""`run.py compare`: what differs between two results folders, and nothing else."""

import json

import pytest
from rich.console import Console

from encoder.runtime.config import dump
from harness import subcommands
from harness.tables.results_folder import RUN_CONFIG
from harness.tables.side_by_side import compare, show


def text_of(pairs, a, b):
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    show(pairs, a, b, console)
    return console.export_text()


def by_suite(pairs):
    return {pair.suite: pair for pair in pairs}


def test_a_folder_equals_itself(make_results, capsys):
    made = make_results()
    pairs = compare(made.results, made.results)
    assert [pair.num_changed for pair in pairs] == [0, 0]
    assert all(pair.settings == pair.facts == [] for pair in pairs)
    assert subcommands.run("compare", [str(made.results)] * 2, Console(width=200)) == 0
    assert "generation: 0 of" in capsys.readouterr().out


def test_a_better_encoder_shows_with_its_difference_and_error(make_results, capsys):
    a = make_results("a", encoders={"ov3-demo": 0.8, "clip-demo": 0.8}).results
    b = make_results("b", encoders={"ov3-demo": 1.0, "clip-demo": 0.8}).results
    pair = by_suite(compare(a, b))["generation"]
    numbers = {(number.encoder, number.key): number for number in pair.numbers}
    psnr = numbers["ov3-demo", "PSNR"]
    assert psnr.difference == pytest.approx(25.4 - 20.32)
    assert psnr.stderr == pytest.approx(0.1 * 2**0.5)
    assert {encoder for encoder, key in numbers if not numbers[encoder, key].is_same} == {"ov3-demo"}
    lines = [line for line in text_of([pair], a, b).splitlines() if "ov3-demo" in line]
    assert any("PSNR" in line and "+5.08 ± 0.14" in line and "better" in line for line in lines)
    assert any("gFD-lite0" in line and "-11.81" in line and "better" in line for line in lines)
    assert subcommands.run("compare", [str(a), str(b)], Console(width=200)) == 1
    assert "differ" in capsys.readouterr().out


def test_config_and_provenance_that_differ_are_named(make_results):
    a, b = (make_results(name, seeds=(seed,)).results for name, seed in (("a", 0), ("b", 1)))
    for results, steps in ((a, 400), (b, 800)):
        preset = {"rae": {"train": {"num_steps": steps, "batch_size": 64}}}
        dump({"seed": 0, "preset": preset}, results / "generation" / RUN_CONFIG)
    pair = by_suite(compare(a, b))["generation"]
    assert pair.settings == [("preset.rae.train.num_steps", 400, 800)]
    assert ("seed (clip-demo, ov3-demo, real vs real)", 0, 1) in pair.facts
    text = text_of([pair], a, b)
    assert "preset.rae.train.num_steps" in text
    assert "batch_size" not in text


def test_what_one_folder_lacks_says_so(make_results):
    a = make_results("a", encoders={"ov3-demo": 1.0, "clip-demo": 0.8}).results
    b = make_results("b", encoders={"ov3-demo": 1.0}).results
    path = b / "generation" / "leaderboard.json"
    board = json.loads(path.read_text())
    del board["rows"][0]["metrics"]["PSNR"]
    board["rows"][0]["not_run"]["PSNR"] = "disk [full]"
    path.write_text(json.dumps(board))
    numbers = {
        (number.encoder, number.key): number for number in by_suite(compare(a, b))["generation"].numbers
    }
    assert numbers["clip-demo", "PSNR"].b == "absent"
    assert numbers["ov3-demo", "PSNR"].b == "not run: disk [full]"
    assert numbers["ov3-demo", "PSNR"].difference is None
    assert "not run: disk [full]" in text_of(compare(a, b), a, b)


def test_a_folder_with_two_presets_must_be_narrowed(make_results):
    made = make_results()
    other = made.results.with_name("small") / "generation"
    other.mkdir(parents=True)
    (other / "leaderboard.json").write_text((made.results / "generation" / "leaderboard.json").read_text())
    with pytest.raises(ValueError, match="name one preset's folder"):
        compare(made.results.parent, made.results.parent)


def test_a_rehearsal_is_not_compared_with_a_result(make_results):
    """A replica's numbers say nothing about an encoder: beside real ones they would seem to."""
    a, b = make_results("a").results, make_results("b").results
    for path in b.rglob("leaderboard.json"):
        board = json.loads(path.read_text())
        for row in board["rows"]:
            row["rehearsal"] = True
        path.write_text(json.dumps(board))
    for pair in ((a, b), (b, a)):
        with pytest.raises(ValueError, match=r"b/.* is a rehearsal on a replica, the other is not"):
            compare(*pair)
    assert all(pair.num_changed == 0 for pair in compare(b, b))
