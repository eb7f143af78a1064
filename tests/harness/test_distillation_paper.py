"""suite=distillation on real sources: the teacher is suite=generation's, the students are the recipes', and
what they take is counted."""

import dataclasses
import json

import pytest

from encoder.options import EncoderConfig
from encoder.runtime.config import ROOT, load
from harness.command_line import main
from harness.paper.sources import SOURCES
from harness.running.cost_released import released_disk_mb, released_flops, tower
from harness.running.published_hours import published_hours
from rae_bridge.distillation.config import DistillConfig
from rae_bridge.distillation.flops import step_flops
from rae_bridge.flops import part_flops

RECIPES = {"tmd: stage 1": "tmd_1", "tmd: stage 2": "tmd_2", "meanflow": "tmd_meanflow", "dmd2": "tmd_dmd2"}
OWN = (
    "teacher",
    "student",
    "pictures",
    "seed",
    "log_steps",
    "checkpoint_steps",
    "fusion",
    "anchor",
    "guidance",
)
CLIP = SOURCES["clip"].places[0]


@pytest.fixture
def graph(data_root, plan):
    """The suite's stages, of a small CLIP."""
    config = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    clip = {"vision_config": {**config, "image_size": 224, "patch_size": 16}}
    (data_root / CLIP / "config.json").write_text(json.dumps(clip))
    return plan(data_root, "suite=distillation", "encoders=[clip-b,ov3-b]")


def test_the_teacher_is_the_generator_of_the_other_suite(graph, data_root, plan, stages):
    other = plan(data_root, "suite=generation", "encoders=[clip-b]")
    for module in ("rae_bridge.train_decoder", "rae_bridge.train"):
        (ours,), (theirs,) = (stages(each, module, "clip-b") for each in (graph, other))
        assert ours.folder == theirs.folder
    assert not stages(graph, "rae_bridge.train", "ov3-b")  # it is of one teacher: the first encoder's
    (row, *_) = graph.plans[0].rows
    assert row.encoder == "clip-b/teacher/50x1"
    keys = row.parts[0].keys
    assert keys[0].startswith("gF") and {"precision", "recall"} <= {key.split("-")[0] for key in keys}


def test_all_rows_draw_to_0_by_euler_as_students_do(graph, stages):
    configs = [each.config for each in stages(graph, "rae_bridge.generate", "clip-b")]
    assert (
        len(configs) == 1 + 4 * 3 + 1
    )  # many steps; teacher, two baselines and tmd at 4, 2, 1; stage 1 alone
    assert {(each.end, each.solver, each.rounding) for each in configs} == {("zero", "euler", "truncate")}


@pytest.mark.parametrize("label", RECIPES)
def test_students_are_the_recipes(graph, stages, label):
    (stage,) = stages(graph, "rae_bridge.distill", f"clip-b: {label}")
    recipe = load(DistillConfig, ROOT / f"configs/recipes/{RECIPES[label]}.yaml")
    for each in dataclasses.fields(DistillConfig):
        if each.name not in OWN:
            assert getattr(stage.config, each.name) == getattr(recipe, each.name), each.name
    assert stage.config.guidance == recipe.guidance == 1
    assert {None: "gated"}.get(stage.config.fusion, stage.config.fusion) == (recipe.fusion or "gated")
    assert stage.config.pictures.encoder.endswith("encoder.yaml")


def test_what_students_take_is_counted(graph, stages, data_root):
    (first,) = stages(graph, "rae_bridge.distill", "clip-b: tmd: stage 1")
    (second,) = stages(graph, "rae_bridge.distill", "clip-b: tmd: stage 2")
    (teacher,) = stages(graph, "rae_bridge.train", "clip-b")
    seen = tower(EncoderConfig(name="clip", source=f"clip:{data_root / CLIP}"))
    size, samples = teacher.config.size, first.config.num_steps * first.config.batch_size
    each = step_flops(first.config, size, seen.num_tokens, seen.width) + seen.flops
    assert released_flops(first) == pytest.approx(samples * each)
    samples = second.config.num_steps * second.config.batch_size
    each = (
        step_flops(second.config, size, seen.num_tokens, seen.width) + 6 * seen.flops
    )  # five critics' and its own
    assert released_flops(second) == pytest.approx(samples * each)
    assert released_disk_mb(second) == pytest.approx(
        1.6 * released_disk_mb(first)
    )  # the fake score's 12 bytes
    drawn = {stage.label.split(":")[0]: stage for stage in stages(graph, "rae_bridge.generate", "clip-b")}
    backbone, head = part_flops(size, seen.num_tokens, seen.width)
    one, two = (released_flops(drawn[f"clip-b/{name}"]) for name in ("teacher/4x1", "tmd/4x2"))
    assert two - one == pytest.approx(50_000 * 4 * head)
    many = released_flops(drawn["clip-b/teacher/50x1"])
    assert many - one == pytest.approx(50_000 * 46 * (backbone + head))
    assert published_hours(drawn["clip-b/teacher/50x1"]) and not published_hours(drawn["clip-b/tmd/4x2"])


def test_a_missing_imagenet_is_said_before_anything_runs(data_root, capsys):
    (data_root / SOURCES["imagenet"].places[0]).rename(data_root / "elsewhere")
    words = ["suite=distillation", "preset=paper", f"data_root={data_root}", f"runs_dir={data_root}/runs"]
    assert main(words) == 2
    assert "imagenet" in capsys.readouterr().err
