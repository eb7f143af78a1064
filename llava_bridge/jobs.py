"""What an evaluation asks beside our own tasks: public benchmarks, and tasks of one's own. Each runs alone,
so that one that fails costs no other its score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from encoder.runtime.config import ROOT
from llava_bridge.benchmark_table import BENCHMARKS, TASK_SETS
from llava_bridge.benchmarks import reason, run_task
from llava_bridge.config import EvaluateConfig
from llava_bridge.custom_tasks import CustomTask, find_task, refuse_equal_names, run_custom
from llava_bridge.scores import Scores

OWN_TASKS = "tasks"  # the name, among scores, of what the config's `tasks` asks for
_BOOTSTRAPS = 1000  # behind the standard errors that lmms-eval gives no formula for


@dataclass(frozen=True, slots=True)
class Job:
    """A benchmark or a custom task, which runs alone: keys of its metrics, and what scores it."""

    name: str
    keys: tuple[str, ...]
    run: Callable[[], tuple[dict, list[dict]]]


def jobs(config: EvaluateConfig, customs: Sequence[CustomTask], folder: Path, score: Callable) -> list[Job]:
    """What is asked for beside our own tasks, in order; `folder` takes the task files that are written."""
    data_root = ROOT / config.data_root if config.data_root is not None else None
    public = [
        Job(name, BENCHMARKS[name].keys, partial(run_task, name, data_root, folder, score))
        for name in benchmark_names(config)
    ]
    with_errors = partial(score, bootstrap_iters=_BOOTSTRAPS)
    return public + [
        Job(task.name, task.keys, partial(run_custom, task, folder, with_errors)) for task in customs
    ]


def run_jobs(wanted: Sequence[Job], scores: Scores) -> dict[str, str]:
    """Run those that have no scores yet, one by one; returns {metric key: reason} of those that could not
    run. Every process of a launch calls: what fails in one has failed in all."""
    from encoder.runtime.distributed import end_together, from_first

    not_run: dict[str, str] = {}
    known = from_first([job.name for job in wanted if job.name in scores])
    for job in (job for job in wanted if job.name not in known):
        fault = None
        try:
            metrics, rows = job.run()
        except Exception as error:  # of any kind: the reason stands in the result, the others go on
            fault = reason(error)
        fault = end_together(job.name, fault)
        if fault is not None:
            not_run |= dict.fromkeys(job.keys, fault)
            continue
        scores.add(job.name, metrics, rows)
    return not_run


def custom_tasks(config: EvaluateConfig) -> list[CustomTask]:
    """The tasks of `custom`, their files read.

    Raises:
        FileNotFoundError, ValueError: as `find_task`; two tasks have one name.
    """
    folder = ROOT / config.include_path if config.include_path is not None else None
    found = [find_task(word, folder, ROOT) for word in config.custom]
    refuse_equal_names(found, [*benchmark_names(config), OWN_TASKS])
    return found


def benchmark_names(config: EvaluateConfig) -> Sequence[str]:
    """The public benchmarks that are asked for, in order."""
    return config.benchmarks or (TASK_SETS[config.task_set] if config.task_set != "none" else ())
