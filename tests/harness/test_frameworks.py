"""Encoders under LLaVA-NeXT: which rows and stages `llava.framework` asks for, and what is refused."""

import pytest

from encoder.runtime.config import ConfigError
from harness.command_line import make_plans
from harness.config import parse
from harness.running.stages import Graph
from harness.suites.frameworks import judgements
from llava_bridge.config import TILES, LlavaConfig, ViewsConfig


def planned(tmp_path, *words):
    options, preset = parse(["suite=understanding", "encoders=[ov3-demo,clip-demo]", *words])
    return make_plans(Graph(tmp_path), options, preset)[0]


def trainings(plan) -> dict[str, LlavaConfig]:
    """{encoder id: config of the second stage}"""
    found = {}
    for row in plan.rows:
        for part in row.parts:
            above = [stage for stage in part.stage.inputs if isinstance(stage.config, LlavaConfig)]
            if above:
                found[row.encoder] = above[0].config
    return found


def test_llava_1_5_alone_keeps_its_ids_and_stages(tmp_path):
    found = trainings(planned(tmp_path))
    assert [*found] == ["ov3-demo", "clip-demo", "blind"]
    assert {config.framework for config in found.values()} == {"llava_1_5"}


def test_both_frameworks_give_a_row_each_on_the_same_records_and_questions(tmp_path):
    words = ["llava.framework=[llava_1_5,llava_next]", "llava.equal_tokens=81", "llava.square_eval=true"]
    plan = planned(tmp_path, *words)
    found = trainings(plan)
    suffixes = ["", "/equal_tokens", "/llava_next", "/llava_next/square_eval"]
    assert [*found] == [
        f"{name}{suffix}" for suffix in suffixes for name in ("ov3-demo", "clip-demo", "blind")
    ]
    ours, equal, theirs = (found[f"ov3-demo{suffix}"] for suffix in suffixes[:3])
    assert (ours.framework, equal.framework, theirs.framework) == ("llava_1_5", "llava_1_5", "llava_next")
    assert ours.data == equal.data == theirs.data
    assert theirs.tokens != ours.tokens == equal.tokens
    assert found["ov3-demo/llava_next/square_eval"] == theirs  # one model, evaluated twice
    by_id = {row.encoder: row for row in plan.rows}
    asked = [by_id[f"ov3-demo{suffix}"].parts[0] for suffix in suffixes]
    assert [part.stage.config.square_eval for part in asked] == [False, False, False, True]
    assert len({str(part.stage.config.tasks) for part in asked}) == 1
    assert by_id["clip-demo/llava_next"].source.endswith("LLaVA-NeXT")
    (views,) = {stage.fingerprint: stage.config for stage in asked[2].stage.inputs[1].inputs
                if isinstance(stage.config, ViewsConfig)}.values()  # fmt: skip
    assert views.tiles == theirs.tiles == [*TILES]
    probed = {row.encoder: row.parts[0].stage for row in plan.rows if row.kind == "probe"}
    names = ["ov3-demo", "clip-demo", "ov3-demo/llava_next", "clip-demo/llava_next"]  # whose tokens differ
    assert [*probed] == [f"{name}, probe" for name in names]
    assert probed["ov3-demo/llava_next, probe"].config.tokens == theirs.tokens


def test_llava_next_takes_its_own_sections_over_the_preset_s(tmp_path):
    words = [
        "llava.framework=llava_next",
        "llava.next.instruct.learning_rate=5e-4",
        "llava.next.holds=latents",
    ]
    plan = planned(tmp_path, *words, "llava.next.tiles=[[2,2]]", "llava.next.align.views=whole")
    config = trainings(plan)["ov3-demo/llava_next"]
    assert (config.learning_rate, config.tiles, config.num_epochs) == (5e-4, [[2, 2]], 2)
    assert config.views == "tiles"


@pytest.mark.parametrize(
    "words, message",
    [
        (["llava.framework=llava_nxt"], r"did you mean 'llava_next'\?"),
        (["llava.framework=[llava_next,llava_next]"], "must name one framework or different ones"),
        (["llava.framework=[]"], "must name one framework"),
        (
            ["llava.framework=llava_next", "llava.align.num_image_tokens=9"],
            r"num_image_tokens=9 with llava.framework=llava_next, whose tiles .*llava.equal_tokens",
        ),
        (["llava.square_eval=true"], "square_eval adds a row of llava_next"),
        (["llava.framework=llava_next", "llava.equal_tokens=9"], "equal_tokens adds a row of llava_1_5"),
        (["llava.framework=llava_next", "llava.next.tiles=[[0,2]]"], r"tiles must be \[columns, rows\]"),
        (["llava.framework=llava_next", "llava.next.align.aspect=pad"], "aspect 'pad' with llava_next"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path, words, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        planned(tmp_path, *words)


def test_preset_next_shows_large_pictures_of_small_things_to_both(tmp_path):
    options, preset = parse(["suite=understanding", "preset=next"])
    plan = make_plans(Graph(tmp_path), options, preset)[0]
    measured = [row.encoder for row in plan.rows if row.kind == "measured"]
    frameworks = ["", "/equal_tokens", "/llava_next"]
    assert measured == [name + framework for framework in frameworks for name in ("ov3-demo", "clip-demo")]
    (scenes,) = {part.stage.inputs[0].fingerprint: part.stage.inputs[0] for row in plan.rows
                 for part in row.parts}.values()  # fmt: skip
    assert (scenes.config.image_size, scenes.config.object_scale, scenes.config.rendered_at) == (
        128,
        0.5,
        None,
    )


@pytest.mark.parametrize("preset", ["paper", "paper_l"])
def test_preset_paper_gives_llava_next_open_llava_next_s_values(preset):
    _, preset = parse([f"preset={preset}", "data_root=/none", "llava.framework=[llava_1_5,llava_next]"])
    given = {"encoder": "e", "data": ["d.json"], "image_root": "i", "init": "l"}
    for judgement in judgements(preset.llava):
        for stage, section in ((1, judgement.align), (2, judgement.instruct)):
            config = LlavaConfig(**section, **given, stage=stage)
            assert config.framework == judgement.framework
            assert config.batch_size == (256, 128)[stage - 1]
            if judgement.is_next:
                assert (config.max_length, config.aspect, config.tiles) == (4096, "stretch", [*TILES])
