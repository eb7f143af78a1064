"""A llava-hf folder as a row: each of the paper's benchmarks runs on local parquet in its real columns."""

import json
import os
import socket
from importlib.metadata import version

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as Pictures
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from llava_bridge import jobs
from llava_bridge.benchmark_table import BENCHMARKS, TASK_SETS
from llava_bridge.benchmarks import find_parquet, pope_metrics, reason
from llava_bridge.config import TOKENS_SEEN, EvaluateConfig
from llava_bridge.evaluate import evaluate, evaluate_all

TEXT, NUMBER = Value("string"), Value("int64")


@pytest.fixture
def llava_hf(llm, tmp_path):
    """What `llava-hf/llava-1.5-7b-hf` holds, tiny: CLIP's own tower with a class token, penultimate layer."""
    tokenizer = AutoTokenizer.from_pretrained(llm)
    language_model = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**sizes, image_size=32, patch_size=16),
            text_config=language_model.config,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_seq_length=4,
        )
    )
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    model.save_pretrained(tmp_path / "llava-hf")
    processor.save_pretrained(tmp_path / "llava-hf")
    return tmp_path / "llava-hf"


def write(path, rows: list[dict], **features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(features)).to_parquet(path)


@pytest.fixture
def data_root(tmp_path):
    """Four questions of each benchmark, laid out as on the hub; no POPE."""
    root = tmp_path / "data"
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 20, 30, 3), generator=generator, dtype=torch.uint8)
    pictures = [Pictures.fromarray(pixels.numpy()) for pixels in noise]
    rows = [
        {
            "question_id": f"{i // 2}.png",
            "image": pictures[i],
            "question": "is it big",
            "answer": answer,
            "category": kind,
        }
        for i, (answer, kind) in enumerate(
            [("Yes", "color"), ("No", "color"), ("Yes", "code_reasoning"), ("No", "code_reasoning")]
        )
    ]
    columns = {"question_id": TEXT, "question": TEXT, "answer": TEXT, "category": TEXT, "image": Image()}
    write(root / "MME" / "data" / "test-00000-of-00001.parquet", rows, **columns)
    rows = [
        {**{f"choice_{c}": word for c, word in zip("abcd", ("red", "big", "cat", "yes"), strict=True)},
         "question": "what is this", "answer": "ABCD"[i], "data_type": "video" if i == 3 else "image",
         "question_id": str(i), "question_type_id": 1, "image": [pictures[i]]}
        for i in range(4)
    ]  # fmt: skip
    columns = {f"choice_{c}": TEXT for c in "abcd"} | {"question": TEXT, "answer": TEXT, "data_type": TEXT}
    columns |= {"question_id": TEXT, "question_type_id": NUMBER, "image": Sequence(Image())}
    write(root / "seedbench" / "test.parquet", rows, **columns)
    rows = [
        {
            "image": pictures[i],
            "question": "what",
            "choices": ["a cat", "a bird"],
            "answer": i % 2,
            "hint": "big",
        }
        for i in range(4)
    ]
    columns = {"image": Image(), "question": TEXT, "choices": Sequence(TEXT), "answer": NUMBER, "hint": TEXT}
    write(root / "ScienceQA" / "ScienceQA-IMG" / "test-0.parquet", rows, **columns)
    write(root / "ScienceQA" / "ScienceQA-IMG" / "train-0.parquet", 5 * rows, **columns)
    rows += [{**row, "image": None} for row in rows]  # half of ScienceQA's questions have no picture
    write(root / "ScienceQA" / "ScienceQA-FULL" / "test-0.parquet", rows, **columns)
    rows = [{"id": str(i), "imageId": f"n{i}", "question": "what", "answer": "cat"} for i in range(4)]
    columns = {"id": TEXT, "imageId": TEXT, "question": TEXT, "answer": TEXT}
    write(root / "GQA" / "testdev_balanced_instructions" / "testdev-0.parquet", rows, **columns)
    rows = [{"id": f"n{i}", "image": pictures[i]} for i in range(4)]
    write(root / "GQA" / "testdev_balanced_images" / "testdev-0.parquet", rows, id=TEXT, image=Image())
    rows = [
        {
            "question_id": str(i),
            "question": "is it big",
            "answer": "no" if i % 2 else "yes",
            "image": pictures[i],
            "category": kind,
            "image_source": f"COCO_{i % 2}",
        }
        for i, kind in enumerate(["random", "random", "popular", "popular"])
    ]
    columns = {"question_id": TEXT, "question": TEXT, "answer": TEXT, "image": Image(), "category": TEXT}
    columns["image_source"] = TEXT
    write(root / "POPE" / "data" / "test-0.parquet", rows, **columns)
    return root


@pytest.fixture
def extended_root(tmp_path):
    """Four questions of each benchmark that `extended` adds, in the columns of the hub; nothing else."""
    root = tmp_path / "data"
    noise = torch.randint(0, 256, (4, 20, 30, 3), generator=torch.Generator().manual_seed(0))
    pictures = [Pictures.fromarray(pixels.byte().numpy()) for pixels in noise]
    rows = [
        {"image_id": f"{i:x}", "question_id": 34602 + i, "question": "what is this", "image": pictures[i],
         "question_tokens": ["what", "is", "this"], "image_width": 30, "image_height": 20,
         "flickr_original_url": "", "flickr_300k_url": "", "answers": ["cat"] * 8 + ["big cat", "bird"],
         "image_classes": ["Cat"], "set_name": "val", "ocr_tokens": ["yes"]}
        for i in range(4)
    ]  # fmt: skip
    columns = dict.fromkeys(
        ("image_id", "question", "flickr_original_url", "flickr_300k_url", "set_name"), TEXT
    )
    columns |= dict.fromkeys(("question_id", "image_width", "image_height"), Value("int32"))
    columns |= dict.fromkeys(("question_tokens", "answers", "image_classes", "ocr_tokens"), Sequence(TEXT))
    write(root / "textvqa" / "data" / "validation-0.parquet", rows, **columns, image=Image())
    rows = [
        {"index": i, "question": "what is this", "hint": None if i else "big", "answer": "ABCD"[i],
         **dict(zip("ABCD", ("red", "big", "cat", None), strict=True)), "category": "object_localization",
         "image": pictures[i], "source": "x", "L2-category": "finegrained_perception", "comment": None,
         "split": "dev"}
        for i in range(3)
    ]  # fmt: skip
    columns = dict.fromkeys(
        ("question", "hint", "answer", *"ABCD", "category", "source", "L2-category", "comment", "split"), TEXT
    )
    write(root / "MMBench" / "en" / "dev-0.parquet", rows, **columns, index=NUMBER, image=Image())
    kinds = ["Regular Text Recognition", "Scene Text-centric VQA", "Doc-oriented VQA"]
    rows = [
        {"dataset": "IIIT5K", "question": "what is this", "question_type": kinds[i % 3], "image": pictures[i],
         "answer": ["cat", "bird"] if i else ["e"]}  # almost every word holds an e
        for i in range(4)
    ]  # fmt: skip
    columns = {"dataset": TEXT, "question": TEXT, "question_type": TEXT, "answer": Sequence(TEXT)}
    write(root / "ocrbench" / "test-0.parquet", rows, **columns, image=Image())
    rows = [
        {"type": kind, "question": "what is this", "answer": "0.57", "image": pictures[i]}
        for i, kind in enumerate(("human_test", "human_test", "augmented_test", "augmented_test"))
    ]
    columns = {"type": TEXT, "question": TEXT, "answer": TEXT, "image": Image()}
    write(root / "ChartQA" / "data" / "test-0.parquet", rows, **columns)
    return root


def run(model, data_root, out_dir, monkeypatch, task_set="paper") -> tuple[dict, list[dict]]:
    monkeypatch.chdir(out_dir)
    before = dict(os.environ)
    result = evaluate(
        EvaluateConfig(
            model=str(model), task_set=task_set, data_root=str(data_root), attention="eager", batch_size=3
        ),
        out_dir,
    )
    for name in set(os.environ) - set(before):
        del os.environ[name]  # monkeypatch would set it again at the end
    return result, [json.loads(line) for line in (out_dir / "samples.jsonl").read_text().splitlines()]


def test_llava_hf_folder_runs_the_papers_benchmarks_offline(llava_hf, data_root, tmp_path, monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"a socket was opened to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    result, rows = run(llava_hf, data_root, tmp_path, monkeypatch)
    assert result["not_run"] == {}
    assert (result["encoder"], result["num_image_tokens"]) == ("clip_vision_model", 4)
    wanted = {key for task in TASK_SETS["paper"] for key in BENCHMARKS[task].keys}
    assert set(result["metrics"]) == wanted | {*TOKENS_SEEN}
    counts = {key: metric["num_samples"] for key, metric in result["metrics"].items()}
    assert (counts["MME-P"], counts["SEED-Bench"], counts["ScienceQA-IMG"], counts["GQA"]) == (2, 3, 4, 4)
    assert counts["ScienceQA"] == 8
    by_task = {task: [row for row in rows if row["task"] == task] for task in TASK_SETS["paper"]}
    right = sum(row["response"].lower().strip() == "cat" for row in by_task["gqa"])
    assert result["metrics"]["GQA"]["value"] == pytest.approx(100 * right / 4)
    said_no = [
        bool({"No", "no", "not"} & set(row["response"].split(".")[0].replace(",", "").split(" ")))
        for row in by_task["pope"]
    ]
    f1 = []
    for yes, no in (said_no[:2], said_no[2:]):  # of each setting: one true yes, one true no
        f1.append(0.0 if yes else (1.0 if no else 2 / 3))
    assert result["metrics"]["POPE/f1/official"]["value"] == pytest.approx(100 * sum(f1) / 2)
    assert result["metrics"]["POPE/f1/official"]["stderr"] is not None
    assert result["metrics"]["MME-P"]["stderr"] is None  # one picture a category: its spread is unknown
    assert result["lmms_eval"] == version("lmms_eval")

    missing = tmp_path / "again"
    missing.mkdir()
    for path in (data_root / "POPE" / "data").iterdir():
        path.write_bytes(b"not parquet")
    (data_root / "seedbench").rename(data_root / "elsewhere")
    partial, _ = run(llava_hf, data_root, missing, monkeypatch)
    assert partial["metrics"]["GQA"] == result["metrics"]["GQA"]
    assert partial["not_run"]["SEED-Bench"].startswith("FileNotFoundError: no data: ")
    assert partial["not_run"]["POPE/f1/exact"]
    assert json.loads((missing / "results.json").read_text())["not_run"] == partial["not_run"]

    (data_root / "elsewhere").rename(data_root / "seedbench")
    asked = []
    true_run = jobs.run_task

    def watched(task, *rest):
        asked.append(task)
        return true_run(task, *rest)

    monkeypatch.setattr(jobs, "run_task", watched)
    config = EvaluateConfig(
        model=str(llava_hf), task_set="paper", data_root=str(data_root), attention="eager", batch_size=3
    )
    with pytest.raises(ValueError, match=r"^not run: POPE/.*the same command asks only what is missing"):
        evaluate_all(config, missing)
    assert asked == [task for task in TASK_SETS["paper"] if task in ("seedbench", "pope")]
    kept = json.loads((missing / "results.json").read_text())
    assert kept["metrics"]["SEED-Bench"] == result["metrics"]["SEED-Bench"]
    assert kept["metrics"]["GQA"] == result["metrics"]["GQA"]
    assert set(kept["not_run"]) == {key for key in kept["not_run"] if key.startswith("POPE")}

    asked.clear()  # who starts the stage notes the data's hashes: another one is asked again
    (missing / "data_sets.json").write_text(json.dumps({"gqa": "another", "mme": None}))
    with pytest.raises(ValueError, match="not run: POPE/"):
        evaluate_all(config, missing)
    assert asked == [task for task in TASK_SETS["paper"] if task in ("gqa", "pope")]
    assert json.loads((missing / "scored" / "gqa.json").read_text())["data"] == "another"


def test_extended_benchmarks_run_on_their_columns_and_the_rest_says_why_not(
    llava_hf, extended_root, tmp_path, monkeypatch
):
    result, rows = run(llava_hf, extended_root, tmp_path, monkeypatch, task_set="extended")
    added = set(TASK_SETS["extended"]) - set(TASK_SETS["paper"])
    wanted = {key for task in added for key, _ in BENCHMARKS[task].metrics.values()}
    assert set(result["metrics"]) == wanted | {*TOKENS_SEEN}
    missing = {key for task in TASK_SETS["paper"] for key in BENCHMARKS[task].keys}
    assert set(result["not_run"]) == missing
    assert all(why.startswith("FileNotFoundError: no data: ") for why in result["not_run"].values())
    values = {key: metric["value"] for key, metric in result["metrics"].items()}
    counts = {key: result["metrics"][key]["num_samples"] for key in wanted}
    assert counts == {"TextVQA": 4, "MMBench-static": 3, "OCRBench": 4, "ChartQA": 4}
    said = {task: [row["response"].lower() for row in rows if row["task"] == task] for task in added}
    found = ["e" in said["ocrbench"][0]]
    found += ["cat" in each or "bird" in each for each in said["ocrbench"][1:]]
    assert values["OCRBench"] == pytest.approx(100 * sum(found) / 4)
    assert result["metrics"]["OCRBench"]["stderr"] == pytest.approx(100 * np.std(found, ddof=1) / 2)
    assert values["TextVQA"] == pytest.approx(100 * sum(each == "cat" for each in said["textvqa_val"]) / 4)
    assert values["ChartQA"] == 0.0


def pope_samples(said: np.ndarray) -> list[dict]:
    """`said` yes (pictures, 2 questions): of each picture one thing that is there and one that is not."""
    return [
        {"target": ("yes", "no")[there], "filtered_resps": ["yes" if yes else "no"],
         "doc": {"image_source": f"COCO_{picture}", "category": "random"}}
        for picture, answers in enumerate(said)
        for there, yes in enumerate(answers)
    ]  # fmt: skip


def test_popes_errors_are_each_rates_own_and_over_pictures():
    """Against the spread over draws of the pictures, whose two answers are alike nine times in ten."""

    def draw(generator) -> np.ndarray:
        first = generator.random(300) < 0.8
        second = np.where(generator.random(300) < 0.9, first, ~first)
        return np.stack([first, second], axis=1)

    def rates(said: np.ndarray) -> dict[str, float]:
        true_yes, false_yes = said[:, 0].sum(), said[:, 1].sum()
        precision, recall = true_yes / (true_yes + false_yes), true_yes / len(said)
        right = (said[:, 0].sum() + (~said[:, 1]).sum()) / said.size
        f1 = 2 * precision * recall / (precision + recall)
        return {"accuracy": right, "precision": precision, "recall": recall, "f1": f1}

    drawn = [rates(draw(np.random.default_rng(seed))) for seed in range(2000)]
    said = draw(np.random.default_rng(0))
    empty = {f"POPE/{name}/exact": {"value": 100 * value} for name, value in rates(said).items()}
    found = pope_metrics(empty, pope_samples(said))
    for name in ("accuracy", "precision", "recall", "f1"):
        true = 100 * np.std([each[name] for each in drawn])
        assert found[f"POPE/{name}/exact"]["stderr"] == pytest.approx(true, rel=0.25), name
    assert found["POPE/f1/official"]["stderr"] == pytest.approx(found["POPE/f1/exact"]["stderr"])
    samples = pope_samples(said)
    for sample in samples:
        del sample["doc"]["image_source"]
    assert pope_metrics(empty, samples)["POPE/f1/exact"]["stderr"] is None


def test_files_of_the_split_and_config_are_chosen(data_root):
    (path,) = find_parquet(BENCHMARKS["scienceqa_img"], "scienceqa_img", data_root)
    assert path.name == "test-0.parquet"
    with pytest.raises(FileNotFoundError, match="has no folder chartqa or ChartQA"):
        find_parquet(BENCHMARKS["chartqa"], "chartqa", data_root)


def test_reason_is_the_first_cause():
    try:
        try:
            raise KeyError("image")
        except KeyError as error:
            raise RuntimeError("wrapped") from error
    except RuntimeError as error:
        assert reason(error) == "KeyError: 'image'"


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="give tasks, benchmarks or task_set"):
        EvaluateConfig(model="x")
