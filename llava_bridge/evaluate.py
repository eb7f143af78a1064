"""Stage: score one model folder with lmms-eval's own evaluator.

`python -m llava_bridge.evaluate <config.yaml> <out_dir>` writes out_dir/results.json (each metric's value,
standard error and count) and out_dir/samples.jsonl (every answer, so that two models can be compared
question by question). One process for each evaluation: lmms-eval keeps totals in module globals. The
evaluator runs inside out_dir, where it writes what it likes. Processes of one launch share the questions.

What was scored is kept in out_dir/scored, a file for each benchmark, and until all is done each answer in
out_dir/answers (`kept_answers`). One that could not run does not stop the others: its keys stand with the
reason in results.json, the stage does not count as done, and the same command asks only what is missing.

Heavy imports are inside the functions: huggingface_hub reads its offline switches when it is first imported.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from encoder.runtime.config import ROOT
from encoder.runtime.device import settled_precision
from encoder.runtime.stage import main, progress, write_json
from llava_bridge.config import EvaluateConfig
from llava_bridge.custom_tasks import CustomTask
from llava_bridge.jobs import OWN_TASKS, benchmark_names, custom_tasks, jobs, run_jobs
from llava_bridge.kept_answers import ANSWERS
from llava_bridge.scores import Scores
from llava_bridge.seen import read_tokens_seen

if TYPE_CHECKING:
    from encoder.runtime.ranks import Ranks
    from llava_bridge.lmms import LlavaLmms

RESULTS = "results.json"
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


def score_own(config: EvaluateConfig, tasks: Sequence, score: Callable[[list], dict]) -> tuple[dict, list]:
    """Metrics and answers of our own tasks, as `score` gives lmms-eval's results."""
    results = score(tasks)
    return read_metrics(tasks, results, config.seed), read_samples(tasks, results)


@contextmanager
def as_one_process(num_processes: int) -> Iterator[None]:
    """Let lmms-eval take this process, one of several, for the only one: it would share the questions out by
    itself, and give the scores to the first process alone. Here the model object shares (`LlavaLmms`)."""
    if num_processes == 1:
        yield
        return
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    before = {name: os.environ.get(name) for name in alone}
    os.environ.update(alone)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def evaluate(config: EvaluateConfig, out_dir: Path) -> dict:
    """Score what has no scores yet. Every process of a launch calls and gets all; the first one writes."""
    # ---- setup
    out_dir = out_dir.resolve()
    customs = custom_tasks(config)
    is_local = not benchmark_names(config) or config.data_root is not None
    is_local = is_local and all(task.is_local for task in customs)
    if is_local and all(parquet is not None for parquet in config.tasks.values()):
        go_offline(out_dir / _CACHE)
    from encoder.runtime.ranks import Ranks  # after it: Accelerate imports the hub's client

    ranks = Ranks.start(config.device)
    with as_one_process(ranks.world), TemporaryDirectory() as elsewhere:
        work = out_dir if ranks.is_main else Path(elsewhere)  # what lmms-eval writes is wanted once
        os.chdir(work)
        summary = _score(config, customs, ranks, out_dir, work)
        os.chdir(out_dir)
    return summary


def _score(
    config: EvaluateConfig, customs: Sequence[CustomTask], ranks: "Ranks", out_dir: Path, work: Path
) -> dict:
    import lmms_eval.evaluator  # noqa: F401 - before its log is taken away
    import torch
    from loguru import logger

    logger.remove()
    torch.set_flush_denormal(True)

    # ---- model, tasks
    answerer = load_answerer(config, ranks, out_dir)
    tasks = load_tasks(config)
    score = scorer(config, answerer)

    # ---- evaluate
    scores = Scores(config, out_dir, is_writer=ranks.is_main)
    ranks.wait()  # all have read what there is
    if ranks.is_main:
        (out_dir / RESULTS).unlink(missing_ok=True)  # of an attempt before
    if tasks and OWN_TASKS not in scores:
        scores.add(OWN_TASKS, *score_own(config, tasks, score))
    wanted = jobs(config, customs, work / "tasks", score)
    not_run = run_jobs(wanted, scores)

    # ---- write
    metrics = scores.join([OWN_TASKS, *(job.name for job in wanted)], out_dir / "samples.jsonl")
    base = answerer.model.config.image_seq_length
    counts = sum(ranks.gather(answerer.pictures.num_tokens), Counter())
    metrics |= ranks.gather(read_tokens_seen(out_dir, counts, base) if ranks.is_main else None)[0]
    num_encoded = sum(ranks.gather(answerer.pictures.num_encoded))
    described = describe(config, answerer) | {"num_pictures_encoded": num_encoded, "processes": ranks.world}
    summary = {"metrics": metrics, "not_run": not_run, **described}
    if ranks.is_main:
        shutil.rmtree(out_dir / _CACHE, ignore_errors=True)
        write_json(out_dir / RESULTS, summary)
        if not not_run:
            shutil.rmtree(out_dir / ANSWERS, ignore_errors=True)
    ranks.wait()  # no process says it is done before the files are there
    return summary


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


def load_answerer(config: EvaluateConfig, ranks: "Ranks", out_dir: Path) -> "LlavaLmms":
    """The model as lmms-eval asks it; the first process reports to out_dir how many answers there are."""
    import torch

    import llava_bridge.hf  # noqa: F401 - registers our tower
    from llava_bridge.any_resolution.model import use_square
    from llava_bridge.lmms import LlavaLmms
    from llava_bridge.model import load, read_template

    model_dir = (ROOT / config.model).resolve()
    settled = settled_precision(config.precision, ranks.device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settled]
    model, processor = load(model_dir, config.attention, dtype)
    if config.square_eval:
        use_square(model, processor)
    return LlavaLmms(
        model.to(ranks.device),
        processor,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        template=read_template(model_dir),
        answers=out_dir / ANSWERS,
        report=lambda done, total: progress(out_dir, done, total, "questions") if ranks.is_main else None,
    )


def scorer(config: EvaluateConfig, answerer: "LlavaLmms") -> Callable[[list], dict]:
    """lmms-eval's evaluator of task objects, on this model."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    none_packaged = TaskManager("ERROR", include_path=str(ROOT / config.task_dir), include_defaults=False)

    def score(task_objects: list, bootstrap_iters: int = 0) -> dict:
        return simple_evaluate(
            model=answerer,
            tasks=task_objects,
            task_manager=none_packaged,  # else lmms-eval reads all of its 2,000 tasks' files first
            batch_size=config.batch_size,
            limit=config.limit,
            bootstrap_iters=bootstrap_iters,
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
        "precision": settled_precision(config.precision, model.device),
        "num_image_tokens": model.config.image_seq_length,
        "num_encoder_tokens": getattr(vision, "num_encoder_tokens", 0) or model.config.image_seq_length,
        "image_size": vision.image_size,
        "framework": model.config.model_type,
        "canvases": getattr(model.config, "image_grid_pinpoints", None),  # (height, width) px, in order
        "encoder": getattr(vision, "source", vision.model_type),
        "features": getattr(vision, "features", None),
        "lmms_eval": version("lmms_eval"),
        "transformers": version("transformers"),
        "num_llm_parameters": sum(p.numel() for p in model.model.language_model.parameters()),
    }


if __name__ == "__main__":
    main(EvaluateConfig, evaluate_all)
