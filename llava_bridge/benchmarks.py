"""The public benchmarks behind `task_set=paper` and `task_set=extended`, as lmms-eval packages them, on the
hub's data or on a local folder of parquet files.

`data_root` holds a folder for each task, under its lmms-eval name or its data set's own (`mme` or `MME`):
parquet files laid out as on the hub, or simply all of them in that folder. Prompts, answer parsing and
aggregation are lmms-eval's own; each task runs alone, so that one that fails costs no other its score.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from llava_bridge.answers import (
    YES_NO_PARSERS,
    Item,
    accuracy,
    bootstrap_stderr,
    f1,
    mean_f1_of_settings,
    mme_stderr,
    precision,
    recall,
)
from llava_bridge.benchmark_table import BENCHMARKS, Benchmark

GQA_IMAGES = "LLAVA_BRIDGE_GQA_IMAGES"  # environment variable: GQA's picture files, joined by os.pathsep
_RATES = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


def find_parquet(benchmark: Benchmark, task: str, data_root: Path) -> list[Path]:
    """The task's parquet files under `data_root`: of its config's folder and its split where they are named.

    Raises:
        FileNotFoundError: there is none.
    """
    names = (task, benchmark.data_set)
    folder = next((data_root / name for name in names if (data_root / name).is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"no data: {data_root} has no folder {' or '.join(names)}")
    if (folder / benchmark.config).is_dir():
        folder = folder / benchmark.config
    files = sorted(folder.rglob("*.parquet"))
    files = [path for path in files if path.name.startswith(f"{benchmark.split}-")] or files
    if not files:
        raise FileNotFoundError(f"no data: {folder} holds no parquet file")
    return files


def write_task(task: str, data_root: Path | None, folder: Path) -> None:
    """Write folder/<task>.yaml: the packaged task on local files, or on the hub without asking for a token.

    Raises:
        FileNotFoundError: its data are not under `data_root`.
        ValueError: they name pictures elsewhere.
    """
    import lmms_eval

    from encoder.data.embedded import refuse_outside_pictures

    benchmark = BENCHMARKS[task]
    packaged = Path(lmms_eval.__file__).parent / "tasks" / benchmark.yaml
    lines = [f"include: {packaged}", f"task: {task}"]
    if data_root is None:
        lines.append("dataset_kwargs: {}")
    else:
        files = find_parquet(benchmark, task, data_root)
        for path in files:
            refuse_outside_pictures(path)
        if task == "gqa":
            files = _split_gqa(files, data_root)
        named = json.dumps([str(path.resolve()) for path in files])
        lines += ["dataset_path: parquet", "dataset_name: null"]
        lines += ["dataset_kwargs:", "  data_files:", f"    {benchmark.split}: {named}"]
        if task == "gqa":
            lines += ["process_docs: null", "doc_to_visual: !function llava_bridge.benchmarks.gqa_visual"]
    lines += [f"{key}: {value}" for key, value in benchmark.replace.items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{task}.yaml").write_text("\n".join(lines) + "\n")


def _split_gqa(files: Sequence[Path], data_root: Path) -> list[Path]:
    """GQA keeps questions and pictures apart: note the pictures' files for `gqa_visual`, return the rest."""
    from pyarrow import parquet

    folder = next(data_root / name for name in ("gqa", "GQA") if (data_root / name).is_dir())
    columns = {path: parquet.read_schema(path).names for path in {*files, *folder.rglob("testdev*.parquet")}}
    pictures = sorted(path for path, names in columns.items() if "question" not in names)
    os.environ[GQA_IMAGES] = os.pathsep.join(str(path.resolve()) for path in pictures)
    return [path for path in files if "question" in columns[path]]


def keep_images(dataset):
    """SEED-Bench's questions about single pictures; the others are about videos."""
    return dataset.filter(lambda kind: kind == "image", input_columns=["data_type"])


def mean_of_scores(results):
    """The share of OCRBench's questions whose answer was found."""
    return sum(each["score"] for each in results) / len(results)


def gqa_visual(doc: dict) -> list:
    """A GQA question's picture, RGB, from its own row or from the files of pictures."""
    from encoder.data.pictures import as_rgb, decode_picture

    if doc.get("image") is not None:
        return [as_rgb(doc["image"])]
    return [decode_picture(_gqa_images(os.environ[GQA_IMAGES])[doc["imageId"]])]


@cache
def _gqa_images(files: str) -> dict[str, bytes]:
    from pyarrow import parquet

    rows = [row for path in files.split(os.pathsep) for row in parquet.read_table(path).to_pylist()]
    return {row["id"]: row["image"]["bytes"] for row in rows}


def run_task(task: str, data_root: Path | None, folder: Path, evaluate: Callable) -> tuple[dict, list[dict]]:
    """(metrics, one row a question) of one benchmark; `evaluate(task objects)` is lmms-eval's.

    Raises:
        Exception: whatever the task's data or code raises.
    """
    from lmms_eval.tasks import TaskManager, get_task_dict

    write_task(task, data_root, folder / task)
    manager = TaskManager("ERROR", include_path=str(folder / task), include_defaults=False)
    results = evaluate(list(get_task_dict([task], manager).values()))
    samples = results["samples"][task]
    metrics = _read(BENCHMARKS[task], results["results"][task], samples)
    if task == "pope":
        metrics = pope_metrics(metrics, samples)
    rows = [
        {"task": task, "doc_id": s["doc_id"], "answer": s["target"], "response": s["filtered_resps"][0]}
        for s in samples
    ]
    return metrics, rows


def _read(benchmark: Benchmark, results: Mapping, samples: Sequence[Mapping]) -> dict[str, dict]:
    """Values as lmms-eval aggregates them; the error of a mean over questions, and MME's own."""
    metrics = {}
    for theirs, (ours, factor) in benchmark.metrics.items():
        counted = [sample[theirs] for sample in samples if theirs in sample]
        if not counted:
            continue  # no question of this kind, as MME's cognition in a part of the data
        if ours.startswith("MME-"):
            stderr = mme_stderr(counted)
        else:
            stderr = _mean_stderr(counted, factor)
        metrics[ours] = _metric(
            factor * float(results[f"{theirs},none"]), stderr, benchmark.unit, len(counted)
        )
    return metrics


def _mean_stderr(counted: Sequence, factor: float) -> float | None:
    """Of a mean over questions; None where their scores are not numbers."""
    scores = [item.get("score") if isinstance(item, dict) else item for item in counted]
    if not all(isinstance(score, int | float) for score in scores):
        return None
    mean = sum(scores) / len(scores)
    spread = sum((score - mean) ** 2 for score in scores)
    return factor * (spread / max(1, len(scores) - 1) / len(scores)) ** 0.5


def pope_metrics(metrics: Mapping[str, dict], samples: Sequence[Mapping]) -> dict[str, dict]:
    """POPE's metrics with their errors, and F1 by its own parser, averaged over its settings as LLaVA
    publishes it.

    The errors are those of drawing the pictures again (`image_source`), each with all its questions: 18 of
    9,000 share one. None where the data do not name the pictures.
    """
    exact = _pope_items(samples, "exact")
    errors = {f"POPE/{name}/exact": _pope_stderr(exact, rate) for name, rate in _RATES.items()}
    items = _pope_items(samples, "official")
    value, stderr = 100 * mean_f1_of_settings(items), _pope_stderr(items, mean_f1_of_settings)
    official = {"POPE/f1/official": _metric(value, stderr, "%", len(items))}
    return {key: {**metric, "stderr": errors[key]} for key, metric in metrics.items()} | official


def _pope_items(samples: Sequence[Mapping], parser: str) -> list[Item]:
    items = []
    for sample in samples:
        answer = str(sample["target"]).strip().lower()
        prediction = YES_NO_PARSERS[parser](sample["filtered_resps"][0])
        items.append({
            "group": sample["doc"].get("image_source"), "setting": sample["doc"].get("category", ""),
            "answer": answer, "prediction": prediction, "score": float(answer == prediction),
        })  # fmt: skip
    return items


def _pope_stderr(items: Sequence[Item], aggregate: Callable[[Sequence[Item]], float]) -> float | None:
    if any(item["group"] is None for item in items):
        return None
    return 100 * bootstrap_stderr(items, aggregate, seed=0)


def _metric(value: float, stderr: float | None, unit: str, num_samples: int) -> dict:
    return {
        "value": value,
        "stderr": stderr,
        "unit": unit,
        "higher_is_better": True,
        "num_samples": num_samples,
    }


def reason(error: BaseException) -> str:
    """One line that says why a task could not run: the first cause, not the wrappers around it."""
    while True:
        inner = getattr(error, "last_attempt", None)
        inner = inner.exception() if inner is not None else error.__cause__
        if inner is None:
            break
        error = inner
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
