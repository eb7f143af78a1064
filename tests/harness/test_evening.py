"""preset=evening as planned: pictures of a class, two seeds, guidance chosen on validation pictures."""

import pytest

from encoder.runtime.config import ROOT, ConfigError
from harness.command_line import make_plans
from harness.config import parse, results_folder
from harness.running.stages import Graph


def planned(tmp_path, *words):
    options, preset = parse([f"runs_dir={tmp_path}", "preset=evening", *words])
    graph = Graph(options.runs_dir)
    return graph, make_plans(graph, options, preset)


def test_two_seeds_share_the_pictures_and_the_references(tmp_path):
    graph, plans = planned(tmp_path)
    assert [(plan.suite.name, plan.seed) for plan in plans] == [
        ("generation", 0), ("understanding", 0), ("generation", 1), ("understanding", 1),
    ]  # fmt: skip
    count = {
        name: sum(stage.name == name for stage in graph) for name in ("scenes", "reference", "rae_train")
    }
    assert count == {"scenes": 2, "reference": 2, "rae_train": 4}  # the test's and val's; 2 encoders, 2 seeds
    rows = {row.encoder: row.kind for row in plans[0].rows}
    assert rows["clip-demo, guided"] == "measured" and rows["clip-demo, decoded real tokens"] == "ceiling"


def test_guidance_is_chosen_on_pictures_that_judge_nothing(tmp_path):
    graph, _ = planned(tmp_path, "suite=generation", "seeds=[0]")
    (validation,) = [stage for stage in graph if stage.label == "validation pictures"]
    judging = [stage for stage in graph if stage.label.startswith("real pictures and the floor")]
    assert validation.config.split == "val" and {stage.config.split for stage in judging} == {"test"}
    sweeps = [stage for stage in graph if stage.name == "rae_sweep"]
    assert len(sweeps) == 2 and {stage.config.judge.reference for stage in sweeps} == {
        str(validation.folder / "features.npz")
    }
    with pytest.raises(ConfigError, match="takes two sets of val pictures, 90000; there are"):
        planned(tmp_path, "suite=generation", "generation.num_validation=45000")


def test_pairs_are_held_back_from_the_generators_pictures_alone(tmp_path):
    graph, _ = planned(tmp_path, "seeds=[0]")
    scenes = {stage.config.composition: stage.config for stage in graph if stage.name == "scenes"}
    assert set(scenes) == {"object_centric", "scene_centric"}
    held = scenes["object_centric"].held_out
    assert len(held.colors) >= 4 and len(held.slots) >= 2
    assert not scenes["scene_centric"].held_out.colors  # the yardstick's pictures stay what they were


def test_a_presets_seeds_are_its_usual_ones_and_the_command_lines_come_first(tmp_path):
    for words, seeds in (([], [0, 1]), (["seed=3"], [3]), (["seeds=[4,5]"], [4, 5])):
        options, preset = parse(["preset=evening", *words])
        assert options.all_seeds == seeds
        assert (results_folder(options, preset) == ROOT / "results" / "evening") == (not words)
    assert parse(["preset=demo"])[0].all_seeds == [0]


def test_few_steps_have_one_teacher_and_students_of_two_seeds(tmp_path):
    graph, plans = planned(tmp_path, "suite=distillation")
    assert [plan.seed for plan in plans] == [0, 1]
    (teacher,) = [stage for stage in graph if stage.name == "rae_train"]
    generators = [stage for stage in planned(tmp_path, "suite=generation")[0] if stage.name == "rae_train"]
    assert teacher.folder in {stage.folder for stage in generators}  # trained once for both suites
    students = [stage.config for stage in graph if stage.name == "rae_distill"]
    assert len(students) == 8 and {config.seed for config in students} == {0, 1}
    assert {config.teacher for config in students} == {f"{teacher.folder}/weights"}
    methods = {row.encoder.split("/")[1] for row in plans[0].rows if row.encoder.endswith("/1x1")}
    assert methods == {"teacher", "meanflow", "dmd2"}  # one step too; tmd's is 1x2
