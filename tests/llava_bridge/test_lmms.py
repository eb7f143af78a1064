"""The model object under lmms-eval's evaluator: batch size changes nothing, scores are those of a count by
hand."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from lmms_eval.api.instance import GenerationResult, unwrap_generation_output
from PIL import Image

from encoder.data.scenes.parquet import write_pope, write_seed
from llava_bridge.config import EvaluateConfig
from llava_bridge.evaluate import evaluate
from llava_bridge.lmms import LlavaLmms
from llava_bridge.model import build, save
from llava_bridge.prompt import question_prompt
from llava_bridge.scores import Scores


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lmms")
    write_seed(folder / "scenes_seed.parquet", 0, 4, 64)
    write_pope(folder / "scenes_pope.parquet", 0, 4, 64)
    return folder


@pytest.fixture
def llava(llm):
    return build("tiny", None, llm, "eager", seed=0)


@pytest.fixture
def answerer(llava):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 32, 32, 3), generator=generator, dtype=torch.uint8)
    docs = [{"image": Image.fromarray(noise[i % 3].numpy()), "answer": "cat"} for i in range(10)]
    lm = LlavaLmms(*llava, batch_size=4, max_new_tokens=5)
    lm.task_dict = {"task": {"test": docs}}
    return lm


def request(doc_id: int, text: str, second) -> SimpleNamespace:
    return SimpleNamespace(args=(text, second, lambda doc: [doc["image"]], doc_id, "task", "test"))


QUESTIONS = [
    "what is this",
    "is it a big red cat",
    "two birds",
    "one more thing",
    "what",
    "yes no",
    "is this it",
    "a",
    "big",
    "red cat",
]


def test_batched_answers_are_those_of_one_at_a_time(answerer, llava):
    requests = [
        request(i, text, {"until": ["\n\n"], "image_aspect_ratio": "original"})
        for i, text in enumerate(QUESTIONS)
    ]
    batched = answerer.generate_until(requests)
    assert answerer.pictures.num_encoded == 3  # ten questions, three pictures
    model, processor = llava
    for i, text in enumerate(QUESTIONS):  # pixels through transformers' own processor, no cache, no padding
        doc = answerer.task_dict["task"]["test"][i]
        inputs = processor(
            images=[doc["image"]],
            text=processor.tokenizer.bos_token + question_prompt(text, 1),
            return_tensors="pt",
        )
        output = model.generate(
            **{k: v for k, v in inputs.items() if k != "pixel_values"},
            max_new_tokens=5,
            do_sample=False,
            mm_encoder_outputs={"image": model.get_image_features(inputs["pixel_values"], return_dict=True)},
        )
        text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert batched[i] == text.split("\n\n")[0].strip()


def test_options_of_the_task_are_obeyed_or_refused(answerer):
    short = answerer.generate_until([request(0, "what", {"max_new_tokens": 1})])[0]
    long = answerer.generate_until([request(0, "what", {"max_new_tokens": 4})])[0]
    assert long.startswith(short)
    assert len(answerer.tokenizer(long)["input_ids"]) > len(answerer.tokenizer(short)["input_ids"])
    with pytest.raises(ValueError, match="answers greedily"):
        answerer.generate_until([request(0, "what", {"do_sample": True, "temperature": 0.7})])


def test_loglikelihood_is_the_mean_loss_of_the_continuation(answerer, llava):
    model, processor = llava
    options = ("a red cat", "yes", "no")  # of one question: it is run once where they share a batch
    requests = [request(i, text, option) for i, text in enumerate(QUESTIONS) for option in options]
    scores = answerer.loglikelihood(requests)
    for row, result in enumerate(scores):
        i = row // len(options)
        assert isinstance(result, GenerationResult)
        loss, is_greedy = unwrap_generation_output(result)[0]  # what lmms-eval 0.7.3 makes of it
        prompt, target = question_prompt(QUESTIONS[i], 1), requests[row].args[1]
        doc = answerer.task_dict["task"]["test"][i]
        inputs = processor(
            images=[doc["image"]],
            text=f"{processor.tokenizer.bos_token}{prompt} {target}",
            return_tensors="pt",
        )
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        count = len(target.split())
        targets = inputs["input_ids"][0, -count:]
        expected = torch.nn.functional.cross_entropy(logits[-count - 1 : -1], targets)
        assert loss == pytest.approx(expected.item(), abs=1e-5)
        assert is_greedy == (logits[-count - 1 : -1].argmax(-1) == targets).all().item()


def test_evaluation_is_the_same_at_batch_1_and_4_and_equals_a_count_by_hand(
    llava, parquet, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    save(*llava, tmp_path / "model")
    names = ("scenes_seed", "scenes_pope")
    config = {"model": str(tmp_path / "model"), "task_dir": "harness/tasks", "attention": "eager"}
    config["tasks"] = {name: str(parquet / f"{name}.parquet") for name in names}
    summaries, rows = [], []
    for batch_size in (1, 4):
        out = tmp_path / f"batch{batch_size}"
        out.mkdir()
        before = dict(os.environ)
        summaries.append(evaluate(EvaluateConfig(**config, batch_size=batch_size), out)["metrics"])
        for name in set(os.environ) - set(before):
            monkeypatch.delenv(name)
        rows.append([json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()])
    assert summaries[0] == summaries[1]
    for one, four in zip(*rows, strict=True):
        if one["task"] == "scenes_seed":  # losses: equal but for the rounding of another batch size
            assert one.pop("response") == pytest.approx(four.pop("response"), abs=1e-3)
        assert one == four
    seed = [row for row in rows[0] if row["task"] == "scenes_seed"]
    assert (len(seed), len(rows[0]) - len(seed)) == (36, 24)
    right = sum(row["prediction"] == row["answer"] for row in seed)
    assert summaries[0]["Scenes-SEED"]["value"] == pytest.approx(100 * right / 36)
    assert summaries[0]["Scenes-SEED/Instances Counting"]["num_samples"] == 4
    random = [row for row in rows[0] if row["task"] == "scenes_pope"][:8]
    assert (
        summaries[0]["Scenes-POPE/random/accuracy/official"]["value"]
        == 100 * sum(row["is_correct"] for row in random) / 8
    )
    assert len([key for key in summaries[0] if key.startswith("Scenes-POPE/")]) == 31


def test_a_killed_evaluation_asks_only_what_it_had_not_asked(llava, parquet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(*llava, tmp_path / "model")
    names = ("scenes_seed", "scenes_pope")
    config = EvaluateConfig(
        model=str(tmp_path / "model"), task_dir="harness/tasks", attention="eager", batch_size=16,
        tasks={name: str(parquet / f"{name}.parquet") for name in names},
    )  # fmt: skip
    asked, killed_at = [], None

    def counted(original):
        def ask(answerer, *batch):
            asked.append(original.__name__)
            if len(asked) == killed_at:
                raise KeyboardInterrupt
            return original(answerer, *batch)

        return ask

    for name in ("_write", "_losses"):
        monkeypatch.setattr(LlavaLmms, name, counted(getattr(LlavaLmms, name)))
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = evaluate(config, tmp_path / "whole")
    num_asked = len(asked)
    assert num_asked == 36 * 4 // 16 + 24 // 16 + 1  # 36 questions of four options, 24 of one answer

    killed_at = num_asked + num_asked - 1  # the last but one of the second run
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, tmp_path / "cut")
    (kept,) = (tmp_path / "cut" / "answers").iterdir()
    kept.write_text(kept.read_text() + '\n{"asked": "cut o')  # as a kill in the middle of a write leaves it
    asked.clear()
    killed_at = None
    assert evaluate(config, tmp_path / "cut")["metrics"] == whole["metrics"]
    assert asked == ["_write"] * 2
    ours, theirs = ((tmp_path / name / "samples.jsonl").read_bytes() for name in ("cut", "whole"))
    assert ours == theirs
    assert not (tmp_path / "cut" / "answers").exists()


def test_a_kept_answer_is_that_to_the_same_picture_and_words(answerer, llava, tmp_path):
    def another() -> LlavaLmms:
        lm = LlavaLmms(*llava, batch_size=4, max_new_tokens=5, answers=tmp_path / "answers")
        lm.task_dict = answerer.task_dict
        return lm

    first = [request(i, text, {}) for i, text in enumerate(QUESTIONS[:4])]
    other_pictures = [request(i + 1, text, {}) for i, text in enumerate(QUESTIONS[:4])]
    lm = another()
    assert lm.generate_until(first) == answerer.generate_until(first)
    lm = another()
    assert lm.generate_until(first) == answerer.generate_until(first)
    assert lm.pictures.num_encoded == 0 and lm.pictures.num_tokens.total() == 4
    lm.generate_until(other_pictures)
    assert lm.pictures.num_encoded == 3
    lm.generate_until([request(i, text, {"max_new_tokens": 2}) for i, text in enumerate(QUESTIONS[:4])])
    assert lm.pictures.num_tokens.total() == 12


def test_nothing_is_kept_of_a_model_that_was_trained_anew_in_its_place(llava, answerer, tmp_path):
    """Same folder, same names, same sizes: only the time of its files differs, or what it sees."""
    model, processor = llava
    save(model, processor, tmp_path / "model")
    model.config.name_or_path = str(tmp_path / "model")
    config = EvaluateConfig(model=str(tmp_path / "model"), benchmarks=["mme"])
    questions = [request(i, text, {}) for i, text in enumerate(QUESTIONS[:4])]

    def num_asked() -> int:
        lm = LlavaLmms(model, processor, batch_size=4, max_new_tokens=5, answers=tmp_path / "answers")
        lm.task_dict = answerer.task_dict
        lm.generate_until(questions)
        return lm.pictures.num_encoded

    assert [num_asked(), num_asked()] == [3, 0]
    Scores(config, tmp_path).add("mme", {}, [])
    assert "mme" in Scores(config, tmp_path)
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    written = weights.stat().st_mtime_ns
    os.utime(weights, ns=(written, written + 10**9))
    assert [num_asked(), num_asked()] == [3, 0]
    assert "mme" not in Scores(config, tmp_path)
    model.config.image_grid_pinpoints = [[64, 64]]
    assert num_asked() == 3


def test_scores_that_say_nothing_of_the_weights_are_kept(tmp_path):
    config = EvaluateConfig(model=str(tmp_path), benchmarks=["mme"])
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    Scores(config, tmp_path).add("mme", {}, [])
    file = tmp_path / "scored" / "mme.json"
    held = json.loads(file.read_text())
    assert [name for name, *_ in held.pop("weights")] == ["a.safetensors"]
    file.write_text(json.dumps(held))
    assert "mme" in Scores(config, tmp_path)


def test_unknown_task_and_missing_data_are_named(llava, parquet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(*llava, tmp_path / "model")
    config = {"model": str(tmp_path / "model"), "task_dir": "harness/tasks", "attention": "eager"}
    with pytest.raises(ValueError, match=r"unknown task 'scenes_sed'.*scenes_pope, scenes_seed"):
        evaluate(
            EvaluateConfig(**config, tasks={"scenes_sed": str(parquet / "scenes_seed.parquet")}), tmp_path
        )
    with pytest.raises(FileNotFoundError, match="data of task 'scenes_seed' not found"):
        evaluate(EvaluateConfig(**config, tasks={"scenes_seed": "nowhere.parquet"}), tmp_path)
