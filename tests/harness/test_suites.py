"""The suites as planned: what depends on what, which rows, and that tables, tasks and stages speak of the
same keys."""

import re

import pytest

from encoder.runtime.config import ROOT, ConfigError
from harness.command_line import make_plans
from harness.config import chosen_suites, parse
from harness.metrics.config import ReferenceConfig, keys_of
from harness.running.stages import Graph
from harness.tables.leaderboard import PUBLISHED_KEYS, published_rows
from llava_bridge.benchmark_table import BENCHMARKS, TASK_SETS
from llava_bridge.config import TOKENS_SEEN


def planned(tmp_path, *words):
    options, preset = parse([f"runs_dir={tmp_path}", *words])
    graph = Graph(options.runs_dir)
    return graph, {plan.suite.name: plan for plan in make_plans(graph, options, preset)}


def kinds(plan):
    return {row.encoder: row.kind for row in plan.rows}


def labelled(graph, label):
    (stage,) = [stage for stage in graph if stage.label == label]
    return stage


def ancestors(stage):
    return {name for source in stage.inputs for name in (source.label, *ancestors(source))}


def test_the_rows_are_the_encoders_their_control_and_the_floor(tmp_path):
    _, plans = planned(tmp_path)
    assert kinds(plans["understanding"]) == {
        "ov3-demo": "measured",
        "ov3-demo, probe": "probe",
        "clip-demo": "measured",
        "clip-demo, probe": "probe",
        "blind": "blind",
    }
    assert kinds(plans["generation"]) == {
        "ov3-demo": "measured",
        "ov3-demo, decoded real tokens": "ceiling",
        "clip-demo": "measured",
        "clip-demo, decoded real tokens": "ceiling",
        "real vs real": "floor",
    }


def test_a_probe_reads_the_tokens_that_the_bridge_is_taught_with_and_no_trained_weights(tmp_path):
    graph, plans = planned(tmp_path, "suite=understanding")
    stage = labelled(graph, "clip-demo: what a probe reads")
    (llava,) = [stage for stage in graph if stage.label == "clip-demo: tokens of llava pictures"]
    assert stage.config.tokens == str(llava.folder) and ancestors(stage) == {"scenes", llava.label}
    answered = labelled(graph, "clip-demo: answer and score")
    assert stage.config.tasks == answered.config.tasks
    rows = {row.encoder: row for row in plans["understanding"].rows}
    assert rows["clip-demo, probe"].parts[0].keys == rows["clip-demo"].parts[0].keys
    assert rows["clip-demo, probe"].parts[0].answers is None  # no test of the comparisons with the baseline


def test_the_ceiling_decodes_tokens_of_pictures_that_the_reference_has_not(tmp_path):
    graph, plans = planned(tmp_path, "suite=generation")
    tokens = labelled(graph, "ov3-demo: tokens of test pictures").config
    decode = labelled(graph, "ov3-demo: decode real tokens").config
    reference = labelled(graph, "real pictures and the floor").config
    assert (tokens.split, tokens.limit, tokens.features) == ("test", 2 * reference.num_samples, "last")
    assert (decode.first, decode.limit) == (reference.num_samples, reference.num_samples)
    what = ("score the generation", "score the decoded real tokens")
    ours, ceiling = (labelled(graph, f"ov3-demo: {each}") for each in what)
    assert ours.config.real_tokens == ceiling.config.real_tokens
    assert ceiling.config.tokens_first == reference.num_samples
    shown = {part.stage.label for row in plans["generation"].rows for part in row.parts}
    assert shown >= {"ov3-demo: train the DiT", *(f"ov3-demo: {each}" for each in what)}
    assert "ov3-demo: train the DiT" not in ancestors(ceiling)


def test_object_centric_pictures_can_take_the_place_of_the_scenes_or_stand_beside_them(tmp_path):
    of_class = "generation.scenes.composition=object_centric"
    graph, plans = planned(tmp_path, "suite=all", of_class)
    made = {stage.label: stage for stage in graph if stage.name == "scenes"}
    assert made["scenes for generation"].config.composition == "object_centric"
    assert made["scenes for generation"].config.num_llava_images == 0
    assert made["scenes"].config.num_llava_images > 0  # for understanding
    assert "scenes" not in ancestors(labelled(graph, "ov3-demo: train the DiT"))
    assert not any(key.startswith("scene-centric/") for row in plans["generation"].rows
                   for part in row.parts for key in part.keys)  # fmt: skip

    graph, plans = planned(tmp_path, "suite=generation", of_class, "generation.also_scene_centric=true")
    trained = [stage.label for stage in graph if stage.label.startswith("ov3-demo: train the DiT")]
    assert trained == ["ov3-demo: train the DiT", "ov3-demo: train the DiT, scene-centric"]
    for row in plans["generation"].rows:
        keys = {key for part in row.parts for key in part.keys}
        assert {"gFD-lite0", "scene-centric/gFD-lite0", "scene-centric/class-accuracy-lite0"} <= keys
    old, _ = planned(tmp_path, "suite=generation")
    assert {stage.folder for stage in old if stage.name == "rae_train"} < {
        stage.folder for stage in graph if stage.name == "rae_train"
    }  # the second generator is the one that there is without the option
    with pytest.raises(ConfigError, match="also_scene_centric adds to"):
        planned(tmp_path, "suite=generation", "generation.also_scene_centric=true")


def test_stages_come_after_their_inputs_and_are_shared(tmp_path):
    graph, _ = planned(tmp_path)
    seen = set()
    for stage in graph:
        assert all(source.folder in seen for source in stage.inputs)
        seen.add(stage.folder)
    assert len({stage.label for stage in graph}) == len(graph)
    assert sum(stage.name == "scenes" for stage in graph) == 1


def test_an_answer_depends_on_both_training_stages_and_never_on_another_encoder(tmp_path):
    graph, _ = planned(tmp_path)
    above = ancestors(labelled(graph, "ov3-demo: answer and score"))
    assert {"scenes", "ov3-demo: LLaVA stage 1", "ov3-demo: LLaVA stage 2"} <= above
    assert not any(label.startswith("clip-demo") for label in above)
    assert "ov3-demo: train the DiT" in ancestors(labelled(graph, "ov3-demo: score the generation"))
    assert "ov3-demo: train the DiT" not in ancestors(labelled(graph, "ov3-demo: score the reconstruction"))


@pytest.mark.parametrize(
    ("word", "is_changed"),
    [
        ("rae.generate.num_steps=7", {"clip-demo: generate": True, "clip-demo: train the DiT": False}),
        (
            "seed=1",
            {"clip-demo: train the DiT": True, "clip-demo: tokens of train pictures": False, "scenes": False},
        ),
        ("llava.align.learning_rate=1e-4", {"blind: LLaVA stage 2": True, "ov3-demo: train the DiT": False}),
        (
            "scenes.seed=9",
            {"scenes": True, "real pictures and the floor": True, "blind: LLaVA stage 1": True},
        ),
        ("jobs=1", {"scenes": False, "ov3-demo: answer and score": False}),
        ("seconds.scenes=9", {"scenes": False}),
    ],
)
def test_a_change_reaches_what_depends_on_it_and_nothing_else(tmp_path, word, is_changed):
    before, _ = planned(tmp_path)
    after, _ = planned(tmp_path, word)
    got = {
        label: labelled(before, label).fingerprint != labelled(after, label).fingerprint
        for label in is_changed
    }
    assert got == is_changed


def test_both_encoders_get_the_same_data_steps_and_samples(tmp_path):
    graph, _ = planned(tmp_path)
    for kind in ("train the DiT", "generate", "LLaVA stage 1", "LLaVA stage 2", "answer and score"):
        ours, theirs = (labelled(graph, f"{name}: {kind}").config for name in ("ov3-demo", "clip-demo"))
        for field in (
            "num_steps",
            "num_samples",
            "batch_size",
            "seed",
            "num_epochs",
            "data",
            "tasks",
            "learning_rate",
        ):
            assert getattr(ours, field, None) == getattr(theirs, field, None)


def test_a_fixed_number_of_tokens_reaches_the_first_stage_and_stands_in_every_source(tmp_path):
    graph, plans = planned(tmp_path, "suite=understanding", "llava.align.num_image_tokens=4")
    assert labelled(graph, "ov3-demo: LLaVA stage 1").config.num_image_tokens == 4
    assert labelled(graph, "ov3-demo: LLaVA stage 2").config.num_image_tokens is None  # stage 1's
    rows = [row for row in plans["understanding"].rows if row.kind != "probe"]  # which sees all of them
    assert all(row.source.endswith(", resized to 4 tokens") for row in rows)


def test_tables_show_exactly_what_the_tasks_and_stages_give():
    (understanding,), (generation,) = chosen_suites("understanding"), chosen_suites("generation")
    tasks = [path.read_text() for path in (ROOT / "harness" / "tasks").glob("*.yaml")]
    given = {key for text in tasks for key in re.findall(r"\{metric: ([^,]+),", text)}
    given |= {key for name in TASK_SETS["paper"] for key in BENCHMARKS[name].keys}
    given |= {*TOKENS_SEEN}  # of any task's pictures
    assert set(understanding.keys) == given
    config = ReferenceConfig(data="anywhere")
    assert set(keys_of("reconstruction", config) + keys_of("generation", config)) <= set(generation.keys)
    for suite in ("understanding", "generation"):
        assert {key for row in published_rows(suite) for key in row["metrics"]} <= set(PUBLISHED_KEYS)


def test_a_blind_encoder_generates_nothing_and_says_why(tmp_path):
    _, plans = planned(tmp_path, "suite=generation", "encoders=[blind]")
    row = plans["generation"].rows[0]
    assert (row.kind, row.parts) == ("blind", ())
    assert {"PSNR", "gFD-lite0"} <= set(row.undefined) <= set(plans["generation"].suite.keys)
