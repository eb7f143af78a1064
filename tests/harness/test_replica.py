"""A replica's data sets, opened by the loaders of others: torchvision, datasets, lmms-eval, webdataset."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import datasets
import lmms_eval
import numpy as np
import pytest
import webdataset
import yaml
from PIL import Image
from torchvision.datasets import ImageFolder

import harness.replica
from encoder.runtime.config import ConfigError, load
from harness.replica import __main__ as command
from harness.replica import benchmarks, imagenet, llava, llava_next, shards, yes_no
from harness.replica.config import ReplicaConfig
from harness.replica.mark import MARK, README, is_marked, write_mark
from harness.replica.write import write
from llava_bridge.benchmark_table import BENCHMARKS, PAPER
from llava_bridge.benchmarks import find_parquet

TASKS = Path(lmms_eval.__file__).parent / "tasks"
SMALL = ReplicaConfig(
    num_classes=2, train_pictures=6, val_pictures=4, pretrain_records=5, mix_records=12, questions=1,
    num_shards=3, shard_samples=13, networks=False, next_records=19,
)  # fmt: skip
YAMLS = {
    "seedbench/seedbench.yaml": "SEED-Bench",
    "pope/pope.yaml": "POPE",
    "pope/pope_adv.yaml": "POPE",
    "pope/pope_random.yaml": "POPE",
    "mme/mme.yaml": "MME",
    "gqa/gqa.yaml": "GQA",
    "scienceqa/scienceqa.yaml": "ScienceQA",
    "scienceqa/scienceqa_img.yaml": "ScienceQA",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The data sets alone: no network is written."""
    root = tmp_path_factory.mktemp("replica")
    for make in (imagenet.write, llava.write_pretrain, llava.write_mix, benchmarks.write, shards.write,
                 llava_next.write_open_mix, llava_next.write_next_mix):  # fmt: skip
        make(root, SMALL)
    return root


class _Yaml(yaml.SafeLoader):
    """lmms-eval's YAML; `!function utils.x` stays a word."""


_Yaml.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def _functions(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tasks_{path.parent.name}", path.parent / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rows(root: Path, name: str, config: str | None, split: str, cache: Path) -> datasets.Dataset:
    folder = str(root / benchmarks.FOLDER / name)
    return datasets.load_dataset(folder, config, split=split, cache_dir=str(cache))


@pytest.mark.parametrize("path", YAMLS)
def test_lmms_eval_asks_and_scores_our_rows(data, tmp_path, path):
    task = yaml.load((TASKS / path).read_text(), _Yaml)
    assert task["dataset_path"].endswith(f"/{YAMLS[path]}")
    functions = _functions(TASKS / path)
    rows = _rows(data, YAMLS[path], task.get("dataset_name"), task["test_split"].strip(), tmp_path)
    if YAMLS[path] == "GQA":  # what its process_docs does, from the folder in place of the hub
        pictures = _rows(data, "GQA", "testdev_balanced_images", "testdev", tmp_path)
        by_name = {row["id"]: row["image"] for row in pictures}
        rows = [row | {"image": by_name[row["imageId"]]} for row in rows]

    def call(key: str, *arguments: object) -> object:
        return getattr(functions, task[key].removeprefix("utils."))(*arguments)

    words = task.get("lmms_eval_specific_kwargs", {}).get("default")
    assert len(rows) > 0
    for row in rows:
        asked = call("doc_to_text", row, *([words] if words else []))
        assert row["question"].removesuffix(" Please answer yes or no.") in asked
        pictures = call("doc_to_visual", row)
        assert all(picture.mode == "RGB" for picture in pictures)
        assert len(pictures) == 1 or row.get("data_type") == "video" or row["image"] is None
        target = task["doc_to_target"]
        answer = row[target] if target in row else call("doc_to_target", row)
        if "process_results" not in task:
            continue
        (first, *_) = call("process_results", row, [answer]).values()
        if isinstance(first, dict) and "pred" in first:
            assert functions.seed_aggregation_result([first]) == 1
        else:
            assert (first["score"] if isinstance(first, dict) else first) == 1.0


def test_the_answers_of_each_benchmark_are_balanced_as_published(data, tmp_path):
    mme = _rows(data, "MME", None, "test", tmp_path).select_columns(["question_id", "answer", "category"])
    pairs: dict[str, list] = {}
    for row in mme:
        pairs.setdefault(row["question_id"], []).append(row["answer"])
    assert len(pairs) == len(yes_no.MME_TOPICS)
    assert all(sorted(answers) == ["No", "Yes"] for answers in pairs.values())
    pope = _rows(data, "POPE", None, "test", tmp_path).select_columns(["category", "answer"])
    counts = {(row["category"], row["answer"]): 0 for row in pope}
    for row in pope:
        counts[row["category"], row["answer"]] += 1
    assert set(counts) == {(name, answer) for name in yes_no.POPE_SETTINGS for answer in ("yes", "no")}
    assert len(set(counts.values())) == 1
    full = _rows(data, "ScienceQA", "ScienceQA-FULL", "test", tmp_path)
    pictured = _rows(data, "ScienceQA", "ScienceQA-IMG", "test", tmp_path)
    with_picture = [row for row in full if row["image"] is not None]
    assert 0 < len(with_picture) == len(pictured) < len(full)


def test_columns_have_the_types_of_the_cards(data, tmp_path):
    seed = _rows(data, "SEED-Bench", None, "test", tmp_path).features
    assert seed["image"] == datasets.List(datasets.Image())
    assert seed["question_type_id"].dtype == "int16"
    science = _rows(data, "ScienceQA", "ScienceQA-IMG", "test", tmp_path).features
    assert list(science) == [
        "image", "question", "choices", "answer", "hint", "task", "grade", "subject", "topic", "category",
        "skill", "lecture", "solution",
    ]  # fmt: skip
    assert science["answer"].dtype == "int8"
    assert list(_rows(data, "MME", None, "test", tmp_path).features) == [
        "question_id", "image", "question", "answer", "category",
    ]  # fmt: skip


@pytest.mark.parametrize("task", PAPER)
def test_the_evaluation_finds_its_files(data, task):
    files = find_parquet(BENCHMARKS[task], task, data / benchmarks.FOLDER)
    assert all(path.name.startswith(f"{BENCHMARKS[task].split}-") for path in files)


def test_folders_of_synsets_open_as_torchvision_s(data):
    for split, num in (("train", SMALL.train_pictures), ("val", SMALL.val_pictures)):
        pictures = ImageFolder(data / imagenet.FOLDERS / split)
        assert pictures.classes == ["n01440764", "n01443537"]
        assert np.bincount(pictures.targets).tolist() == [num, num]
        assert len({pictures[place][0].size for place in range(num)}) > 2
        first = [Image.open(path) for path, label in pictures.samples if label == 0]
        assert sorted((image.format, image.mode) for image in first)[:3] == [
            ("JPEG", "CMYK"), ("JPEG", "L"), ("JPEG", "RGB"),
        ]  # fmt: skip
        assert sum(image.format == "PNG" for image in first) == 1


def test_the_hub_s_parquet_of_imagenet_holds_the_same_pictures(data, tmp_path):
    rows = datasets.load_dataset(str(data / imagenet.PARQUET), split="validation", cache_dir=str(tmp_path))
    assert rows.features["label"].names == ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    folder = data / imagenet.FOLDERS / "val"
    assert sorted(np.asarray(row["image"].convert("RGB")).sum() for row in rows) == sorted(
        np.asarray(Image.open(path).convert("RGB")).sum() for path in folder.rglob("*.JPEG")
    )


@pytest.mark.parametrize(
    ("folder", "file", "pictures"),
    [
        (llava.PRETRAIN, llava.PRETRAIN_JSON, llava.PRETRAIN + "/images"),
        (llava.MIX, llava.MIX_JSON, llava.MIX),
        (llava_next.OPEN, llava_next.OPEN_JSON, llava_next.OPEN),
    ],
)
def test_llava_s_records_name_pictures_that_are_there(data, folder, file, pictures):
    records = json.loads((data / folder / file).read_text())
    named = [record for record in records if "image" in record]
    for record in named:
        Image.open(data / pictures / record["image"]).verify()
        assert sum(turn["value"].count("<image>") for turn in record["conversations"]) == 1
        assert "<image>" in record["conversations"][0]["value"]
    for record in records:
        senders = [turn["from"] for turn in record["conversations"]]
        asked = senders if senders[0] == "human" else senders[1:]
        assert asked == ["human", "gpt"] * (len(asked) // 2)
    if folder != llava.PRETRAIN:
        places = {str(Path(record["image"]).parent) for record in named}
        assert places == set({llava.MIX: llava.NAMES, llava_next.OPEN: llava_next.NAMES}[folder])
        alone = {record["conversations"][0]["from"] for record in records if "image" not in record}
        assert alone == {"gpt", "human"}


def test_llava_next_s_rows_hold_their_pictures_and_those_of_text_come_last(data, tmp_path):
    rows = datasets.load_dataset(str(data / llava_next.NEXT), split="train", cache_dir=str(tmp_path))
    assert list(rows.features) == ["id", "conversations", "data_source", "image"]
    assert rows.features["image"] == datasets.Image()
    assert rows.features["conversations"] == datasets.List(
        {"from": datasets.Value("string"), "value": datasets.Value("string")}
    )
    pictures = [row["image"] for row in rows]
    assert [picture is not None for picture in pictures] == [True] * 19 + [False] * 3
    assert len({picture.size for picture in pictures[:19]}) > 3
    for row in rows:
        senders = [turn["from"] for turn in row["conversations"]]
        assert senders == ["human", "gpt"] * (len(senders) // 2)
        held = sum(turn["value"].count("<image>") for turn in row["conversations"])
        assert held == (row["image"] is not None)
    assert {row["data_source"] for row in rows} == {"llava-next-instruct"}


def test_shards_open_as_webdataset_s_with_a_row_for_each_address(data):
    folder = data / shards.FOLDER / "train"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"0000{n}{end}" for n in (0, 1) for end in (".parquet", ".tar", "_stats.json")]
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(samples) == 24
    assert len({sample["__key__"] for sample in samples}) == 24
    for sample in samples:
        assert sample["jpg"].size == (sample["json"]["width"], sample["json"]["height"])
        assert sample["txt"] == sample["json"]["caption"] == sample["json"]["org_caption"]
        assert len(sample["json"]["re_caption"]) > 10
    stats = json.loads((folder / "00001_stats.json").read_text())
    rows = datasets.load_dataset("parquet", data_files=str(folder / "00001.parquet"), split="train").to_list()
    assert (stats["count"], stats["successes"]) == (13, 12)
    assert [row["status"] for row in rows].count("success") == 12


def test_every_source_says_that_it_is_a_replica(data):
    for folder in (imagenet.FOLDERS, imagenet.PARQUET, llava.PRETRAIN, llava.MIX, shards.FOLDER):
        assert "Replica" in (data / folder / README).read_text()
    for folder in (data / benchmarks.FOLDER).iterdir():
        assert "Replica" in (folder / README).read_text()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        llava.write_mix(tmp_path / name, load(ReplicaConfig, {"seed": seed, "mix_records": 6}))

    def content(name: str) -> dict[str, bytes]:
        folder = tmp_path / name
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}

    assert content("a") == content("b") != content("c")


def test_a_folder_that_holds_something_is_refused(tmp_path, capsys):
    (tmp_path / "results.txt").write_text("mine")
    assert command.main([str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert not is_marked(tmp_path)


def test_the_mark_is_there_from_the_start(tmp_path):
    lines = write(tmp_path / "new", SMALL)
    next(lines)
    assert is_marked(tmp_path / "new")
    assert json.loads((tmp_path / "new" / MARK).read_text())["complete"] is False
    write_mark(tmp_path, 0, {}, complete=True)
    assert is_marked(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["num_clases=3"], "did you mean 'num_classes'"),
        (["num_classes=17"], "at most 16"),
        (["num_shards=1"], "at least 2"),
        (["train_pictures=0"], "at least 1"),
        (["seed=x"], "expected int"),
    ],
)
def test_a_wrong_size_is_one_line(tmp_path, capsys, words, message):
    assert command.main([str(tmp_path / "new"), *words]) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    with pytest.raises(ConfigError):
        load(ReplicaConfig, overrides=words)


def test_the_wing_imports_none_of_our_readers():
    """Scenes draws and words, the runtime writes; what reads these layouts is tested against them."""
    allowed = ("encoder.data.scenes", "encoder.runtime", "harness.replica")
    for path in Path(harness.replica.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            ours = [
                name
                for name in names
                if name.partition(".")[0] in ("encoder", "harness", "llava_bridge", "rae_bridge")
            ]
            assert all(name.startswith(allowed) for name in ours), (path, ours)
