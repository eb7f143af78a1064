"""The public benchmarks by their lmms-eval names: where each lies on the hub, what its numbers are called.

No torch, no numpy: the command line reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One packaged task. `metrics`: lmms-eval's key -> (ours, factor to the unit shown)."""

    yaml: str  # under lmms_eval/tasks
    data_set: str  # the hub repository's name, without its owner
    config: str  # its folder there
    split: str
    metrics: Mapping[str, tuple[str, float]]
    unit: str = "%"
    replace: Mapping[str, Any] = field(default_factory=dict)  # keys of the packaged YAML
    more: tuple[str, ...] = ()  # keys of ours that are computed from the answers

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that it gives on the whole of its data."""
        return (*(name for name, _ in self.metrics.values()), *self.more)


BENCHMARKS = {
    "mme": Benchmark(
        yaml="mme/mme.yaml", data_set="MME", config="data", split="test", unit="points",
        metrics={"mme_perception_score": ("MME-P", 1.0), "mme_cognition_score": ("MME-C", 1.0)},
    ),
    "seedbench": Benchmark(
        yaml="seedbench/seedbench.yaml", data_set="SEED-Bench", config="data", split="test",
        metrics={"seed_image": ("SEED-Bench", 100.0)},
        replace={"process_docs": "!function llava_bridge.benchmarks.keep_images"},
    ),
    "scienceqa_img": Benchmark(
        yaml="scienceqa/scienceqa_img.yaml", data_set="ScienceQA", config="ScienceQA-IMG", split="test",
        metrics={"exact_match": ("ScienceQA-IMG", 100.0)},
    ),
    "scienceqa": Benchmark(  # questions with and without a picture
        yaml="scienceqa/scienceqa.yaml", data_set="ScienceQA", config="ScienceQA-FULL", split="test",
        metrics={"exact_match": ("ScienceQA", 100.0)},
    ),
    "gqa": Benchmark(
        yaml="gqa/gqa.yaml", data_set="GQA", config="testdev_balanced_instructions", split="testdev",
        metrics={"exact_match": ("GQA", 100.0)},
    ),
    "pope": Benchmark(
        yaml="pope/pope.yaml", data_set="POPE", config="data", split="test",
        metrics={
            f"pope_{key}": (f"POPE/{name}/exact", 100.0)
            for key, name in (
                ("accuracy", "accuracy"), ("precision", "precision"),
                ("recall", "recall"), ("f1_score", "f1"),
            )
        },
        more=("POPE/f1/official",),
    ),
    "textvqa_val": Benchmark(
        yaml="textvqa/textvqa_val.yaml", data_set="textvqa", config="data", split="validation",
        metrics={"exact_match": ("TextVQA", 100.0)},
    ),
    "mmbench_en_dev_static": Benchmark(
        yaml="mmbench/mmbench_en_dev_static.yaml", data_set="MMBench", config="en", split="dev",
        metrics={"gpt_eval_score": ("MMBench-static", 1.0)},
    ),
    "ocrbench": Benchmark(
        yaml="ocrbench/ocrbench.yaml", data_set="OCRBench", config="data", split="test",
        metrics={"ocrbench_accuracy": ("OCRBench", 100.0)},
        # the packaged sum is over 1,000 whatever was asked, and adds up over the runs of a process
        replace={"metric_list": "[{metric: ocrbench_accuracy, higher_is_better: true, "
                 "aggregation: !function llava_bridge.benchmarks.mean_of_scores}]"},
    ),
    "chartqa": Benchmark(
        yaml="chartqa/chartqa.yaml", data_set="ChartQA", config="data", split="test",
        metrics={"relaxed_overall": ("ChartQA", 100.0)},
    ),
}  # fmt: skip
PAPER = ("mme", "seedbench", "scienceqa", "scienceqa_img", "gqa", "pope")  # of OpenVision 3's Table 4
TASK_SETS = {"paper": PAPER, "extended": tuple(BENCHMARKS)}
