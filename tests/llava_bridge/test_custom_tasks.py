"""lmms-eval YAMLs of one's own over local parquet: read without lmms-eval, scored by it, shown as it gives
them."""

import json
import os
import statistics

import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures

from llava_bridge.config import TOKENS_SEEN, EvaluateConfig
from llava_bridge.custom_tasks import find_task, read_numbers, read_task, refuse_equal_names
from llava_bridge.evaluate import evaluate, evaluate_all
from llava_bridge.model import build, save

YAML = """\
include: shared.yaml
task: colours
test_split: test
output_type: generate_until
doc_to_visual: !function scoring.visual
doc_to_text: !function scoring.question
doc_to_target: answer
process_results: !function scoring.score
generation_kwargs: {max_new_tokens: 4, until: ["\\n"]}
metric_list:
  - {metric: length, aggregation: mean, higher_is_better: false}
  - {metric: longest, aggregation: !function scoring.longest, higher_is_better: true}
"""
FILTERS = """\
filter_list:
  - {name: none, filter: [{function: take_first}]}
  - name: empty
    filter: [{function: regex, regex_pattern: "(never said)", fallback: ""}, {function: take_first}]
"""
SHARED = """\
dataset_path: parquet
dataset_kwargs:
  data_files: {test: data/*.parquet}
metadata: {version: 1.0}
"""
CODE = """\
def visual(doc):
    return [doc["image"].convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def score(doc, results):
    return {"length": float(len(results[0])), "longest": len(results[0]) + 0.5}


def longest(items):
    return max(items)
"""


@pytest.fixture
def folder(tmp_path):
    """A task of five questions in files of its own."""
    place = tmp_path / "mine"
    (place / "data").mkdir(parents=True)
    (place / "colours.yaml").write_text(YAML)
    (place / "shared.yaml").write_text(SHARED)
    (place / "scoring.py").write_text(CODE)
    words = ["what", "is it big", "two birds", "red cat yes", "no"]
    rows = [{"image": Pictures.new("RGB", (9, 9), (40 * i, 0, 0)), "question": words[i], "answer": "cat"}
            for i in range(5)]  # fmt: skip
    columns = {"image": Image(), "question": Value("string"), "answer": Value("string")}
    for start, stop in ((0, 3), (3, 5)):
        part = Dataset.from_list(rows[start:stop], features=Features(columns))
        part.to_parquet(place / "data" / f"{start}.parquet")
    return place


def test_a_task_is_read_with_all_that_it_is_made_of(folder, tmp_path):
    task = find_task("mine/colours.yaml", None, tmp_path)
    assert (task.name, task.keys, task.is_local) == ("colours", ("colours/length", "colours/longest"), True)
    names = ["colours.yaml", "scoring.py", "shared.yaml", "data/0.parquet", "data/3.parquet"]
    assert [str(path.relative_to(folder)) for path in task.files] == names
    assert task.data == {"data_files": {"test": [str(path) for path in task.files[3:]]}}
    assert find_task("colours", folder, tmp_path) == task
    (folder / "hub.yaml").write_text(YAML.replace("include: shared.yaml", "dataset_path: org/name"))
    assert not read_task(folder / "hub.yaml").is_local


def test_code_and_data_are_found_as_lmms_eval_and_datasets_find_them(folder):
    deep = SHARED.replace("data/*.parquet", '"**/*.parquet"')
    (folder / "shared.yaml").write_text(deep)
    assert {path.parent.name for path in read_task(folder / "colours.yaml").files} == {"mine", "data"}
    (folder / "shared.yaml").write_text("dataset_path: parquet\ndataset_kwargs: {data_dir: data}\n")
    (folder / "colours.yaml").write_text(YAML.replace("scoring.score", "package.scoring.score"))
    task = read_task(folder / "colours.yaml")
    assert not task.is_local  # `datasets` looks where it runs
    assert task.modules == ("package.scoring",) and folder / "scoring.py" in task.files


def test_tasks_of_one_name_are_refused(folder):
    task = read_task(folder / "colours.yaml")
    refuse_equal_names([task], ["pope"])
    for tasks, others in (([task, task], []), ([task], ["colours"])):
        with pytest.raises(ValueError, match="two tasks are called 'colours'; give yours another name"):
            refuse_equal_names(tasks, others)


@pytest.mark.parametrize(
    ("word", "text", "reason"),
    [
        ("none.yaml", None, "task file not found: .*none.yaml"),
        ("a.yaml", "[", "a.yaml is not YAML"),
        ("a.yaml", "- a", "a.yaml is no task"),
        ("a.yaml", "group: many\ntask: [a, b]", "got group 'many'; name its tasks one by one"),
        ("a.yaml", "task: a", "a.yaml has no metric_list"),
        ("a.yaml", "task: a\nmetric_list: [metric: b]\nfilter_list: [c]", r"must have a name, got \[None\]"),
        ("a.yaml", "include: other.yaml\ntask: a", "task file not found: .*other.yaml"),
        ("a.yaml", f"{SHARED}task: a\nmetric_list: [metric: b]", r"data of a task not found: .*\*.parquet"),
        ("colour", YAML, "unknown task of .* 'colour'.*did you mean 'colours'"),
    ],
)
def test_a_task_that_cannot_be_asked_is_named(tmp_path, word, text, reason):
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        find_task(word, tmp_path, tmp_path)
    with pytest.raises(ValueError, match="no benchmark that is known here; give the path of its YAML"):
        find_task("colours", None, tmp_path)


def test_numbers_are_those_of_lmms_eval_with_its_errors_or_none(folder, tmp_path, llm, monkeypatch):
    save(*build("tiny", None, llm, "eager", seed=0), tmp_path / "model")
    config = {"model": str(tmp_path / "model"), "attention": "eager", "batch_size": 2}
    (folder / "broken.yaml").write_text(YAML.replace("colours", "broken").replace("longest", "missing"))
    (folder / "filtered.yaml").write_text(YAML.replace("colours", "filtered") + FILTERS)
    asked = EvaluateConfig(
        **config, custom=[str(folder / "colours.yaml"), "broken", "filtered"], include_path=str(folder)
    )
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    result = evaluate(asked, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["task"] == "colours"]
    lengths = [len(row["response"]) for row in rows]
    assert len(rows) == 5 and len(set(lengths)) > 1, result["not_run"]
    length, longest = result["metrics"]["colours/length"], result["metrics"]["colours/longest"]
    assert length["value"] == pytest.approx(statistics.fmean(lengths))
    assert length["stderr"] == pytest.approx(statistics.stdev(lengths) / 5**0.5)
    assert (length["num_samples"], length["higher_is_better"], length["unit"]) == (5, False, "")
    assert (longest["value"], longest["stderr"]) == (max(lengths) + 0.5, None)
    filtered = {"filtered/length", "filtered/longest", "filtered/length/empty", "filtered/longest/empty"}
    assert filtered == set(read_task(folder / "filtered.yaml").keys)
    assert set(result["metrics"]) == {"colours/length", "colours/longest", *filtered, *TOKENS_SEEN}
    assert result["metrics"]["filtered/length"]["value"] == length["value"]
    empty = result["metrics"]["filtered/length/empty"]
    assert (empty["value"], empty["num_samples"]) == (0, 5)
    assert set(result["not_run"]) == {"broken/length", "broken/missing"}
    with pytest.raises(ValueError, match=r"not run: broken/length, broken/missing: .*; 9 other numbers"):
        evaluate_all(asked, tmp_path)  # asks what is missing alone
    with pytest.raises(ValueError, match="two tasks are called 'colours'"):
        evaluate(EvaluateConfig(**config, custom=[str(folder / "colours.yaml")] * 2), tmp_path)
    for name in set(os.environ) - set(before):
        del os.environ[name]  # monkeypatch would set it again at the end


def test_what_is_no_number_is_refused_by_name():
    samples, directions = [{"doc_id": 3, "acc": 1.0}] * 2, {"acc": True}  # a row for each of the filters
    found = read_numbers(
        "t", {"alias": "t", "acc,none": 1, "acc,strict": 0.5, "acc_stderr,none": "N/A"}, samples, directions
    )
    assert {key: metric["value"] for key, metric in found.items()} == {"t/acc": 1.0, "t/acc/strict": 0.5}
    assert [metric["num_samples"] for metric in found.values()] == [1, 1]
    with pytest.raises(ValueError, match="t/acc must be a number, lmms-eval gave a dict"):
        read_numbers("t", {"acc,none": {"a": 1}}, samples, directions)
    with pytest.raises(ValueError, match="t: lmms-eval gave no number of acc"):
        read_numbers("t", {"alias": "t"}, samples, directions)
