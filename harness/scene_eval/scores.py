"""SceneEval's numbers from which facts hold of which picture: pure functions, no network.

Letters: N pictures, M prompts. A picture is right when all facts of its prompt hold. A task's accuracy is the
mean over its prompts of the share of their pictures that are right; the score is the mean of the nine tasks'
accuracies, as GenEval's is of its six. Standard errors are by drawing prompts again within each task: a
prompt's pictures are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.metrics.config import Metric
from harness.scene_eval.config import SCORE, TASKS
from harness.scene_eval.facts import Seen, all_hold, holds
from harness.scene_eval.tasks import ScenePrompt


@dataclass(frozen=True, slots=True)
class Judged:
    """By prompt: `right`, `swapped` (binding: the colours are exchanged), `facts`, shares of its pictures;
    `shuffled`: of its pictures, the share that is right for other prompts of its task."""

    task: str
    right: float
    swapped: float
    facts: float
    shuffled: float
    num_pictures: int


def judge_all(prompts: Sequence[ScenePrompt], seen: Sequence[Seen], labels: Sequence[int]) -> list[Judged]:
    """What N pictures (`seen`, `labels` their prompts) are worth, prompt by prompt; those without a picture
    are left out."""
    by_prompt: dict[int, list[Seen]] = {}
    for one, label in zip(seen, labels, strict=True):
        by_prompt.setdefault(int(label), []).append(one)
    judged = []
    for number, pictures in sorted(by_prompt.items()):
        prompt = prompts[number]
        others = [each for each in prompts if each.task == prompt.task and each.prompt != prompt.prompt]
        judged.append(
            Judged(
                task=prompt.task,
                right=_mean(all_hold(prompt.facts, one) for one in pictures),
                swapped=_mean(bool(prompt.swapped) and all_hold(prompt.swapped, one) for one in pictures),
                facts=_mean(holds(fact, one) for fact in prompt.facts for one in pictures),
                shuffled=_mean(all_hold(other.facts, one) for other in others for one in pictures),
                num_pictures=len(pictures),
            )
        )
    return judged


def _mean(values) -> float:
    values = list(values)
    return float(np.mean(values)) if values else 0.0


def metrics_of(
    judged: Sequence[Judged], *, judge: str, num_resamples: int, seed: int, ceiling: float | None = None
) -> dict[str, Metric]:
    """Every number by its key, in %. ceiling: the score of rebuilt renders, which is 100 of the normalised
    one; what is right by chance, with prompts and pictures shuffled, is 0 of it."""
    shares = {name: _by_task(judged, name) for name in ("right", "facts", "shuffled", "swapped")}
    counts = {
        task: sum(each.num_pictures for each in judged if each.task == task) for task in shares["right"]
    }
    draw = {"num_resamples": num_resamples, "seed": seed}
    nine = sum(counts[task] for task in TASKS if task in counts)

    def metric(tables: Mapping[str, np.ndarray], num: int, is_up: bool | None = True) -> Metric:
        value, stderr = mean_of_tasks(tables, **draw)
        return Metric(value=100 * value, stderr=100 * stderr, unit="%", higher_is_better=is_up,
                      num_samples=num, judge=judge)  # fmt: skip

    found = {SCORE: metric(_nine(shares["right"]), nine)}
    for task, table in shares["right"].items():
        found[f"{SCORE}/{task}"] = metric({task: table}, counts[task])
    if "binding" in counts:
        found[f"{SCORE}/swap"] = metric({"swap": shares["swapped"]["binding"]}, counts["binding"], False)
    found[f"{SCORE}/facts"] = metric(_nine(shares["facts"]), nine)
    found[f"{SCORE}/shuffled"] = metric(_nine(shares["shuffled"]), nine, None)
    if ceiling is not None:
        floor = found[f"{SCORE}/shuffled"].value
        span = ceiling - floor
        value = 100 * (found[SCORE].value - floor) / span if span > 0 else None
        found[f"{SCORE}/normalised"] = Metric(
            value=value, unit="%", higher_is_better=True, num_samples=nine, judge=judge
        )
    return found


def _by_task(judged: Sequence[Judged], name: str) -> dict[str, np.ndarray]:
    """A number of each prompt, by task."""
    tasks = dict.fromkeys(each.task for each in judged)
    return {task: np.array([getattr(each, name) for each in judged if each.task == task]) for task in tasks}


def _nine(tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the tasks that the score is a mean of."""
    return {task: tables[task] for task in TASKS if task in tables}


def mean_of_tasks(tables: Mapping[str, np.ndarray], *, num_resamples: int, seed: int) -> tuple[float, float]:
    """The mean over tasks of the mean over prompts, and its standard error by drawing each task's prompts
    again."""
    generator, drawn = np.random.default_rng(seed), np.zeros(num_resamples)
    for values in tables.values():
        rows = generator.integers(0, len(values), (num_resamples, len(values)))
        drawn += values[rows].mean(axis=1) / len(tables)
    value = float(np.mean([values.mean() for values in tables.values()]))
    return value, float(drawn.std(ddof=1))


def chance_metrics(prompts: Sequence[ScenePrompt], num_random: int) -> dict[str, Metric]:
    """What other scenes, drawn at random, are right of, in %, by the key of each task and of the score."""
    tasks = dict.fromkeys(each.task for each in prompts)
    chance = {task: 100 * float(np.mean([p.chance for p in prompts if p.task == task])) for task in tasks}
    about = {"unit": "%", "higher_is_better": None, "num_samples": num_random}
    found = {SCORE: Metric(value=float(np.mean([chance[task] for task in TASKS])), **about)}
    return found | {f"{SCORE}/{task}": Metric(value=value, **about) for task, value in chance.items()}
