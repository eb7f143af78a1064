"""suite=distillation as planned: its rows and what they share, ablations, wrong sections, figures."""

import pytest

from encoder.runtime.config import ConfigError, resolve
from harness.command_line import make_plans
from harness.config import chosen_suites, parse
from harness.running.stages import Graph
from harness.suites.distillation import COST_KEYS
from harness.tables import curves
from harness.tables.grids import grids

OF_REAL = ("decoded real tokens", "real vs real")  # the last rows: nothing of them is generated


@pytest.fixture
def plans_of(tmp_path):
    """The plans of suite=distillation with some words, one for each seed."""

    def plans(*words):
        options, preset = parse([f"runs_dir={tmp_path}", "suite=distillation", *words])
        made = make_plans(Graph(options.runs_dir.resolve()), options, preset)
        for each in made:
            each.check()
        return made

    return plans


@pytest.fixture
def plan_of(plans_of):
    """The plan of one seed."""

    def plan(*words):
        (made,) = plans_of(*words)
        return made

    return plan


def model_of(row):
    """The stage whose weights a row is of."""
    generated = row.parts[0].stage.inputs[0]
    return next(each for each in generated.inputs if f"{each.folder}/weights" == generated.config.model)


def steps_of(row):
    config = row.parts[0].stage.inputs[0].config
    return config.num_steps, config.inner_steps


def test_rows_are_teacher_and_students_by_method_and_steps(plan_of):
    rows = {row.encoder: row for row in plan_of().rows}
    assert list(rows) == [
        "ov3-demo/teacher/25x1", "ov3-demo/teacher/4x1", "ov3-demo/teacher/2x1",
        "ov3-demo/meanflow/4x1", "ov3-demo/meanflow/2x1", "ov3-demo/dmd2/4x1", "ov3-demo/dmd2/2x1",
        "ov3-demo/tmd/4x2", "ov3-demo/tmd/2x2", "ov3-demo/tmd, stage 1 alone/4x2", *OF_REAL,
    ]  # fmt: skip
    drawn = {name: steps_of(row) for name, row in rows.items() if name not in OF_REAL}
    assert drawn["ov3-demo/teacher/25x1"] == (25, None) and drawn["ov3-demo/tmd/2x2"] == (2, 2)
    teacher = model_of(rows["ov3-demo/teacher/25x1"])
    assert teacher.module == "rae_bridge.train" and model_of(rows["ov3-demo/teacher/2x1"]) is teacher
    second = model_of(rows["ov3-demo/tmd/4x2"])
    first = model_of(rows["ov3-demo/tmd, stage 1 alone/4x2"])
    assert first in second.inputs and second.config.student == f"{first.folder}/weights"
    assert (first.config.stage, second.config.stage) == (1, 2)
    students = [model_of(row) for name, row in rows.items() if "teacher" not in name and name not in OF_REAL]
    for student in students:
        config = student.config
        assert (
            config.teacher == f"{teacher.folder}/weights" and config.steps == 4 and teacher in student.inputs
        )
        assert config.inner_steps == (2 if config.method == "tmd" else 1)
    assert len({student.folder for student in students}) == 4


def test_every_row_has_quality_and_cost(plan_of):
    *rows, ceiling, floor = plan_of().rows
    for row in rows:
        quality, price = row.parts
        assert price.keys == COST_KEYS and {"gFD-lite0", "recall-lite0"} <= set(quality.keys)
        assert (price.stage.config.num_steps, price.stage.config.teacher_steps) == (steps_of(row)[0], 25)
    for row in (ceiling, floor):
        assert set(row.undefined) == set(COST_KEYS)
    (quality,) = ceiling.parts  # what a perfect generator gets is measured as the others are
    assert set(quality.keys) == set(rows[0].parts[0].keys) and "gFD-tokens" in quality.keys


def test_seeds_share_a_teacher_or_have_their_own(plans_of):
    def teachers(*words):
        return [model_of(made.rows[0]) for made in plans_of("seeds=[0,1]", *words)]

    own, shared = teachers(), teachers("distillation.teacher_seed=3")
    assert [each.config.seed for each in own] == [0, 1] and [each.config.seed for each in shared] == [3, 3]
    assert shared[0].folder == shared[1].folder
    first, second = (
        model_of(made.rows[3]) for made in plans_of("seeds=[0,1]", "distillation.teacher_seed=3")
    )
    assert (first.config.seed, second.config.seed) == (0, 1) and first.config.teacher == second.config.teacher


def test_its_judge_may_see_fewer_pictures_than_the_presets(plan_of):
    row = plan_of("distillation.reference.num_samples=1500").rows[0]
    assert row.parts[0].stage.inputs[0].config.num_samples == 1500


def test_ablations_change_what_they_say_and_share_what_they_do_not(plan_of):
    rows = {
        row.encoder.split("/")[1]: row
        for row in plan_of("distillation.ablations=true").rows
        if "/" in row.encoder
    }
    base = model_of(rows["tmd"])
    compared = [
        row.encoder for row in plan_of("distillation.ablations=true").rows if "ablations" in row.groups
    ]
    assert compared[0] == "ov3-demo/tmd/4x2" and compared[-1] == "real vs real" and len(compared) == 9
    assert not any("ablations" in row.groups for row in plan_of().rows)

    def differing(a, b, prefix=""):
        for key in a:
            if isinstance(a[key], dict):
                yield from differing(a[key], b[key], f"{prefix}{key}.")
            elif a[key] != b[key]:
                yield f"{prefix}{key}"

    def first_of(second):
        return next(each for each in second.inputs if each.module == "rae_bridge.distill")

    expected = {
        "no rollout": (set(), {"distribution.rollout"}),
        "no discriminator": (set(), {"distribution.gan_weight"}),
        "N = 1": ({"inner_steps"},) * 2, "N = 4": ({"inner_steps"},) * 2,
        "plain matching": ({"matching.same_time_share"}, set()), "concat": ({"fusion"}, set()),
        "the paper's anchor": ({"anchor"}, set()),
    }  # fmt: skip
    assert {name.removeprefix("tmd, ") for name in rows if name.startswith("tmd, ")} == {
        *expected, "stage 1 alone"
    }  # fmt: skip
    for label, (of_first, of_second) in expected.items():
        second = model_of(rows[f"tmd, {label}"])
        pairs = (
            (first_of(base), first_of(second), of_first),
            (base, second, of_second | ({"student"} if of_first else set())),
        )
        for ours, other, keys in pairs:
            assert set(differing(resolve(ours.config), resolve(other.config))) == keys, label


def test_some_ablations_are_taken_by_their_names(plan_of):
    rows = plan_of("distillation.ablations=[N = 4,no rollout]").rows
    compared = [row.encoder.removeprefix("ov3-demo/") for row in rows if "ablations" in row.groups]
    assert compared == ["tmd/4x2", "tmd, N = 4/4x4", "tmd, no rollout/4x2", "real vs real"]


def test_fewer_or_other_steps_are_taken_from_the_command_line(plan_of):
    rows = plan_of("distillation.steps=[8,4,1]", "distillation.inner_steps=3").rows
    assert {steps_of(row) for row in rows[:-1] if "/tmd/" in row.encoder} == {(8, 3), (4, 3), (1, 3)}
    assert model_of(rows[-3]).config.steps == 8


@pytest.mark.parametrize(
    "word, words",
    [
        ("distillation.steps=[4,3]", "must divide the largest"),
        ("distillation.steps=[]", "must divide the largest"),
        ("distillation.inner_steps=0", "1 or more"),
        ("distillation.ablations=[no rollouts]", "no rollout"),
        ("distillation.students.tmd_1.num_step=3", "num_steps"),
        ("distillation.students.dmd2.method=tmd", "filled in by the harness"),
        ("distillation.students.cmt.num_steps=3", "must be meanflow, dmd2, tmd_1, tmd_2"),
        ("distillation.rae.trane.num_steps=3", "train"),
        ("encoders=[blind]", "needs an encoder that sees"),
        ("preset=small", "no distillation section"),
    ],
)
def test_what_cannot_be_meant_is_refused(plan_of, word, words):
    with pytest.raises(ConfigError, match=words):
        plan_of(word)


def test_sections_are_checked_whatever_suite_is_asked_for(tmp_path):
    options, preset = parse([f"runs_dir={tmp_path}", "suite=generation", "distillation.cost.batch=3"])
    with pytest.raises(ConfigError, match=r"distillation\.cost"):
        make_plans(Graph(options.runs_dir.resolve()), options, preset)


def test_it_is_part_of_no_other_suite():
    assert "distillation" not in [suite.name for suite in chosen_suites("all")]


def row(name, gfd=None, cost=None, kind="measured"):
    numbers = {"gFD-lite0": gfd, "nfe/flops": cost}
    about = {
        "stderr": None,
        "std": None,
        "num_seeds": 1,
        "unit": "",
        "higher_is_better": False,
        "result_file": "a",
    }
    metrics = {key: {"value": value, **about} for key, value in numbers.items() if value is not None}
    return {"encoder": name, "kind": kind, "metrics": metrics, "not_run": {}, "groups": {"methods": name}}


def test_the_figure_is_drawn_of_what_is_there(tmp_path):
    rows = [row("e/teacher/4x1", 3.0, 4.0), row("e/teacher/25x1", 2.0, 25.0), row("e/tmd/4x2", None, 5.0)]
    rows.append(row("real vs real", 1.0, kind="floor"))
    path = curves.quality_against_cost(tmp_path / "quality.png", rows, ["gFD-lite0"], "nfe/flops")
    assert path.stat().st_size > 5000


def test_the_table_shows_methods_and_ablations_apart():
    (suite,) = chosen_suites("distillation")
    rows = [row("tmd/4x2", 3.0, 4.4), row("tmd, concat/4x2", 3.1, 4.4)]
    rows[1]["groups"] = {"ablations": "tmd, concat/4x2"}
    found = list(grids({"rows": rows}, suite, with_appendix=False))
    assert [grid.title for grid in found] == ["Few steps", "What TMD is made of"]
    assert found[0].header[-1].startswith("nfe/flops") and [line[0] for line in found[1].lines] == [
        "tmd, concat/4x2"
    ]
