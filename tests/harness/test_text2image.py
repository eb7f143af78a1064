"""suite=text2image as planned: its rows, what they share, wrong sections, figures."""

import numpy as np
import pytest

from encoder.runtime.config import ConfigError
from harness.command_line import make_plans
from harness.config import chosen_suites, parse
from harness.running.stages import Graph
from harness.scene_eval.config import (
    SCORE,
    keys_of,
)
from harness.suites.text2image import stage_steps
from harness.tables import curves, figures
from tests.rae_bridge.text_worlds import write_text_encoder


@pytest.fixture
def plan_of(tmp_path):
    """The plan of suite=text2image with some words."""

    def plan(*words):
        options, preset = parse([f"runs_dir={tmp_path / 'runs'}", "suite=text2image", *words])
        (made,) = make_plans(Graph(options.runs_dir.resolve()), options, preset)
        made.check()
        return made

    return plan


def sampled(row):
    """The stage that drew a row's pictures of the prompts."""
    return row.parts[0].stage.inputs[0]


def trained(row):
    return sampled(row).inputs[0]


def test_each_encoder_has_rows_told_tokens_and_one_vector_with_guidance_and_without(plan_of):
    rows = {row.encoder: row for row in plan_of("encoders=[ov3-demo]").rows}
    assert list(rows) == [
        "ov3-demo", "ov3-demo, 200 steps", "ov3-demo, 400 steps", "ov3-demo, guided", "ov3-demo, pooled",
        "ov3-demo, pooled, guided", "ov3-demo, rebuilt renders", "renders", "chance",
    ]  # fmt: skip
    whole, young, guided = (rows[f"ov3-demo{what}"] for what in ("", ", 200 steps", ", guided"))
    assert trained(whole) is trained(young) is trained(guided)
    assert trained(whole).config.keep_steps == (200, 400)
    assert sampled(young).config.model == f"{trained(whole).folder}/kept/step_00000200"
    assert sampled(whole).config.guidance_from is None and sampled(whole).config.guidance is None
    choice = sampled(guided).inputs[1]
    assert choice.module == "harness.scene_eval.choose"
    assert sampled(guided).config.guidance_from == str(choice.folder)
    assert choice.config.sampling.seed != sampled(guided).config.seed
    assert choice.config.sampling.prompts.endswith("validation.jsonl")
    pooled = trained(rows["ov3-demo, pooled"])
    assert (pooled.config.conditioning, trained(whole).config.conditioning) == ("pooled", "tokens")
    assert pooled.inputs == trained(whole).inputs  # the same tokens and the same captions


def test_all_encoders_share_texts_prompts_judge_and_grid(plan_of):
    rows = [row for row in plan_of().rows if row.kind == "measured"]
    names = ("ov3-demo", "clip-demo")
    ours, theirs = ([row for row in rows if row.encoder.startswith(name)] for name in names)
    whats = [[row.encoder.partition(",")[2] for row in each] for each in (ours, theirs)]
    assert whats[0] == whats[1]
    for one, two in zip(ours, theirs, strict=True):
        assert trained(one).inputs[1] is trained(two).inputs[1]
        score_of = [row.parts[0].stage for row in (one, two)]
        assert score_of[0].inputs[1:3] == score_of[1].inputs[1:3]  # prompts, judge
        assert score_of[0].config.ceiling != score_of[1].config.ceiling  # each its own encoder's
        assert "texts by weights/demo/llama" in one.source and "unseen" not in one.source.split(";")[0]


def test_numbers_that_a_row_cannot_have_say_why(plan_of):
    rows = {row.encoder: row for row in plan_of("encoders=[ov3-demo]").rows}
    held_out = trained(rows["ov3-demo"]).inputs[0].inputs[0].config.held_out
    every = {*keys_of(held_out), "tFD-lite0", "tKID-lite0"}
    for row in rows.values():
        given = {key for part in row.parts for key in part.keys}
        assert given | set(row.undefined) == every and not given & set(row.undefined), row.encoder


def test_an_encoders_own_texts_are_a_row_of_their_own(plan_of, tmp_path):
    own = write_text_encoder(tmp_path / "own", "own")
    word = f"text2image.own_text={{ov3-demo: {own}}}"
    rows = {row.encoder: row for row in plan_of("encoders=[ov3-demo]", "text2image.curve=[]", word).rows}
    assert {"ov3-demo, own text", "ov3-demo, own text, guided"} <= set(rows)
    theirs = trained(rows["ov3-demo, own text"])
    assert theirs.inputs[1].config.text_encoder == own
    assert theirs.inputs[0] is trained(rows["ov3-demo"]).inputs[0]


@pytest.mark.parametrize(
    "word, words",
    [
        ("preset=small", "no text2image section"),
        ("encoders=[blind]", "needs encoders that see"),
        ("text2image.text_encoder=weights/demo/ov3", "is the encoder ov3-demo, which is under test"),
        ("text2image.own_text={nobody: weights/demo/ov3}", "names nobody"),
        ("text2image.train.num_step=3", "num_steps"),
        ("text2image.train.tokens=here", "filled in by the harness"),
        ("text2image.choose.scales=[0.5]", "must be over 1"),
        ("text2image.scenes.num_test=100", "needs 1000 test pictures"),
        ("text2image.judge.image_size=32", "filled in by the harness"),
    ],
)
def test_what_cannot_be_meant_is_refused(plan_of, word, words):
    with pytest.raises(ConfigError, match=words):
        plan_of(word)


def test_it_is_part_of_no_other_suite():
    assert "text2image" not in [suite.name for suite in chosen_suites("all")]


def test_figures_are_drawn_of_what_is_there(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    sets = {"render": (pictures, np.arange(6)), "e, guided": (pictures[:4], np.array([0, 0, 1, 1]))}
    path = figures.prompts(tmp_path / "prompts.png", {0: "a cup", 2: "two fish"}, sets)
    assert path.stat().st_size > 3000
    rows = [{"encoder": name, "kind": "measured", "metrics": {SCORE: {"value": value}}}
            for name, value in (("e", 60.0), ("e, 4 steps", 20.0), ("chance", 9.0))]  # fmt: skip
    _, preset = parse(["suite=text2image", "text2image.train.num_steps=10"])
    steps = stage_steps(rows, preset.text2image)
    assert steps == {"e, 4 steps": 4, "e": 10}
    assert curves.over_training(tmp_path / "t.png", rows, steps, [SCORE]).stat().st_size > 5000
