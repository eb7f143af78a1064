"""FLOPs of released networks from their config files, against torch's counter and published hours."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from encoder.options import EncoderConfig
from harness.running import cost_released
from harness.running.cost import FP32
from harness.running.published_hours import PUBLISHED_HOURS

VICUNA = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "vocab_size": 32000,
}  # fmt: skip


def counted(model, *inputs) -> int:
    """Forward FLOPs by torch's own counter."""
    math = sdpa_kernel(SDPBackend.MATH)  # the counter does not see the CPU's fused attention
    with math, FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("head", [{}, {"head_dim": 24}])
def test_a_language_models_flops_and_weights_are_torchs(groups, head):
    sizes = {
        "hidden_size": 48, "intermediate_size": 112, "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": groups, "vocab_size": 96, **head,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    found = cost_released.language_model_flops(sizes, 20)
    assert found == pytest.approx(counted(model, torch.zeros(1, 20, dtype=torch.long)), rel=0.01)
    weights = sum(each.numel() for each in model.parameters() if each.ndim == 2)
    assert cost_released.language_model_parameters(sizes) == weights


def test_vicunas_weights_are_as_published():
    assert cost_released.language_model_parameters(VICUNA) == pytest.approx(6.74e9, rel=0.001)


@pytest.mark.parametrize(("stage", "passes", "file"), [
    ("llava_align", 2, "blip_laion_cc_sbu_558k.json"), ("llava_instruct", 3, "llava_v1_5_mix665k.json"),
])  # fmt: skip
def test_the_assumed_rate_is_that_of_llavas_published_hours(stage, passes, file):
    num_tokens = 576 + cost_released.TEXT[passes - 1]
    flops = passes * cost_released.language_model_flops(VICUNA, num_tokens) * cost_released.RECORDS[file]
    assert flops / (3600 * PUBLISHED_HOURS[stage]) == pytest.approx(80e12, rel=0.15)


def test_a_clip_towers_flops_are_torchs(tmp_path):
    sizes = {
        "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 3,
        "image_size": 64, "patch_size": 16,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": sizes}))
    tower = cost_released.tower(EncoderConfig(name="c", source=f"clip:{tmp_path}"))
    expected = counted(CLIPVisionModel(CLIPVisionConfig(**sizes)).eval(), torch.zeros(1, 3, 64, 64))
    assert tower.flops / FP32 == pytest.approx(expected, rel=0.03)  # the pooled projection is ours alone
    assert (tower.num_tokens, tower.width, tower.side) == (16, 48, 64)


def test_rows_of_parquet_are_counted_and_the_cards_number_stands_for_many(tmp_path, monkeypatch):
    for name, num in (("a", 3), ("b", 4)):
        pq.write_table(pa.table({"id": list(range(num))}), tmp_path / f"{name}.parquet")
    assert cost_released.count_records(tmp_path) == 7
    monkeypatch.setattr(cost_released, "COUNTED_BYTES", 10)
    assert cost_released.count_records(tmp_path) == 779_289


def test_records_are_counted_and_the_published_number_stands_for_a_large_file(tmp_path, monkeypatch):
    path = tmp_path / "llava_v1_5_mix665k.json"
    path.write_text(json.dumps([{"id": i, "conversations": []} for i in range(7)]))
    assert cost_released.count_records(path) == 7
    monkeypatch.setattr(cost_released, "COUNTED_BYTES", 10)
    assert cost_released.count_records(path) == 665_298
