"""Stage: score one model folder with lmms-eval's own evaluator.

`python -m llava_bridge.evaluate <config.yaml> <out_dir>` writes out_dir/results.json (each metric's value,
standard error and count) and out_dir/samples.jsonl (every answer, so that two models can be compared
question by question). One process for each evaluation: lmms-eval keeps totals in module globals. The
evaluator runs inside out_dir, where it writes what it likes.

What was scored is kept in out_dir/scored, a file for each benchmark, and until all is done each answer in
out_dir/answers (`kept_answers`). One that could not run does not stop the
others: its keys stand with the reason in results.json, the stage does not count as done, and the same
command asks only what is missing.

Heavy imports are inside the functions: huggingface_hub reads its offline switches when it is first imported.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder.runtime.config import ROOT, resolve
from encoder.runtime.device import require_device
from encoder.runtime.files import replacing
from encoder.runtime.stage import main, progress, read_data_sets, sha256_json, write_json
from llava_bridge.config import EvaluateConfig
from llava_bridge.kept_answers import ANSWERS

if TYPE_CHECKING:
    from llava_bridge.lmms import LlavaLmms

RESULTS = "results.json"
_SCORED = "scored"  # folder: a benchmark's metrics (.json) and answers (.jsonl)
_OWN_TASKS = "tasks"  # its name there of what `tasks` asks for
_CACHE = "datasets"  # lmms-eval's copy of the parquet files, removed at the end


def go_offline(cache_dir: Path) -> None:
    """No look-ups by datasets or the hub client; their caches go to `cache_dir`."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        HF_UPDATE_DOWNLOAD_COUNTS="0",
        LMMS_EVAL_DATASETS_CACHE=str(cache_dir),
        HF_DATASETS_CACHE=str(cache_dir),
    )


def load_tasks(config: EvaluateConfig) -> list:
    """lmms-eval's objects of our own tasks, with their parquet files filled in.

    Raises:
        ValueError: no YAML defines a task; names those there are. Or a parquet file names pictures elsewhere.
        FileNotFoundError: a parquet file is missing.
    """
    if not config.tasks:
        return []
    from lmms_eval.tasks import TaskManager, get_task_dict

    from encoder.data.embedded import refuse_outside_pictures

    manager = TaskManager("ERROR", include_path=str(ROOT / config.task_dir), include_defaults=False)
    wanted = []
    for name, parquet in config.tasks.items():
        if name not in manager.all_tasks:
            raise ValueError(
                f"unknown task '{name}'; {config.task_dir} defines {', '.join(sorted(manager.all_tasks))}"
            )
        if parquet is not None and not (ROOT / parquet).is_file():
            raise FileNotFoundError(f"data of task '{name}' not found: {ROOT / parquet}")
        if parquet is not None:
            refuse_outside_pictures(ROOT / parquet)
        files = (
            {"dataset_kwargs": {"data_files": {"test": str(ROOT / parquet)}}} if parquet is not None else {}
        )
        wanted.append({"task": name, **files})
    return list(get_task_dict(wanted, manager).values())


def read_metrics(tasks: Sequence, results: Mapping, seed: int) -> dict[str, dict[str, Any]]:
    """{key: {value, stderr, unit, higher_is_better, num_samples}} of every metric of our tasks, in percent.

    lmms-eval gives a mean its standard error over groups; a ratio such as F1 gets one by drawing groups
    again.
    """
    from llava_bridge.answers import accuracy, bootstrap_stderr

    metrics = {}
    for task in tasks:
        name = task.config.task
        samples = results["samples"][name]
        for key, aggregate in task.aggregation().items():
            items = [sample[key] for sample in samples if key in sample]
            if not items:
                continue  # no question of this dimension or setting
            value = results["results"][name][f"{key},none"]
            stderr = results["results"][name].get(f"{key}_stderr_clustered,none")
            if aggregate.__name__ != accuracy.__name__ or not isinstance(stderr, float):
                stderr = bootstrap_stderr(items, aggregate, seed)
            metrics[key] = {
                "value": 100 * float(value),
                "stderr": 100 * float(stderr),
                "unit": "%",
                "higher_is_better": task.higher_is_better()[key],
                "num_samples": len(items),
            }
    return metrics


def read_samples(tasks: Sequence, results: Mapping) -> list[dict[str, Any]]:
    """A row for each question: task, question_id, group, answer, response, prediction, is_correct."""
    rows = []
    for task in tasks:
        main_metric = next(iter(task.aggregation()))
        for sample in results["samples"][task.config.task]:
            item, responses = sample[main_metric], sample["filtered_resps"]
            is_free = task.OUTPUT_TYPE == "generate_until"
            rows.append(
                {
                    "task": task.config.task,
                    "question_id": item["question_id"],
                    "group": item["group"],
                    "answer": item["answer"],
                    # of a choice, the loss of each option
                    "response": responses[0] if is_free else [round(loss, 4) for loss, _ in responses],
                    "prediction": item["prediction"],
                    "is_correct": bool(item["score"]),
                }
            )
    return rows


class Scores:
    """What has been scored in a stage's folder, by these very settings and on these very data, where whoever
    started it noted their hashes: {name: metrics}, answers beside."""

    def __init__(self, config: EvaluateConfig, out_dir: Path):
        self.settings, self.folder = sha256_json(resolve(config)), out_dir / _SCORED
        self.data = read_data_sets(out_dir)
        self.metrics: dict[str, dict[str, dict]] = {}
        for path in sorted(self.folder.glob("*.json")):
            held = json.loads(path.read_text())
            if (held["settings"], held.get("data")) == (self.settings, self.data.get(path.stem)):
                self.metrics[path.stem] = held["metrics"]

    def __contains__(self, name: str) -> bool:
        return name in self.metrics

    def add(self, name: str, metrics: dict[str, dict], rows: Sequence[Mapping]) -> None:
        """Keep a benchmark's metrics and answers, the metrics last."""
        self.folder.mkdir(exist_ok=True)
        lines = "".join(json.dumps(row, default=str) + "\n" for row in rows)
        with replacing(self.folder / f"{name}.jsonl") as temporary:
            temporary.write_text(lines)
        about = {"settings": self.settings, "data": self.data.get(name)}
        write_json(self.folder / f"{name}.json", {**about, "metrics": metrics})
        self.metrics[name] = metrics

    def join(self, names: Sequence[str], samples: Path) -> dict[str, dict]:
        """All metrics, and all answers in one file, in the order of `names`."""
        kept = [name for name in names if name in self]
        with replacing(samples) as temporary, temporary.open("w") as file:
            file.writelines((self.folder / f"{name}.jsonl").read_text() for name in kept)
        return {key: metric for name in kept for key, metric in self.metrics[name].items()}


def run_benchmarks(
    config: EvaluateConfig, out_dir: Path, score: Callable[[list], dict], scores: Scores
) -> dict[str, str]:
    """Run those of the asked benchmarks that have no scores yet, one by one; returns {metric key: reason} of
    those that could not run."""
    names = benchmark_names(config)
    if not names:
        return {}
    from llava_bridge.benchmark_table import BENCHMARKS
    from llava_bridge.benchmarks import reason, run_task

    data_root = ROOT / config.data_root if config.data_root is not None else None
    not_run: dict[str, str] = {}
    for task in names:
        if task in scores:
            continue
        try:
            metrics, rows = run_task(task, data_root, out_dir / "tasks", score)
        except Exception as error:  # of any kind: the reason stands in the result, the others go on
            not_run |= dict.fromkeys(BENCHMARKS[task].keys, reason(error))
            continue
        scores.add(task, metrics, rows)
    return not_run


def evaluate(config: EvaluateConfig, out_dir: Path) -> dict:
    # ---- setup
    out_dir = out_dir.resolve()
    has_public = bool(config.benchmarks) or config.task_set != "none"
    is_local = not has_public or config.data_root is not None
    if is_local and all(parquet is not None for parquet in config.tasks.values()):
        go_offline(out_dir / _CACHE)
    os.chdir(out_dir)
    import lmms_eval.evaluator  # noqa: F401 - before its log is taken away
    import torch
    from loguru import logger

    logger.remove()
    torch.set_flush_denormal(True)

    # ---- model, tasks
    answerer = load_answerer(config, out_dir)
    tasks = load_tasks(config)
    score = scorer(config, answerer)

    # ---- evaluate
    (out_dir / RESULTS).unlink(missing_ok=True)  # of an attempt before
    scores = Scores(config, out_dir)
    if tasks and _OWN_TASKS not in scores:
        results = score(tasks)
        scores.add(_OWN_TASKS, read_metrics(tasks, results, config.seed), read_samples(tasks, results))
    not_run = run_benchmarks(config, out_dir, score, scores)

    # ---- write
    shutil.rmtree(out_dir / _CACHE, ignore_errors=True)
    metrics = scores.join([_OWN_TASKS, *benchmark_names(config)], out_dir / "samples.jsonl")
    summary = {"metrics": metrics, "not_run": not_run, **describe(config, answerer)}
    write_json(out_dir / RESULTS, summary)
    if not not_run:
        shutil.rmtree(out_dir / ANSWERS, ignore_errors=True)
    return summary


def benchmark_names(config: EvaluateConfig) -> Sequence[str]:
    """The public benchmarks that are asked for, in order."""
    from llava_bridge.benchmark_table import TASK_SETS

    return config.benchmarks or (TASK_SETS[config.task_set] if config.task_set != "none" else ())


def evaluate_all(config: EvaluateConfig, out_dir: Path) -> dict:
    """The stage: `evaluate`, done only when everything that was asked for ran.

    Raises:
        ValueError: something could not run, with the reasons; what ran is kept.
    """
    summary = evaluate(config, out_dir)
    if summary["not_run"]:
        reasons: dict[str, list[str]] = {}
        for key, why in summary["not_run"].items():
            reasons.setdefault(why, []).append(key)
        said = "; ".join(f"{', '.join(keys)}: {why}" for why, keys in reasons.items())
        raise ValueError(
            f"not run: {said}; {len(summary['metrics'])} other numbers are kept, the same command asks only "
            "what is missing"
        )
    return summary


def load_answerer(config: EvaluateConfig, out_dir: Path) -> "LlavaLmms":
    """The model as lmms-eval asks it; it reports to out_dir how many questions it has answered."""
    import torch

    import llava_bridge.hf  # noqa: F401 - registers our tower
    from llava_bridge.lmms import LlavaLmms
    from llava_bridge.model import load, read_template

    model_dir = (ROOT / config.model).resolve()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.precision]
    model, processor = load(model_dir, config.attention, dtype)
    return LlavaLmms(
        model.to(require_device(config.device)),
        processor,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        template=read_template(model_dir),
        answers=out_dir / ANSWERS,
        report=lambda done, total: progress(out_dir, done, total, "questions"),
    )


def scorer(config: EvaluateConfig, answerer: "LlavaLmms") -> Callable[[list], dict]:
    """lmms-eval's evaluator of task objects, on this model."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    none_packaged = TaskManager("ERROR", include_path=str(ROOT / config.task_dir), include_defaults=False)

    def score(task_objects: list) -> dict:
        return simple_evaluate(
            model=answerer,
            tasks=task_objects,
            task_manager=none_packaged,  # else lmms-eval reads all of its 2,000 tasks' files first
            batch_size=config.batch_size,
            limit=config.limit,
            bootstrap_iters=0,
            log_samples=True,
            verbosity="ERROR",
            process_docs_parallel=1,
        )

    return score


def describe(config: EvaluateConfig, answerer: "LlavaLmms") -> dict[str, Any]:
    """What was asked, and how: as results.json says it beside the metrics."""
    model = answerer.model
    vision = model.config.vision_config
    return {
        "prompt": answerer.template,
        "generation": "greedy",
        "precision": config.precision,
        "num_image_tokens": model.config.image_seq_length,
        "num_encoder_tokens": getattr(vision, "num_encoder_tokens", 0) or model.config.image_seq_length,
        "image_size": vision.image_size,
        "num_pictures_encoded": answerer.pictures.num_encoded,
        "encoder": getattr(vision, "source", vision.model_type),
        "features": getattr(vision, "features", None),
        "lmms_eval": version("lmms_eval"),
        "transformers": version("transformers"),
        "num_llm_parameters": sum(p.numel() for p in model.model.language_model.parameters()),
    }


if __name__ == "__main__":
    main(EvaluateConfig, evaluate_all)
