"""Scenes on disk: shards, LLaVA JSON, parquet, text, card."""

import importlib.util
import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoder.data.options import ScenesConfig
from encoder.data.scenes.objects import KINDS
from encoder.data.scenes.render import make_scene, render
from encoder.data.scenes.write import _mapper, run
from encoder.data.shards import find_shards, load_images, read_samples
from encoder.runtime.config import ConfigError, load

CONFIG = ScenesConfig(
    image_size=64, num_train=25, num_val=5, num_test=10, num_llava_images=6, num_text=12,
    num_seed_questions=4, num_pope_pairs=3, seed=2, shard_size=10,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return folder, run(CONFIG, folder)


def lmms_functions(task):
    """lmms-eval's own functions of a task, without importing the rest of lmms-eval."""
    package = Path(importlib.util.find_spec("lmms_eval").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(f"lmms_{task}", package / "tasks" / task / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_parquet(path, cache):
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    import datasets

    return datasets.load_dataset("parquet", data_files={"test": str(path)}, cache_dir=str(cache))["test"]


def test_shards_hold_the_layout_of_img2dataset(world):
    folder, _ = world
    shards = find_shards(folder, "train")
    assert [shard.name for shard in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    samples = list(read_samples(folder, "train"))
    assert [sample.key for sample in samples] == [f"{i:09d}" for i in range(25)]
    for index, sample in enumerate(samples):
        scene, record = make_scene(2, index, "train"), sample.record
        assert np.array_equal(sample.pixels, render(scene, 64))
        assert record["scene"] == scene.truth()
        assert record["class_name"] == KINDS[record["label"]] == scene.items[0].kind
        assert (record["width"], record["height"], record["key"]) == (64, 64, sample.key)
        assert record["txt"] == record["org_caption"]
        assert len(record["re_caption"]) > len(record["org_caption"])


def test_load_images_stops_at_the_limit(world):
    pixels, records = load_images(world[0], "test", 7)
    assert pixels.shape == (7, 64, 64, 3)
    assert [record["key"] for record in records] == [f"{i:09d}" for i in range(7)]


def test_llava_records_point_at_pictures(world):
    folder, _ = world
    pretrain = json.loads((folder / "llava/pretrain.json").read_text())
    instruct = json.loads((folder / "llava/instruct.json").read_text())
    assert len(pretrain) == len(instruct) == 6
    for record in [*pretrain, *instruct]:
        assert Image.open(folder / "llava" / record["image"]).size == (64, 64)
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert turns[0]["value"].startswith("<image>")
        assert sum("<image>" in turn["value"] for turn in turns) == 1


def test_seed_parquet_passes_through_lmms_evals_functions(world, tmp_path):
    rows = load_parquet(world[0] / "lmms/scenes_seed.parquet", tmp_path)
    functions = lmms_functions("seedbench")
    assert len(rows) == 36
    assert sorted(set(rows["question_type_id"])) == list(range(1, 10))
    for row in rows:
        (picture,) = functions.seed_doc_to_visual(row)
        assert picture.size == (64, 64)
        assert functions.seed_doc_to_text(row).startswith(f"{row['question']}\nA. {row['choice_a']}\n")
        assert functions.seed_process_result(row, [row["answer"]])["seed_image"]["pred"] == row["answer"]


def test_pope_parquet_passes_through_lmms_evals_functions(world, tmp_path):
    rows = load_parquet(world[0] / "lmms/scenes_pope.parquet", tmp_path)
    functions = lmms_functions("pope")
    assert len(rows) == 18
    assert set(rows["category"]) == {"random", "popular", "adversarial"}
    for row in rows:
        assert functions.pope_doc_to_visual(row)[0].size == (64, 64)
        assert functions.pope_doc_to_text(row, {}).startswith("Is there a")
        assert functions.pope_process_results(row, [row["answer"]])["pope_accuracy"]["score"] == 1.0


def test_training_prompts_are_those_of_lmms_eval(world, tmp_path):
    row = load_parquet(world[0] / "lmms/scenes_seed.parquet", tmp_path)[0]
    from encoder.data.scenes.conversations import letter_prompt

    options = tuple(row[f"choice_{letter}"] for letter in "abcd")
    assert letter_prompt(row["question"], options) == lmms_functions("seedbench").seed_doc_to_text(row)


def test_text_rows_are_conversations_or_captions(world):
    rows = [json.loads(line) for line in (world[0] / "text.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert all(("text" in row) != ("conversations" in row) for row in rows)


def test_card_counts_what_was_written(world):
    folder, result = world
    card = json.loads((folder / "card.json").read_text())
    assert card["counts"]["train"] == 25
    assert card["counts"]["seed_questions"] == 36
    assert card["sha256"] == result["sha256"]
    assert Image.open(folder / "contact_sheet.png").width > 1000


def test_the_same_config_gives_the_same_bytes_with_more_workers(world, tmp_path):
    assert run(replace(CONFIG, num_workers=2), tmp_path)["sha256"] == world[1]["sha256"]


def test_a_second_run_keeps_complete_shards_and_mends_the_others(world, tmp_path):
    small = replace(CONFIG, num_llava_images=0, num_text=0, num_seed_questions=0, num_pope_pairs=0)
    first = run(small, tmp_path)
    kept, lost = tmp_path / "train/00000.tar", tmp_path / "train/00001.tar"
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    assert run(small, tmp_path)["sha256"] == first["sha256"]
    assert kept.stat().st_mtime_ns == stamp


def test_a_killed_drawing_process_is_named():
    with pytest.raises(OSError, match="one of 2 drawing processes was killed"), _mapper(2) as mapper:
        list(mapper(signal.raise_signal, [signal.SIGKILL]))


def test_another_seed_in_the_same_folder_is_written_anew(tmp_path):
    small = replace(
        CONFIG, num_train=4, num_llava_images=0, num_text=0, num_seed_questions=0, num_pope_pairs=0
    )
    assert run(small, tmp_path)["sha256"] != run(replace(small, seed=3), tmp_path)["sha256"]


def test_pictures_are_png_files(world):
    import tarfile

    with tarfile.open(world[0] / "val/00000.tar") as tar:
        names = tar.getnames()
        assert names[:3] == ["000000000.json", "000000000.png", "000000000.txt"]
        assert Image.open(io.BytesIO(tar.extractfile(names[1]).read())).format == "PNG"


@pytest.mark.parametrize(
    ("override", "message"),
    [("image_size=32", "64 to 512"), ("shard_size=0", "shard_size"), ("num_trian=3", "num_train")],
)
def test_wrong_configs_are_refused(override, message):
    names = ("num_train", "num_val", "num_test", "num_llava_images", "num_text")
    values = {"image_size": 64} | dict.fromkeys(names, 1)
    values |= {"num_seed_questions": 4, "num_pope_pairs": 1}
    with pytest.raises(ConfigError, match=message):
        load(ScenesConfig, values, [override])
