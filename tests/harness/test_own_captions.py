"""One's own captions as LLaVA's data and as questions: groups that words alone cannot answer, and the whole
way through the understanding suite with no Scenes."""

import importlib
import json
import os
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from encoder.runtime.config import ROOT
from harness.command_line import make_plans
from harness.config import parse
from harness.own_data import OwnDataConfig, list_source
from harness.own_data import run as pack
from harness.own_data.questions import Captioned, OwnCaptionsConfig, run, twin_groups
from harness.running.stages import Graph
from llava_bridge.data import read_records

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200), "yellow": (200, 200, 40)}


@pytest.fixture
def folder(tmp_path):
    """Sixteen flat pictures of each of four colours, with a caption in the demo language model's words."""
    for colour, value in COLOURS.items():
        (tmp_path / "mine" / colour).mkdir(parents=True)
        for index in range(16):
            path = tmp_path / "mine" / colour / f"{index}.png"
            shade = np.clip(np.array(value) + index, 0, 255).astype(np.uint8)
            Image.fromarray(np.broadcast_to(shade, (32, 32, 3)).copy()).save(path)
            path.with_suffix(".txt").write_text(f"a {colour} ball {'in a room' if index % 2 else ''}\n")
    return tmp_path / "mine"


@pytest.fixture
def packed(folder, tmp_path):
    config = OwnDataConfig(source=str(folder), listing=list_source(str(folder)).digest, image_size=32)
    (tmp_path / "packed").mkdir()
    pack(config, tmp_path / "packed")
    return tmp_path / "packed"


def planned(tmp_path, *words):
    options, preset = parse([f"runs_dir={tmp_path / 'runs'}", "suite=understanding", *words])
    graph = Graph(options.runs_dir)
    (plan,) = make_plans(graph, options, preset)
    return graph, plan


@pytest.mark.parametrize("num_captions", [4, 7, 1000])
def test_words_alone_answer_one_question_of_four(num_captions):
    draw = random.Random(1)
    captions = [
        f"caption {min(draw.randrange(num_captions), draw.randrange(num_captions))}" for _ in range(400)
    ]
    pictures = [Captioned(str(i), b"", caption) for i, caption in enumerate(captions)]
    groups = twin_groups(pictures, seed=0)
    asked = [picture.key for group in groups for picture in group]
    assert len(asked) == len(set(asked)) > 50
    for group in groups:
        options = [picture.caption for picture in group]
        assert len(set(options)) == 4
        likeliest = min(options, key=hash)  # whatever a reader of words prefers, it prefers in all four
        assert [option == likeliest for option in options].count(True) == 1
    assert twin_groups(pictures, seed=0) == groups != twin_groups(pictures, seed=1)


def test_pictures_become_records_and_questions(packed, tmp_path):
    out = tmp_path / "captions"
    out.mkdir()
    counts = run(OwnCaptionsConfig(data=str(packed)), out)
    first, second = (read_records([out / "llava" / f"{name}.json"]) for name in ("pretrain", "instruct"))
    assert first == second and len(first) == counts["num_train"]
    assert counts["num_train"] + counts["num_test"] == 64
    for record in first:
        caption = record["conversations"][1]["value"]
        red, green, _ = Image.open(out / "llava" / record["image"]).getpixel((5, 5))
        assert ("red" in caption or "yellow" in caption) == (red > 150)
        assert ("green" in caption or "yellow" in caption) == (green > 150)
    import datasets  # reads the file as lmms-eval does

    file = str(out / "lmms" / "own_captions.parquet")
    rows = datasets.load_dataset("parquet", data_files={"test": file}, cache_dir=str(tmp_path / "cache"))[
        "test"
    ]
    assert len(rows) == counts["num_questions"] and len(rows) % 4 == 0
    for row in rows:
        (picture,) = row["image"]
        right = row[f"choice_{row['answer'].lower()}"]
        assert ("red" in right or "yellow" in right) == (picture.getpixel((5, 5))[0] > 150)
    assert run(OwnCaptionsConfig(data=str(packed), num_questions=5), out)["num_questions"] == 4


def test_too_few_different_captions_are_named(folder, tmp_path):
    for path in folder.glob("*/*.txt"):
        path.write_text("a picture")
    listing = list_source(str(folder)).digest
    (tmp_path / "packed").mkdir()
    pack(OwnDataConfig(source=str(folder), listing=listing, image_size=32), tmp_path / "packed")
    with pytest.raises(ValueError, match=r"no 4 of the \d+ test pictures have different captions; add some"):
        run(OwnCaptionsConfig(data=str(tmp_path / "packed")), tmp_path)
    with pytest.raises(ValueError, match="num_questions 3 must be 4 or more"):
        OwnCaptionsConfig(data="x", num_questions=3)


def test_a_plan_has_no_estimates_for_other_pictures_or_another_language_model(folder, tmp_path):
    def estimates(*words):
        graph, _ = planned(tmp_path, "encoders=[ov3-demo]", *words)
        chosen = [stage for stage in graph if stage.label.startswith("ov3-demo: ")]
        return {stage.name: (stage.seconds, stage.disk_mb) for stage in chosen}

    preset = estimates()
    assert all(min(pair) > 0 for pair in preset.values()) and len(preset) == 5
    none = dict.fromkeys(preset, (0.0, 0.0))
    assert estimates(f"own_data.source={folder}") == none
    words = ["seconds.llava_instruct=3600", "disk_mb.llava_instruct=9000"]
    given = estimates(f"own_data.source={folder}", *words)
    assert given == none | {"llava_instruct": (3600.0, 9000.0)}
    shutil.copytree(ROOT / "weights/demo/llama", tmp_path / "llm")
    other = estimates(f"llava.language_model={tmp_path / 'llm'}")
    assert other == none | {name: preset[name] for name in ("tokens", "probe")}


def test_own_captions_go_through_the_understanding_suite_with_no_scenes(folder, tmp_path, monkeypatch):
    words = [f"own_data.source={folder}", "own_data.image_size=32", "llava.align.num_epochs=0.2"]
    words += ["encoders=[module:examples.own_encoder:PatchColours]", "llava.instruct.num_epochs=0.2"]
    words += ["llava.align.batch_size=4", "llava.instruct.batch_size=4"]
    graph, plan = planned(tmp_path, *words)
    names = [stage.name for stage in graph]
    assert "own_captions" in names and "scenes" not in names
    assert all(stage.seconds > 0 and stage.disk_mb > 0 for stage in graph if stage.name.startswith("own_"))
    row = plan.rows[0]
    wanted = [stage for stage in graph if "blind" not in stage.label]
    monkeypatch.chdir(ROOT)
    before, results = dict(os.environ), {}
    for stage in wanted:
        stage.folder.mkdir(parents=True)
        module = importlib.import_module(stage.module)
        act = {"llava_bridge.train": "train", "llava_bridge.evaluate": "evaluate"}.get(stage.module, "run")
        results[stage.name] = getattr(module, act)(stage.config, stage.folder)
        for name in set(os.environ) - set(before):
            del os.environ[name]  # monkeypatch would set it again at the end
    result, probe = results["llava_evaluate"], results["probe"]
    assert (plan.rows[1].kind, plan.rows[1].parts[0].keys) == ("probe", tuple(probe["metrics"]))
    assert probe["metrics"]["Own-Captions"]["num_samples"] == result["metrics"]["Own-Captions"]["num_samples"]
    assert row.parts[0].keys == ("Own-Captions",) and "Own-Captions" in result["metrics"]
    lines = [json.loads(line) for line in row.parts[0].answers.read_text().splitlines()]
    assert result["metrics"]["Own-Captions"]["num_samples"] == len(lines) >= 4
    right = 100 * sum(line["is_correct"] for line in lines) / len(lines)
    assert result["metrics"]["Own-Captions"]["value"] == pytest.approx(right)
    assert len(lines[0]["response"]) == 4  # a loss for each caption
