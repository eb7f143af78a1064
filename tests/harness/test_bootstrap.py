"""The paired bootstrap against a loop written out, and what it must and must not call different."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.tables import bootstrap
from harness.tables.bootstrap import Answers, compare, holm

NUM_GROUPS = 40


def write(folder, name, right, *, said_yes=None, seed=0):
    """samples.jsonl: question i of group i // 4 is answered rightly with probability `right`; POPE pairs."""
    generator = np.random.default_rng(seed)
    lines = []
    for i in range(4 * NUM_GROUPS):
        is_correct = bool(generator.random() < right)
        lines.append({"task": "scenes_seed", "question_id": str(i), "group": i // 4, "answer": "A"})
        lines[-1] |= {"prediction": "A" if is_correct else "B", "is_correct": is_correct}
    for i in range(2 * NUM_GROUPS):
        truth = ("yes", "no")[i % 2]
        said = said_yes or (truth if generator.random() < right else ("no", "yes")[i % 2])
        lines.append({"task": "scenes_pope", "question_id": str(i), "group": i // 2, "answer": truth})
        lines[-1] |= {"prediction": said, "is_correct": said == truth}
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture
def questions(tmp_path):
    seed_ids = [{"question_id": str(i), "question_type_id": 1 + i // 4 % 2} for i in range(4 * NUM_GROUPS)]
    settings = ("random", "popular", "adversarial")
    pope_ids = [
        {"question_id": str(i), "category": settings[i // 2 % len(settings)]} for i in range(2 * NUM_GROUPS)
    ]
    files = []
    for name, rows in (("scenes_seed", seed_ids), ("scenes_pope", pope_ids)):
        files.append(tmp_path / f"{name}.parquet")
        pq.write_table(pa.Table.from_pylist(rows), files[-1])
    return files


def pairs(content):
    return {pair["key"]: pair for pair in content["pairs"]}


def test_clearly_better_answers_differ_and_equal_ones_do_not(tmp_path, questions):
    good, poor, same = (write(tmp_path, *each) for each in (("a", 0.9), ("b", 0.4), ("c", 0.4)))
    answers = [
        Answers(encoder=n, samples=[p], questions=questions)
        for n, p in zip("abc", (good, poor, same), strict=True)
    ]
    content = compare(answers, "b")
    both = {name: [p for p in content["pairs"] if p["encoder"] == name] for name in ("a", "c")}
    assert all(
        pair["low"] > 0 for pair in both["a"] if pair["key"] in ("Scenes-SEED", "Scenes-POPE/f1/official")
    )
    assert all(pair["low"] == pair["high"] == pair["difference"] == 0 for pair in both["c"])


def test_the_interval_is_the_one_of_a_loop_over_groups(tmp_path, questions, monkeypatch):
    monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 4000)
    files = [write(tmp_path, "a", 0.7, seed=1), write(tmp_path, "b", 0.6, seed=2)]
    answers = [Answers(encoder=n, samples=[p], questions=questions) for n, p in zip("ab", files, strict=True)]
    got = pairs(compare(answers, "b"))["Scenes-SEED"]
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in files]
    right = [
        [
            np.mean([r["is_correct"] for r in each if r["task"] == "scenes_seed" and r["group"] == g])
            for g in range(NUM_GROUPS)
        ]
        for each in rows
    ]
    by_group = 100 * (np.array(right[0]) - np.array(right[1]))
    generator = np.random.default_rng(7)
    drawn = [by_group[generator.integers(NUM_GROUPS, size=NUM_GROUPS)].mean() for _ in range(4000)]
    assert got["difference"] == pytest.approx(by_group.mean())
    # two draws of 4,000: the ends of the interval agree to a tenth of its width
    assert [got["low"], got["high"]] == pytest.approx(
        list(np.percentile(drawn, [2.5, 97.5])), abs=0.1 * (got["high"] - got["low"])
    )
    assert (got["num_questions"], got["num_seeds"]) == (4 * NUM_GROUPS, 1)


def test_f1_is_the_tasks_own(tmp_path, questions):
    from llava_bridge.answers import mean_f1_of_settings

    files = [write(tmp_path, "a", 0.7), write(tmp_path, "b", 0.5, said_yes="yes")]
    answers = [Answers(encoder=n, samples=[p], questions=questions) for n, p in zip("ab", files, strict=True)]
    got = pairs(compare(answers, "b"))["Scenes-POPE/f1/official"]
    settings = {row["question_id"]: row["category"] for row in pq.read_table(questions[1]).to_pylist()}
    scores = []
    for path in files:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        items = [r | {"setting": settings[r["question_id"]]} for r in rows if r["task"] == "scenes_pope"]
        scores.append(100 * mean_f1_of_settings(items))
    assert got["difference"] == pytest.approx(scores[0] - scores[1])


def test_seeds_are_averaged_and_other_questions_refused(tmp_path, questions):
    first, second = write(tmp_path, "1", 0.9), write(tmp_path, "2", 0.5, seed=3)
    base = Answers(encoder="b", samples=[first, first], questions=questions)
    both = compare([Answers(encoder="a", samples=[first, second], questions=questions), base], "b")
    one = compare(
        [
            Answers(encoder="a", samples=[second], questions=questions),
            Answers(encoder="b", samples=[first], questions=questions),
        ],
        "b",
    )
    key = "Scenes-SEED"
    assert pairs(both)[key]["num_seeds"] == 2
    assert pairs(both)[key]["difference"] == pytest.approx(pairs(one)[key]["difference"] / 2)
    short = tmp_path / "short.jsonl"
    short.write_text("".join(line + "\n" for line in first.read_text().splitlines()[8:]))
    with pytest.raises(ValueError, match="other questions"):
        compare([Answers(encoder="a", samples=[short], questions=questions), base], "b")
    assert compare([base], "b") is None
    assert compare([base], "not there") is None


def test_a_handful_of_groups_is_called_nothing(tmp_path, questions, monkeypatch):
    monkeypatch.setattr(f"{__name__}.NUM_GROUPS", 11)
    files = [write(tmp_path, "a", 1.0), write(tmp_path, "b", 0.2)]
    answers = [Answers(encoder=n, samples=[p], questions=questions) for n, p in zip("ab", files, strict=True)]
    found = pairs(compare(answers, "b"))
    assert found["Scenes-SEED"]["num_groups"] == 11 and found["Scenes-SEED"]["low"] > 0
    assert not any(key.startswith("Scenes-SEED/") for key in found)  # 5 or 6 groups a dimension


def test_holm_is_the_stepwise_rule_written_out():
    generator = np.random.default_rng(3)
    ps = [*generator.random(20) ** 4, 0.002, 0.002]
    corrected = holm(ps)
    for share in (0.01, 0.05, 0.3):
        rejected, order = set(), np.argsort(ps, kind="stable")
        for i, place in enumerate(
            order
        ):  # stop at the first that is not small enough for those that are left
            if ps[place] > share / (len(ps) - i):
                break
            rejected.add(int(place))
        assert {i for i, p in enumerate(corrected) if p <= share} == rejected
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_of_many_equal_encoders_none_is_starred_where_single_intervals_star_some(tmp_path, questions):
    names = [f"e{i}" for i in range(14)]
    files = [write(tmp_path, name, 0.5, seed=10 + i) for i, name in enumerate(names)]
    answers = [
        Answers(encoder=name, samples=[path], questions=questions)
        for name, path in zip(names, files, strict=True)
    ]
    content = compare(answers, "e0")
    assert content["correction"] == "Holm" and content["num_tests"] == len(content["pairs"]) > 50
    alone = [pair for pair in content["pairs"] if pair["low"] > 0 or pair["high"] < 0]
    assert alone and not any(pair["is_different"] for pair in content["pairs"])


def test_the_spread_over_seeds_is_part_of_the_difference(tmp_path, questions):
    """Two seeds that lie 60 points apart tell less than their questions; two that agree tell as much."""
    steady = [write(tmp_path, f"steady{i}", 0.85, seed=i) for i in range(2)]
    apart = [write(tmp_path, f"apart{i}", right, seed=5 + i) for i, right in enumerate((0.2, 0.85))]
    base = [write(tmp_path, f"base{i}", 0.25, seed=20 + i) for i in range(2)]
    named = {"steady": steady, "apart": apart, "base": base}
    answers = [Answers(encoder=name, samples=files, questions=questions) for name, files in named.items()]
    found = {(each["encoder"], each["key"]): each for each in compare(answers, "base")["pairs"]}
    assert found["steady", "Scenes-SEED"]["is_different"]
    wide = found["apart", "Scenes-SEED"]
    assert wide["difference"] > 20 and not wide["is_different"] and wide["low"] < 0 < wide["high"]
    scores = {
        name: [
            100
            * np.mean([r["is_correct"] for r in map(json.loads, path.open()) if r["task"] == "scenes_seed"])
            for path in files
        ]
        for name, files in named.items()
    }
    assert wide["difference"] == pytest.approx(np.mean(scores["apart"]) - np.mean(scores["base"]))
    spread = np.var(scores["apart"], ddof=1) / 2 + np.var(scores["base"], ddof=1) / 2
    assert wide["high"] - wide["low"] > 2 * 12.7 * 0.9 * np.sqrt(
        spread
    )  # Student's 97.5 % at one degree: 12.7
