"""Model cards: the hub's own loaders read them, their numbers are the result files', nothing else gets in."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index

from encoder.runtime.config import ConfigError, dump
from harness.command_line import main
from harness.config import parse
from harness.tables import model_card
from harness.tables.model_index import Shown, data_set_of, metric_of, model_index, task_of
from harness.tables.results_folder import RUN_CONFIG
from harness.verify import verify
from llava_bridge.benchmark_table import BENCHMARKS

REAL = {"released": {"ov3-b": {}}}  # a preset on real sources
OWN = {"own_data": {"source": "mine"}}


@pytest.fixture
def results(make_results):
    """Both suites' folders of preset=demo, with the config that a run leaves there."""
    folder = make_results().results
    for suite in ("understanding", "generation"):
        dump({"seeds": [0], "preset": parse(["preset=demo"])[1]}, folder / suite / RUN_CONFIG)
    return folder


def change_row(results, suite, **fields):
    """The first row of a leaderboard with other fields."""
    path = results / suite / "leaderboard.json"
    board = json.loads(path.read_text())
    board["rows"][0] |= fields
    path.write_text(json.dumps(board))
    return board["rows"][0]


def test_the_hubs_loaders_read_the_numbers_of_the_result_files(results, capsys):
    assert main(["card", str(results), "ov3-demo"]) == 0
    path = results / "cards" / "ov3-demo.md"
    assert capsys.readouterr().out.split() == [str(path)]
    card = ModelCard.load(path)  # strict: a model-index that it cannot parse is an error
    found = {each.metric_name: each for each in card.data.eval_results}
    assert card.data.model_name == "ov3-demo" and card.data.pipeline_tag == "image-feature-extraction"
    for suite, key in (("generation", "PSNR"), ("generation", "gFD-lite0"), ("understanding", "Scenes-SEED")):
        content = json.loads((results / suite / "values" / "ov3-demo" / "seed0" / f"{key}.json").read_text())
        assert found[key].metric_value == pytest.approx(content["value"], rel=1e-5)
    assert not any(each.verified for each in found.values())
    assert {found["PSNR"].task_type, found["gFD-lite0"].task_type, found["Scenes-SEED"].task_type} == {
        "image-to-image", "image-generation", "visual-question-answering",
    }  # fmt: skip
    assert "IS-lite0" not in found and "IS-lite0" in card.text  # the appendix stays in the tables
    again = eval_results_to_model_index("ov3-demo", card.data.eval_results)
    assert metadata_load(path)["model-index"] == again  # nothing in it that the hub's own writer would drop
    assert set(card.data.metrics) == {each.metric_type for each in card.data.eval_results}


def test_the_text_shows_its_neighbours_and_how_it_was_made(results):
    card = ModelCard.load(model_card.write(results, "ov3-demo")).text
    main_table = card.partition("## Understanding")[2].partition("###")[0]
    assert "| ov3-demo | **" in main_table and "| clip-demo |" in main_table and "| blind |" in main_table
    assert "clip-demo" not in card.partition("### Scenes-SEED by question")[2].partition("## How")[0]
    content = json.loads((results / "generation/values/ov3-demo/seed0/PSNR.json").read_text())
    for fact in (content["commit"], content["source"], content["config_hash"][:12], content["stage"]):
        assert str(fact) in card
    assert "python harness/run.py suite=generation preset=demo" in card


def test_a_row_without_some_numbers_says_why_and_keeps_them_out_of_the_metadata(results):
    row = change_row(results, "generation", not_run={"KID-lite0": "disk full"})
    row["metrics"]["PSNR"]["value"] = None
    change_row(results, "generation", metrics=row["metrics"])
    card = ModelCard.load(model_card.write(results, "ov3-demo"))
    assert "- ov3-demo: KID-lite0: disk full" in card.text
    assert "PSNR" not in [each.metric_name for each in card.data.eval_results]


def test_a_rehearsals_card_says_so_and_has_no_numbers_for_the_hub(results):
    change_row(results, "generation", rehearsal=True)
    card = ModelCard.load(model_card.write(results, "ov3-demo"))
    assert card.data.eval_results is None and "model-index" not in card.data
    assert "**A rehearsal**" in card.text.partition("##")[0]


def test_verify_makes_every_card_again(results):
    path = model_card.write(results, "ov3-demo")
    assert verify(results).faults == []
    path.write_text(path.read_text().replace("value: 25.4", "value: 27.4"))
    (fault,) = verify(results).faults
    assert fault.startswith(f"{path}: not what the result files give")
    assert verify(results / "generation").faults == []  # of one suite alone a card cannot be made


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ov3"], "unknown encoder with measured rows 'ov3' (did you mean 'ov3-demo'?)"),
        (["blind"], "unknown encoder with measured rows 'blind'"),
        ([], "card takes a preset's results folder and an encoder"),
    ],
)
def test_a_card_of_nothing_is_one_line(results, words, said, capsys):
    assert main(["card", str(results), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (results / "cards").exists()


def test_a_folder_of_several_presets_or_without_its_config_is_refused(results, make_results):
    make_results("b")
    with pytest.raises(ConfigError, match="holds several: name one of"):
        model_card.write(results.parents[2], "ov3-demo")
    (results / "generation" / RUN_CONFIG).unlink()
    with pytest.raises(ValueError, match=r"generation/config.yaml: not there; run its suite again"):
        model_card.write(results, "ov3-demo")


@pytest.mark.parametrize(
    ("suite", "key", "preset", "data_set", "task", "metric"),
    [
        ("understanding", "POPE/f1/official", REAL, "lmms-lab-encoder/POPE", "visual", "f1"),
        ("understanding", "MME-P", REAL, "lmms-lab-encoder/MME", "visual", "score"),
        ("understanding", "ScienceQA-IMG", REAL, "lmms-lab-encoder/ScienceQA", "visual", "acc"),
        ("understanding", "my_task/x", REAL, "my_task", "visual", "accuracy"),
        ("understanding", "Own-Captions", OWN, "own-pictures", "visual", "accuracy"),
        ("generation", "rFID", REAL, "ILSVRC/imagenet-1k", "image-to-image", "fid"),
        ("generation", "gFID", REAL, "ILSVRC/imagenet-1k", "image-generation", "fid"),
        ("generation", "rFD-lite0", {}, "scenes", "image-to-image", "rfd_lite0"),
        ("generation", "scene-centric/rFD-lite0", {}, "scenes", "image-to-image", "scene_centric_rfd_lite0"),
        ("generation", "scene-centric/PSNR", {}, "scenes", "image-to-image", "scene_centric_psnr"),
        ("generation", "scene-centric/gFD-lite0", {}, "scenes", "image-generation", "scene_centric_gfd"),
        ("generation", "IS", {}, "scenes", "image-generation", "inception_score"),
        ("generation", "LPIPS", {}, "scenes", "image-to-image", "lpips"),
    ],
)  # fmt: skip
def test_each_number_stands_under_its_task_and_data_set(suite, key, preset, data_set, task, metric):
    unit = {"score": "points", "acc": "%", "accuracy": "%", "f1": "%"}.get(metric, "")
    found = data_set_of(suite, key, {"reference": {"split": "val"}, **preset})
    assert found["type"] == data_set and found["name"]
    splits = {each.data_set: each.split for each in BENCHMARKS.values()}
    of_benchmark = splits.get(found["name"]) if preset is REAL else None
    assert found.get("split") == ("val" if suite == "generation" else of_benchmark)
    assert task_of(suite, key)["type"].startswith(task)
    assert metric_of(key, unit).startswith(metric)


def test_a_guided_row_is_told_apart_and_yaml_keeps_odd_names():
    metric = {"value": 2.345678, "unit": ""}
    preset = {"reference": {}, "released": {"x": {}}}
    name = "timm:vit: tiny # 'ö'"
    about = {"suite": "generation", "key": "gFID", "metric": metric, "preset": preset}
    index = model_index(name, [Shown(**about), Shown(**about, row="guided")])
    (result,) = yaml.safe_load(yaml.safe_dump(index))[0]["results"]
    assert [each["name"] for each in result["metrics"]] == ["gFID", "gFID (guided)"]
    assert [each["value"] for each in result["metrics"]] == [2.34568, 2.34568]
    assert ModelCard(f"---\n{yaml.safe_dump({'model-index': index})}---\n").data.model_name == name
