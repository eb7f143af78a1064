"""Paired bootstrap: is an encoder's score on the same questions another than the baseline's?

Whole groups of questions (twin scenes, which share their words) are drawn again with replacement, the same
draw for both encoders and for all seeds. The variance of the difference is that over the draws plus, with
several seeds, each encoder's variance over its seeds divided by their number; p is Student's, with the
degrees of freedom of Welch and Satterthwaite (one less than the groups, one less than the seeds), since a
dozen groups or two seeds say little about their own spread. The interval holds the middle 95 % of the
differences drawn; with several seeds it is Student's too.

Of many comparisons some would differ by luck: p is corrected for the number of all that are made together,
by Holm's method (Scandinavian Journal of Statistics 6, 1979), which holds however they depend on each
other.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from encoder.data.scenes.wording import DIMENSIONS

CONFIDENCE_PERCENT = 95
NUM_RESAMPLES = 2000
MIN_GROUPS = 10  # fewer drawn again say nothing about others: two equal groups would leave an interval of 0
_KIND_OF_QUESTION = {"scenes_seed": "question_type_id", "scenes_pope": "category"}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One key of one encoder against the baseline; values in %, `difference` is encoder - baseline."""

    encoder: str
    key: str
    difference: float
    low: float
    high: float
    p: float  # of a difference as large by chance, for this comparison alone
    p_holm: float = 1.0  # corrected for the number of comparisons
    is_different: bool = False
    num_questions: int
    num_groups: int
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one encoder answered: a samples.jsonl for each seed, and the questions' parquet files."""

    encoder: str
    samples: Sequence[Path]
    questions: Sequence[Path]


def compare(answers: Sequence[Answers], baseline: str, seed: int = 0) -> dict | None:
    """Every encoder against `baseline`, on every key with MIN_GROUPS groups or more; None without a baseline
    or an encoder beside it.

    Raises:
        ValueError: two encoders did not answer the same questions.
    """
    by_name = {each.encoder: _counts(each) for each in answers}
    if baseline not in by_name or len(by_name) < 2:
        return None
    theirs = by_name.pop(baseline)
    pairs = []
    for encoder, ours in by_name.items():
        for key in [key for key in ours if key in theirs and len(ours[key].groups) >= MIN_GROUPS]:
            interval = _interval(ours[key], theirs[key], _STATISTICS[_statistic_of(key)], seed)
            pairs.append(Pair(encoder=encoder, key=key, **interval))
    about = {"baseline": baseline, "confidence_percent": CONFIDENCE_PERCENT, "num_resamples": NUM_RESAMPLES}
    about |= {"correction": "Holm", "num_tests": len(pairs), "seed": seed}
    corrected = holm([pair.p for pair in pairs])
    found = [
        replace(pair, p_holm=p, is_different=100 * p <= 100 - CONFIDENCE_PERCENT)
        for pair, p in zip(pairs, corrected, strict=True)
    ]
    return {**about, "pairs": [asdict(pair) for pair in found]}


def holm(ps: Sequence[float]) -> list[float]:
    """Each p corrected for the number of tests: the i-th least times as many as are not below it, never less
    than the one before, at most 1."""
    corrected, largest = [0.0] * len(ps), 0.0
    for i, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        largest = max(largest, min(1.0, (len(ps) - i) * ps[place]))
        corrected[place] = largest
    return corrected


@dataclass(frozen=True)
class _Counts:
    """What the score of one key is made of, group by group."""

    groups: list[tuple]  # G names
    counts: np.ndarray  # S (seeds) G C; C depends on the statistic
    num_questions: int


def _counts(answers: Answers) -> dict[str, _Counts]:
    """Of every key that can be read from the answers."""
    kinds = _kinds(answers.questions)
    tables: dict[str, dict[tuple, np.ndarray]] = {}
    num_questions: dict[str, int] = {}
    num_seeds = len(answers.samples)
    for i, path in enumerate(answers.samples):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            kind = kinds.get((row["task"], str(row["question_id"])))
            for key, column, width in _places(row, kind):
                table = tables.setdefault(key, {})
                group = (row["task"], kind, row["group"])
                table.setdefault(group, np.zeros((num_seeds, width)))[i] += column
                num_questions[key] = num_questions.get(key, 0) + (i == 0)
    found = {}
    for key, table in tables.items():
        groups = sorted(table, key=str)
        found[key] = _Counts(groups, np.stack([table[group] for group in groups], axis=1), num_questions[key])
    return found


def _kinds(questions: Sequence[Path]) -> dict[tuple[str, str], str]:
    """(task, question id) -> its dimension or setting."""
    kinds = {}
    for path in questions:
        column = _KIND_OF_QUESTION.get(path.stem)
        if column is not None:
            for row in pq.read_table(path, columns=["question_id", column]).to_pylist():
                kinds[path.stem, str(row["question_id"])] = row[column]
    return kinds


def _places(row: Mapping, kind: object) -> list[tuple[str, np.ndarray, int]]:
    """(key, what this answer adds to its counts, how many counts) of one answer."""
    if row["task"] == "scenes_seed" and kind is not None:
        right = np.array([float(row["is_correct"]), 1.0])
        return [("Scenes-SEED", right, 2), (f"Scenes-SEED/{DIMENSIONS[int(kind)]}", right, 2)]
    if row["task"] == "own_captions":
        return [("Own-Captions", np.array([float(row["is_correct"]), 1.0]), 2)]
    if row["task"] == "scenes_pope" and kind is not None:
        truth, said = row["answer"], row["prediction"]
        confusion = np.array([(truth, said) == pair for pair in _CONFUSION], dtype=float)
        whole = np.zeros((len(_SETTINGS), 3))
        whole[_SETTINGS.index(kind)] = confusion
        return [
            ("Scenes-POPE/f1/official", whole.ravel(), whole.size),
            (f"Scenes-POPE/{kind}/f1/official", confusion, 3),
        ]
    return []


_SETTINGS = ("random", "popular", "adversarial")
_CONFUSION = (("yes", "yes"), ("no", "yes"), ("yes", "no"))


def _share(counts: np.ndarray) -> np.ndarray:
    """Right among all, of counts (right, all) in the last axis."""
    return counts[..., 0] / counts[..., 1]


def _mean_f1(counts: np.ndarray) -> np.ndarray:
    """F1 averaged over settings, of counts (true yes, false yes, false no) of each; 0 where all are 0."""
    true_yes, false_yes, false_no = np.moveaxis(counts.reshape(*counts.shape[:-1], -1, 3), -1, 0)
    total = 2 * true_yes + false_yes + false_no
    return np.divide(2 * true_yes, total, out=np.zeros_like(total), where=total > 0).mean(axis=-1)


_STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"share": _share, "f1": _mean_f1}


def _statistic_of(key: str) -> str:
    return "f1" if "/f1/" in key else "share"


def _interval(ours: _Counts, theirs: _Counts, statistic: Callable, seed: int) -> dict:
    if ours.groups != theirs.groups:
        raise ValueError("two encoders answered other questions; they cannot be compared one by one")
    num_groups = len(ours.groups)
    generator = np.random.default_rng(seed)
    even = np.full(num_groups, 1 / num_groups)
    weights = generator.multinomial(num_groups, even, NUM_RESAMPLES).astype(float)  # R G

    def score(side: _Counts, weights: np.ndarray) -> np.ndarray:
        return 100 * statistic(np.einsum("rg,sgc->rsc", weights, side.counts))  # R S

    with np.errstate(invalid="ignore"):
        drawn = score(ours, weights).mean(axis=1) - score(theirs, weights).mean(axis=1)
    by_seed = [score(side, np.ones((1, num_groups)))[0] for side in (ours, theirs)]
    difference = float(by_seed[0].mean() - by_seed[1].mean())
    low, high, p = _student(difference, drawn, num_groups, by_seed)
    if max(map(len, by_seed)) == 1:
        tail = (100 - CONFIDENCE_PERCENT) / 2
        low, high = map(float, np.nanpercentile(drawn, [tail, 100 - tail]))
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "p": p,
        "num_questions": ours.num_questions,
        "num_groups": num_groups,
        "num_seeds": ours.counts.shape[0],
    }


def _student(
    difference: float, drawn: np.ndarray, num_groups: int, by_seed: Sequence[np.ndarray]
) -> tuple[float, float, float]:
    """Interval and p from the variance over groups of questions and each encoder's over its seeds."""
    parts = [(float(np.nanvar(drawn, ddof=1)), num_groups - 1)]
    parts += [
        (float(values.var(ddof=1)) / len(values), len(values) - 1) for values in by_seed if len(values) > 1
    ]
    total = sum(variance for variance, _ in parts)
    if not total > 0:  # the same in each group and for each seed
        return difference, difference, 1.0 if difference == 0 else 0.0
    freedom = total**2 / sum(variance**2 / each for variance, each in parts)
    half = float(stats.t.ppf(0.5 + CONFIDENCE_PERCENT / 200, freedom)) * total**0.5
    p = 2 * float(stats.t.sf(abs(difference) / total**0.5, freedom))
    return difference - half, difference + half, p
