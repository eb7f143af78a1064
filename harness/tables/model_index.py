"""The numbers of leaderboard rows as the `model-index` of a Hugging Face model card: task, data set, metric.

Source: huggingface/hub-docs@0d37e0c, modelcard.md (the fields, and which are required);
huggingface_hub 2.4.0, `repocard_data.py` (results are told apart by task, data set, its config and split).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.tables.result_files import SCENE_CENTRIC
from llava_bridge.benchmark_table import BENCHMARKS

_OWNER = "lmms-lab-encoder"  # of the benchmarks' data sets on the hub
_IMAGENET = {"type": "ILSVRC/imagenet-1k", "name": "ImageNet-1k"}
_TASKS = {
    "understanding": ("visual-question-answering", "Visual question answering"),
    "generation": ("image-generation", "Class-conditional image generation"),
    "reconstruction": ("image-to-image", "Image reconstruction"),
}
# What measures a reconstruction; all else of the generation suite is of samples
_OF_RECONSTRUCTIONS = re.compile(r"rF(I?)D\b|PSNR|SSIM|LPIPS")
_METRICS = {"rFID": "fid", "gFID": "fid", "IS": "inception_score"}  # others are called as they are
_OF_ANSWERS = ("accuracy", "precision", "recall", "f1", "yes_ratio")
_DIGITS = 6  # significant ones


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A number as the index wants it. row: what to call its row where the encoder has several."""

    suite: str
    key: str
    metric: Mapping[str, Any]  # of the leaderboard
    preset: Mapping[str, Any]  # resolved, of the run
    row: str | None = None


def model_index(name: str, numbers: Iterable[Shown]) -> list[dict[str, Any]]:
    """One model with its results; what is undefined is left out.

    Returns: [{"name", "results": [{"task", "dataset", "metrics": [{"type", "value", "name", "verified"}]}]}].
    """
    results: list[dict[str, Any]] = []
    for number in numbers:
        if number.metric["value"] is None:
            continue
        about = {"task": task_of(number.suite, number.key)}
        about["dataset"] = data_set_of(number.suite, number.key, number.preset)
        found = next((result for result in results if about.items() <= result.items()), None)
        if found is None:
            found = about | {"metrics": []}
            results.append(found)
        found["metrics"].append(_metric(number))
    return [{"name": name, "results": results}]


def task_of(suite: str, key: str) -> dict[str, str]:
    """The task that a number is of."""
    if suite == "generation" and _OF_RECONSTRUCTIONS.match(key.removeprefix(SCENE_CENTRIC)):
        suite = "reconstruction"
    kind, name = _TASKS.get(suite, ("image-feature-extraction", f"suite {suite}"))
    return {"type": kind, "name": name}


def data_set_of(suite: str, key: str, preset: Mapping[str, Any]) -> dict[str, str]:
    """The data set that a number was measured on: a benchmark by its key, else the run's own pictures."""
    head = key.partition("/")[0]
    for benchmark in BENCHMARKS.values():
        if suite == "understanding" and head in {each.partition("/")[0] for each in benchmark.keys}:
            name = benchmark.data_set
            about = {"type": f"{_OWNER}/{name}", "name": name, "config": benchmark.config}
            return about | {"split": benchmark.split}
    split = {"split": preset["reference"].get("split", "test")} if suite == "generation" else {}
    if preset.get("own_data"):
        return {"type": "own-pictures", "name": "pictures of one's own"} | split
    if preset.get("released"):
        return (_IMAGENET if suite == "generation" else {"type": _slug(head), "name": head}) | split
    return {"type": "scenes", "name": "Scenes (drawn by the harness)"} | split


def _metric(number: Shown) -> dict[str, Any]:
    name = f"{number.key} ({number.row})" if number.row else number.key
    value = float(f"{number.metric['value']:.{_DIGITS}g}")
    return {
        "type": metric_of(number.key, number.metric["unit"]),
        "value": value,
        "name": name,
        "verified": False,
    }


def metric_of(key: str, unit: str) -> str:
    """The metric's id: the hub's where it has one."""
    words = key.split("/")
    if answers := [word for word in words if word in _OF_ANSWERS]:
        return answers[0]
    if unit == "%":
        return "accuracy"
    return "score" if unit == "points" else _METRICS.get(key, _slug(key))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
