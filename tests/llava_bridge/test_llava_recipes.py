"""configs/llava against the scripts of LLaVA-1.5, LLaVA-NeXT and Open-LLaVA-NeXT, value by value."""

import pytest

from encoder.runtime.config import ROOT, load
from llava_bridge.config import EvaluateConfig, LlavaConfig
from llava_bridge.engine import read_deepspeed

FOLDER = ROOT / "configs" / "llava"
SHARED = {
    "num_epochs": 1.0, "warmup_fraction": 0.03, "weight_decay": 0.0, "max_length": 2048, "precision": "bf16",
    "gradient_checkpointing": True, "loss_average": "samples",
}  # fmt: skip
STAGE_2 = {"stage": 2, "batch_size": 128, "micro_batch_size": 16, "aspect": "pad", "grouping": "modality"}
RECIPES = {
    "align": {
        "stage": 1, "batch_size": 256, "micro_batch_size": 32, "learning_rate": 1e-3, "aspect": "crop",
        "grouping": "random", "lora_rank": None, "deepspeed": "configs/deepspeed/zero2.json",
    },
    "instruct": STAGE_2 | {
        "learning_rate": 2e-5, "lora_rank": None, "projector_learning_rate": None,
        "deepspeed": "configs/deepspeed/zero3.json",
    },
    "instruct_lora": STAGE_2 | {
        "learning_rate": 2e-4, "projector_learning_rate": 2e-5, "lora_rank": 128, "lora_alpha": 256.0,
        "lora_dropout": 0.05, "deepspeed": "configs/deepspeed/zero3.json",
    },
}  # fmt: skip


NEXT = {"framework": "llava_next", "tiles": [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]], "max_length": 4096}
ZERO2, ZERO3 = "configs/deepspeed/zero2.json", "configs/deepspeed/zero3.json"
RECIPES |= {
    "next_align": NEXT | {
        "stage": 1, "views": "whole", "micro_batch_size": 16, "learning_rate": 1e-3, "grouping": "random",
        "chosen_template": "plain", "deepspeed": ZERO3,
    },
    "next_instruct": NEXT | {
        "stage": 2, "views": "tiles", "micro_batch_size": 4, "learning_rate": 1e-5, "grouping": "modality",
        "chosen_template": "chat", "deepspeed": ZERO3,
    },
    "next_open_align": NEXT | {
        "stage": 1, "views": "tiles", "batch_size": 256, "micro_batch_size": 32, "learning_rate": 1e-3,
        "grouping": "random", "chosen_template": "plain", "deepspeed": ZERO2,
    },
    "next_open_instruct": NEXT | {
        "stage": 2, "views": "tiles", "batch_size": 128, "micro_batch_size": 4, "learning_rate": 2e-5,
        "grouping": "modality", "chosen_template": "vicuna_v1", "deepspeed": ZERO2,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_values_of_llavas_script(name):
    config = load(LlavaConfig, FOLDER / f"{name}.yaml", ["encoder=ov3-demo", "init=some/folder"])
    for field, value in (SHARED | RECIPES[name]).items():
        assert getattr(config, field) == value, field
    assert (ROOT / config.deepspeed).is_file()


def test_evaluation_asks_the_papers_benchmarks():
    assert load(EvaluateConfig, FOLDER / "evaluate.yaml", []).task_set == "paper"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": "t", "aspect": "pad"}, "with cached tokens"),
        ({"pack_length": 100}, "pack_length 100 must be at least max_length 2048"),
        ({"stage": 1, "lora_rank": 8}, "are of stage 2"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(change, said):
    given = {"stage": 2, "encoder": "e", "data": [], "image_root": "i", "init": "l", "batch_size": 4}
    with pytest.raises(ValueError, match=said):
        LlavaConfig(**(given | {"learning_rate": 1e-3} | change))


def test_deepspeed_settings_without_a_zero_stage_are_refused(tmp_path):
    (tmp_path / "empty.json").write_text('{"bf16": {"enabled": true}}')
    with pytest.raises(ValueError, match=r"empty\.json has no zero_optimization\.stage"):
        read_deepspeed(str(tmp_path / "empty.json"))
