"""Result files and the tables rendered from them: shape, directions, what is not run, what is published."""

import csv
import dataclasses
import json
import zlib

import pytest
from rich.console import Console

from harness.config import SuiteConfig, chosen_suites
from harness.metrics.config import Metric
from harness.running.launch import Outcome, launch_facts
from harness.running.stages import Graph
from harness.tables import grids, leaderboard
from harness.tables.result_files import Identity, Part, Row, collect, merge_seeds, slug
from llava_bridge.benchmark_table import BENCHMARKS, TASK_SETS

SUITE = SuiteConfig(
    name="generation",
    title="Generation",
    description="A test.",
    headline=["PSNR", "rFD-lite0", "yes"],
    details={"By key": ["PSNR"]},
    appendix={"More": ["yes"]},
)
IDENTITY = Identity(suite="generation", preset="demo", seed=3)
COMMON = {
    "value", "stderr", "unit", "higher_is_better", "num_samples", "seed", "config_hash", "checkpoint_hash",
    "data_hash", "packages", "commit", "hardware", "wall_seconds", "date",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class NoConfig:
    number: float


def metrics(psnr, distance, yes):
    return {
        "PSNR": Metric(value=psnr, stderr=0.25, unit="dB", higher_is_better=True, num_samples=9),
        "rFD-lite0": Metric(value=distance, unit="", higher_is_better=False, num_samples=9),
        "yes": Metric(value=yes, unit="%", higher_is_better=None, num_samples=9),
    }


def make_row(tmp_path, name, numbers, *, kind="measured", undefined=None):
    """A row over one complete stage (its folder written as the launcher and the stage write it)."""
    graph = Graph(tmp_path / "runs")
    config = NoConfig(zlib.crc32(name.encode()))
    stage = graph.add("score", "encoder.runtime.config", config, label=f"score {name}")
    stage.folder.mkdir(parents=True)
    result = {"metrics": {key: dataclasses.asdict(metric) for key, metric in numbers.items()}}
    (stage.folder / "DONE.json").write_text(json.dumps({"seconds": 2.5, "result": result}))
    (stage.folder / "launch.json").write_text(json.dumps(launch_facts(stage, threads=1)))
    weights = tmp_path / f"weights-{name}"
    weights.write_text(name)
    part = Part(stage=stage, keys=tuple(numbers), checkpoint=(weights,), data=(weights,))
    return Row(
        encoder=name, kind=kind, source=f"folder/{name}", parts=(part,), undefined=undefined or {}
    ), stage


def make_board(tmp_path, rows):
    folder = tmp_path / "results"
    outcomes = {stage.folder: Outcome("done") for _, stage in rows}
    built = [collect(row, outcomes, folder, IDENTITY) for row, _ in rows]
    return leaderboard.build(SUITE, "demo", built, folder), folder


@pytest.fixture
def board(tmp_path):
    rows = [
        make_row(tmp_path, "ov3-demo", metrics(25.0, 3.0, 50.0)),
        make_row(tmp_path, "clip-demo", metrics(17.5, 9.0, 90.0)),
        make_row(
            tmp_path,
            "real vs real",
            {"rFD-lite0": metrics(0, 0.5, 0)["rFD-lite0"]},
            kind="floor",
            undefined={"PSNR": "two different sets"},
        ),
    ]
    return make_board(tmp_path, rows)


def test_a_result_file_says_all_that_its_number_came_from(board):
    content, folder = board
    metric = content["rows"][0]["metrics"]["PSNR"]
    file = json.loads((folder / metric["result_file"]).read_text())
    assert set(file) >= COMMON
    assert (file["value"], file["seed"], file["wall_seconds"]) == (25.0, 3, 2.5)
    other = json.loads((folder / content["rows"][1]["metrics"]["PSNR"]["result_file"]).read_text())
    assert file["checkpoint_hash"] != other["checkpoint_hash"]


def test_the_leaderboard_has_the_agreed_shape(board):
    content, _ = board
    assert set(content) == {"suite", "preset", "commit", "measured_commits", "date", "rows"}
    for row in content["rows"]:
        assert set(row) == {"encoder", "kind", "source", "metrics", "not_run"}
        assert row["kind"] in ("measured", "blind", "floor", "published")
        for metric in row["metrics"].values():
            assert set(metric) == {
                "value",
                "stderr",
                "std",
                "num_seeds",
                "num_samples",
                "unit",
                "higher_is_better",
                "result_file",
            }
    assert content["rows"][2]["not_run"] == {"PSNR": "two different sets"}
    json.dumps(content, allow_nan=False)


def test_the_table_is_what_the_files_say(board, tmp_path):
    content, folder = board
    path = folder / content["rows"][0]["metrics"]["PSNR"]["result_file"]
    path.write_text(path.read_text().replace("25.0", "26.5"))
    names = [
        {
            **{key: row[key] for key in ("encoder", "kind", "source", "not_run")},
            "files": {key: [metric["result_file"]] for key, metric in row["metrics"].items()},
        }
        for row in content["rows"]
        if row["kind"] != "published"
    ]
    again = leaderboard.build(SUITE, "demo", names, folder)
    assert again["rows"][0]["metrics"]["PSNR"]["value"] == 26.5


def test_the_same_stages_give_the_same_bytes_again(tmp_path):
    rows = [make_row(tmp_path, "a", metrics(1.0, 2.0, 3.0))]
    written = []
    for _ in range(2):
        content, folder = make_board(tmp_path, rows)
        written.append([path.read_bytes() for path in leaderboard.write(content, SUITE, folder)])
    assert written[0] == written[1]


def test_arrows_and_bold_follow_the_direction_among_measured_rows(board):
    content, _ = board
    text = grids.markdown(content, SUITE)
    assert "| encoder | PSNR dB ↑ | rFD-lite0 ↓ | yes % |" in text
    assert (
        "| ov3-demo | **25.00 ± 0.25** | **3.0000** | 50.0 |" in text
    )  # the floor's 0.5 is not a competitor
    assert "| clip-demo | 17.50 ± 0.25 | 9.0000 | 90.0 |" in text
    assert "| real vs real | not run | 0.5000 |  |" in text
    assert "- real vs real: PSNR: two different sets" in text


def test_equal_values_win_nothing(tmp_path):
    distances = {"a": 1.0, "b": 2.0}
    rows = [make_row(tmp_path, name, metrics(25.0, distance, 50.0)) for name, distance in distances.items()]
    text = grids.markdown(make_board(tmp_path, rows)[0], SUITE)
    assert "| a | 25.00 ± 0.25 | **1.0000** | 50.0 |" in text
    assert "| b | 25.00 ± 0.25 | 2.0000 | 50.0 |" in text


def test_a_failed_stage_is_not_run_with_its_reason_and_never_a_number(tmp_path):
    (good, good_stage), (bad, bad_stage) = (
        make_row(tmp_path, name, metrics(1.0, 2.0, 3.0)) for name in ("good", "bad")
    )
    outcomes = {good_stage.folder: Outcome("reused"), bad_stage.folder: Outcome("failed", "disk full")}
    folder = tmp_path / "results"
    content = leaderboard.build(
        SUITE, "demo", [collect(row, outcomes, folder, IDENTITY) for row in (good, bad)], folder
    )
    assert content["rows"][1]["metrics"] == {}
    assert content["rows"][1]["not_run"] == dict.fromkeys(("PSNR", "rFD-lite0", "yes"), "disk full")
    assert "| bad | not run | not run | not run |" in grids.markdown(content, SUITE)
    assert "**" not in grids.markdown(content, SUITE).split("## Published")[0]  # one row alone wins nothing
    rows = list(csv.DictReader(leaderboard.comma_separated(content).splitlines()))
    assert (rows[0]["PSNR"], rows[0]["PSNR stderr"], rows[1]["PSNR"]) == ("1.0", "0.25", "not run")


def test_what_a_failed_stage_scored_is_kept_and_the_rest_says_why_not(tmp_path):
    row, stage = make_row(tmp_path, "partial", metrics(1.0, 2.0, 3.0))
    done = json.loads((stage.folder / "DONE.json").read_text())
    (stage.folder / "DONE.json").unlink()
    lost = done["result"]["metrics"].pop("rFD-lite0")
    assert lost["value"] == 2.0
    result = done["result"] | {"not_run": {"rFD-lite0": "no data"}}
    (stage.folder / "results.json").write_text(json.dumps(result))
    outcomes = {stage.folder: Outcome("failed", "not run: rFD-lite0", seconds=7.0)}
    kept = collect(row, outcomes, tmp_path / "results", IDENTITY)
    assert set(kept["files"]) == {"PSNR", "yes"}
    assert kept["not_run"] == {"rFD-lite0": "no data"}
    file = json.loads((tmp_path / "results" / kept["files"]["PSNR"][0]).read_text())
    assert (file["value"], file["wall_seconds"]) == (1.0, 7.0)


def test_an_infinite_value_is_null_in_the_file_and_undefined_in_the_table(tmp_path):
    content, _ = make_board(tmp_path, [make_row(tmp_path, "a", metrics(float("inf"), 2.0, float("nan")))])
    assert content["rows"][0]["metrics"]["PSNR"]["value"] is None
    assert "| a | undefined | 2.0000 | undefined |" in grids.markdown(content, SUITE)


def test_another_fingerprint_rewrites_the_result_file(tmp_path):
    row, stage = make_row(tmp_path, "a", metrics(1.0, 2.0, 3.0))
    content, folder = make_board(tmp_path, [(row, stage)])
    path = folder / content["rows"][0]["metrics"]["PSNR"]["result_file"]
    old = json.loads(path.read_text())
    path.write_text(json.dumps({**old, "fingerprint": "of another run", "value": 99.0}))
    assert make_board(tmp_path, [(row, stage)])[0]["rows"][0]["metrics"]["PSNR"]["value"] == 1.0


@pytest.mark.parametrize("suite", ["understanding", "generation"])
def test_published_rows_are_cited_and_set_apart(suite):
    rows = leaderboard.published_rows(suite)
    assert rows
    for row in rows:
        assert "arXiv:2601.15369v" in row["source"] or "arXiv:2510.11690" in row["source"]
        assert any(place in row["source"] for place in ("Table", "abstract", "project page"))
    assert all(metric["result_file"] is None for row in rows for metric in row["metrics"].values())
    (config,) = chosen_suites(suite)
    content = {"suite": suite, "preset": "demo", "commit": None, "date": None, "rows": rows}
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    grids.show(content, config, console)
    text = console.export_text()
    settings = {row["source"].rpartition(": ")[2] for row in rows}  # numbers of two do not compare
    assert text.count("published, not measured here: ") == len(settings) == 4
    assert "printed in" in text
    assert "OpenVision 3, arXiv:2601.15369v2, Table" in text


def test_real_benchmarks_fill_the_main_table_in_the_columns_of_the_published_rows():
    (suite,) = chosen_suites("understanding")
    published = leaderboard.published_rows("understanding")
    metric = published[0]["metrics"]["SEED-Bench"]
    keys = [key for task in TASK_SETS["paper"] for key in BENCHMARKS[task].keys]
    row = {"encoder": "a", "kind": "measured", "source": "", "not_run": {}}
    row["metrics"] = dict.fromkeys(keys, metric)
    content = {"suite": suite.name, "preset": "paper", "rows": [row, *published]}
    main, *others = grids.grids(content, suite, with_appendix=True)
    columns = [heading.split(" ")[0] for heading in main.header]
    assert columns == [
        "encoder", "SEED-Bench", "POPE/f1/official", "MME-P", "MME-C", "GQA", "ScienceQA", "ScienceQA-IMG",
    ]  # fmt: skip
    for grid in others:
        if grid.is_published:
            assert {heading.split(" ")[0] for heading in grid.header[1:-1]} <= set(columns)
    assert grids.OTHER not in [grid.title for grid in others]


def test_published_figures_are_the_papers():
    boards = {suite: leaderboard.published_rows(suite) for suite in ("understanding", "generation")}

    def value(suite, encoder, key, part):
        (row,) = [row for row in boards[suite] if row["encoder"] == encoder and part in row["source"]]
        return row["metrics"][key]["value"]

    assert value("understanding", "OpenVision 3 B", "SEED-Bench", "v2, Table 4") == 63.1
    assert value("understanding", "OpenVision 3 B", "SEED-Bench", "v1, abstract") == 62.4
    assert value("generation", "OpenVision 3 + RAE", "gFID", "v2, Table 3") == 1.87
    assert value("generation", "OpenVision 3 + RAE", "gFID", "v1, abstract") == 1.89
    assert value("generation", "OpenVision 3 B", "PSNR", "v2, Table 2: reconstruction of ImageNet") == 30.92
    assert value("generation", "OpenVision 3 B", "rFID", "v2, Table 2: reconstruction of COCO") == 1.601
    without = "OpenVision 3 B without VAE (B/16 on pixels)"
    assert value("generation", without, "gFID", "100 epochs") == 9.68
    assert value("understanding", without, "SEED-Bench", "LLaVA-NeXT") == 62.0
    assert value("understanding", "OpenVision 3 L", "POPE/f1/official", "Table 5: LLaVA-NeXT") == 86.6


def test_seeds_give_mean_deviation_and_number_and_equal_stages_count_once():
    def content(value, fingerprint):
        fields = {"value": value, "stderr": 3.0, "unit": "%", "higher_is_better": True, "num_samples": 9}
        return {**fields, "fingerprint": fingerprint}

    names = ["seed0.json", "seed1.json", "seed2.json"]
    metric = leaderboard.aggregate([content(v, str(v)) for v in (1.0, 2.0, 6.0)], names)
    assert (metric["value"], metric["num_seeds"], metric["stderr"]) == (3.0, 3, pytest.approx(3.0))
    assert metric["std"] == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert metric["result_files"] == names
    same = leaderboard.aggregate([content(5.0, "one")] * 3, names)
    assert (same["value"], same["num_seeds"], same["std"]) == (5.0, 1, None)
    assert "result_files" not in same


def test_a_benchmark_that_failed_in_a_complete_stage_is_not_run_with_its_reason(tmp_path):
    row, stage = make_row(tmp_path, "a", metrics(25.0, 3.0, 50.0))
    done = stage.done()
    del done["result"]["metrics"]["PSNR"]
    done["result"]["not_run"] = {"PSNR": "no pictures", "MME-P": "parquet cut off", "rFD-lite0": "stale"}
    (stage.folder / "DONE.json").write_text(json.dumps(done))
    content, _ = make_board(tmp_path, [(row, stage)])
    built = content["rows"][0]
    assert built["not_run"] == {"PSNR": "no pictures", "MME-P": "parquet cut off"}
    assert "rFD-lite0" in built["metrics"] and "PSNR" not in built["metrics"]


def test_a_seed_that_failed_stands_in_the_row(tmp_path):
    pairs = [make_row(tmp_path, name, metrics(25.0, 3.0, 50.0)) for name in ("a", "b")]
    ends = (Outcome("done"), Outcome("failed", "killed"))
    rows = [
        collect(row, {stage.folder: end}, tmp_path / "results", dataclasses.replace(IDENTITY, seed=seed))
        for seed, ((row, stage), end) in enumerate(zip(pairs, ends, strict=True))
    ]
    board = leaderboard.build(SUITE, "demo", [merge_seeds(rows)], tmp_path / "results")
    (row,) = (row for row in board["rows"] if row["kind"] != "published")
    assert row["metrics"]["PSNR"]["num_seeds"] == 1 and row["not_run"] == {}
    assert row["incomplete"]["PSNR"] == "1 of 2 seeds; another: killed"
    assert "- a: PSNR, rFD-lite0, yes: 1 of 2 seeds; another: killed" in grids.markdown(board, SUITE)


def test_a_number_that_one_seed_has_is_not_not_run():
    rows = [
        {"encoder": "a", "files": {"PSNR": ["0"]}, "not_run": {"SSIM": "killed"}},
        {"encoder": "a", "files": {"SSIM": ["1"]}, "not_run": {"PSNR": "killed", "LPIPS": "no weights"}},
    ]
    merged = merge_seeds(rows)
    assert merged["files"] == {"PSNR": ["0"], "SSIM": ["1"]}
    assert merged["not_run"] == {"LPIPS": "no weights"}
    assert merged["incomplete"] == {
        "PSNR": "1 of 2 seeds; another: killed",
        "SSIM": "1 of 2 seeds; another: killed",
    }


def test_stars_and_seeds_show_in_the_cells():
    row = {"encoder": "ov3-demo", "kind": "measured", "source": "", "not_run": {}}
    metric = {"value": 43.5, "stderr": 1.5, "std": None, "num_seeds": 1, "unit": "%"}
    metric |= {"higher_is_better": True, "num_samples": 9, "result_file": "x"}
    seeds = metric | {"std": 0.7, "num_seeds": 2}
    row["metrics"] = {"Scenes-SEED": metric, "Scenes-POPE/f1/official": seeds}
    pair = {"encoder": "ov3-demo", "key": "Scenes-SEED", "low": 0.2, "high": 3.0}
    level = pair | {"key": "Scenes-POPE/f1/official", "low": -0.2}
    about = {"baseline": "clip-demo", "confidence_percent": 95, "num_resamples": 2000}
    content = {"preset": "demo", "commit": None, "date": None, "rows": [row]}
    (config,) = chosen_suites("understanding")
    text = grids.markdown(content | {"comparisons": {**about, "pairs": [pair, level]}}, config)
    assert "| ov3-demo | 43.5\\* ± 1.5 | 43.5 ± 0.7 (n=2) |" in text
    assert "differs from clip-demo" in text
    assert "\\*" not in grids.markdown(content, config)


def test_names_become_safe_paths():
    assert slug("timm:vit_small/patch16") == "timm_vit_small_patch16"
    assert slug("../../etc") == "_.._etc"
    assert slug("Scenes-SEED/Instance Identity", keep="/") == "Scenes-SEED/Instance_Identity"
