"""`run.py verify`: silent on what a run left, and naming whatever was changed since."""

import json
import shutil

import pytest
from rich.console import Console

from encoder.runtime.config import ConfigError
from harness import report, subcommands
from harness.verify import verify

PSNR = "generation/values/ov3-demo/seed0/PSNR.json"


@pytest.fixture
def made(make_results):
    made = make_results()
    report.write(made.results)
    return made


def faults(made):
    return verify(made.results).faults


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_an_untouched_folder_verifies(made):
    verdict = verify(made.results)
    assert verdict.faults == []
    assert verdict.num_numbers > 100
    assert verdict.num_files == 2 * 5  # json, md, csv, tex and the report's share, of two suites
    assert (verdict.num_stages, verdict.num_inputs, verdict.gone) == (6, 6, set())
    assert str(verdict).endswith("no differences")


def test_a_changed_number_is_named_with_both_values(made):
    change(made.results / PSNR, value=31.0)
    found = faults(made)
    assert any(PSNR in fault and "value is 31.0" in fault and "gives 25.4" in fault for fault in found)
    table = next(fault for fault in found if "leaderboard.md" in fault)
    assert "**25.40 ± 0.10**" in table
    assert "**31.00 ± 0.10**" in table
    assert any("report.html: its tables of generation" in fault for fault in found)
    assert not any("understanding" in fault for fault in found)


def test_a_number_changed_in_file_and_tables_alike_is_caught_by_its_stage(made, make_results):
    change(made.results / PSNR, value=31.0)
    board = json.loads((made.results / "generation" / "leaderboard.json").read_text())
    board["rows"][0]["metrics"]["PSNR"]["value"] = 31.0
    (made.results / "generation" / "leaderboard.json").write_text(json.dumps(board))
    assert any("DONE.json gives 25.4" in fault for fault in faults(made))


@pytest.mark.parametrize("ending", ["md", "csv", "tex", "json"])
def test_a_changed_table_is_named(made, ending):
    path = made.results / "generation" / f"leaderboard.{ending}"
    path.write_text(path.read_text().replace("20.32", "27.32"))
    (fault,) = faults(made)
    assert f"leaderboard.{ending}" in fault
    assert "27.32" in fault


def test_a_changed_report_is_named(made):
    path = made.results / report.REPORT
    path.write_text(path.read_text().replace(">20.32<", ">27.32<"))
    (fault,) = faults(made)
    assert fault.endswith("report.html: its tables of generation are not what the result files give")


def test_changed_weights_are_named_once_for_each_number_that_used_them(made):
    used = json.loads((made.results / PSNR).read_text())["checkpoint_files"][0]
    (made.runs / used.rpartition("/")[2]).write_text("other weights")
    found = faults(made)
    assert len(found) == 2 * 8  # checkpoint and data of the eight numbers
    assert all("_hash is not that of" in fault and used in fault for fault in found)


def test_a_changed_config_is_named(made):
    folder = made.runs.parent / json.loads((made.results / PSNR).read_text())["folder"]
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("generation", "reconstruction"))
    assert all("config_hash is not that of" in fault for fault in faults(made))


def test_what_is_gone_is_counted_not_a_fault(made):
    shutil.rmtree(made.runs)
    verdict = verify(made.results)
    assert verdict.faults == []
    assert len(verdict.gone) == 12
    assert (verdict.num_stages, verdict.num_inputs) == (0, 0)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "not there"),
        (lambda path: path.write_text('{"value": 1'), "cannot be read"),
        (lambda path: path.write_text("{}"), "without 'key'"),
        (lambda path: path.write_text("[]"), "expected a mapping"),
        (lambda path: change(path, encoder="another"), "is not ov3-demo's PSNR"),
    ],
)
def test_a_damaged_result_file_is_named(made, damage, words):
    damage(made.results / PSNR)
    assert any(PSNR in fault and words in fault for fault in faults(made))


def test_a_result_file_outside_the_folder_is_not_read(made):
    path = made.results / "generation" / "leaderboard.json"
    path.write_text(path.read_text().replace("values/ov3-demo/seed0/PSNR.json", "../../../secret.json"))
    assert any("outside its folder" in fault for fault in faults(made))


def test_the_verb_exits_with_one_and_says_what_differs(made, capsys):
    console = Console(width=200)
    assert subcommands.run("verify", [str(made.results)], console) == 0
    assert "no differences" in capsys.readouterr().out
    change(made.results / PSNR, value=31.0)
    assert subcommands.run("verify", [str(made.results)], console) == 1
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "words", "error", "message"),
    [
        ("verify", [], ConfigError, "verify takes a results folder"),
        ("compare", ["a"], ConfigError, "compare takes one results folder and another"),
        ("verify", ["/no/such/folder"], FileNotFoundError, "no leaderboard.json under /no/such/folder"),
    ],
)
def test_wrong_words_are_one_clear_line(verb, words, error, message):
    with pytest.raises(error, match=message):
        subcommands.run(verb, words, Console())
