"""LLaVA-NeXT's two stages: what learns, cached and live views alike, packed and resumed alike, what is too
long, and what does not fit together."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import LlamaConfig, LlavaNextForConditionalGeneration
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import llava_bridge.any_resolution.cache as cache
import llava_bridge.model
import llava_bridge.tower
import llava_bridge.train as stage
from encoder.runtime.checkpoint import load_tensors
from llava_bridge.any_resolution.views import Views
from llava_bridge.config import TILES, ViewsConfig
from llava_bridge.language_model import check_positions
from llava_bridge.model import build, load, save
from llava_bridge.prompt import question_prompt

SIZES = [(40, 70), (64, 64), (30, 100), (90, 35), (5, 350), (32, 32)]


@pytest.fixture
def steady(monkeypatch):
    """Every encoder has the same weights, also for the stage that caches views."""
    made = llava_bridge.tower.load_encoder

    def load_encoder(source, **options):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            encoder = made(source)
        encoder.device, encoder.features = torch.device("cpu"), "last"
        return encoder

    for module in (llava_bridge.tower, llava_bridge.model, cache):
        monkeypatch.setattr(module, "load_encoder", load_encoder)


@pytest.fixture
def pictures(llava_data, tmp_path):
    """The pictures of the records, of all sizes."""
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(12):
        pixels = draw.integers(0, 256, (*SIZES[i % len(SIZES)], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


@pytest.fixture
def align(align, pictures, steady):
    given = {"tokens": None, "image_root": str(pictures), "framework": "llava_next"}
    return replace(align, **given, records_cache=str(pictures / "records"))


def losses(folder) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in {row["steps"]: row for row in rows}.values()]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "weights" / "model.safetensors")


def test_both_stages_train_their_parts_and_say_what_was_seen(align, tmp_path):
    first = stage.train(align, tmp_path / "align")
    assert first["trained"] == ["projector", "newline"]
    assert first["encoder"]["canvases"] == [[64, 32], [32, 64], [64, 64], [32, 96], [96, 32]]
    views = Views.of(TILES, 32, 2)
    records = json.loads(Path(align.data[0]).read_text())
    counts = [views.num_tokens(SIZES[int(r["image"][7:-4]) % 6]) for r in records if "image" in r]
    assert first["data"]["max_image_tokens"] == max(counts)
    assert first["data"]["mean_image_tokens"] == pytest.approx(np.mean(counts), abs=0.01)
    instruct = replace(align, stage=2, init=str(tmp_path / "align" / "weights"))
    second = stage.train(instruct, tmp_path / "instruct")
    assert second["trained"] == ["projector", "newline", "language_model"]
    before, after = weights(tmp_path / "align"), weights(tmp_path / "instruct")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"language_model", "multi_modal_projector", "image_newline"}
    model, _ = load(tmp_path / "instruct" / "weights", "eager", torch.float32)
    assert type(model) is LlavaNextForConditionalGeneration
    assert torch.equal(model.model.image_newline, after["image_newline"])


def test_cached_views_train_as_live_ones_do(align, pictures, tmp_path):
    names = [f"images/{i}.png" for i in range(12)]
    turns = [{"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": "a cat"}]
    records = [{"id": name, "image": name, "conversations": turns} for name in names]
    (pictures / "all.json").write_text(json.dumps(records))
    config = ViewsConfig(
        encoder="tiny", data=str(pictures), records=[str(pictures / "all.json")], dtype="fp32"
    )
    cache.run(config, tmp_path / "views")
    stage.train(align, tmp_path / "live")
    stage.train(replace(align, tokens=str(tmp_path / "views"), image_root=None), tmp_path / "cached")
    torch.testing.assert_close(losses(tmp_path / "cached"), losses(tmp_path / "live"), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="with these tiles"):
        wrong = replace(align, tokens=str(tmp_path / "views"), tiles=[[2, 2]])
        stage.train(wrong, tmp_path / "wrong")


def test_packed_rows_give_the_losses_of_separate_ones(align, tmp_path):
    stage.train(align, tmp_path / "padded")
    stage.train(replace(align, pack_length=2048), tmp_path / "packed")
    torch.testing.assert_close(losses(tmp_path / "packed"), losses(tmp_path / "padded"), atol=1e-4, rtol=1e-4)


def test_killed_run_goes_on_exactly(align, tmp_path, train_until_killed):
    stage.train(align, tmp_path / "whole")
    train_until_killed(align, tmp_path / "killed", 5)
    stage.train(align, tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    after, expected = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(after[name], value) for name, value in expected.items())


def test_zero3_gathers_the_newline(align, tmp_path):
    stage.train(align, tmp_path / "zero2")
    try:
        result = stage.train(replace(align, deepspeed="configs/deepspeed/zero3.json"), tmp_path / "zero3")
    finally:
        unset_hf_deepspeed_config()  # else the next model would be split while it is read
    assert result["deepspeed"]["zero_stage"] == 3
    torch.testing.assert_close(losses(tmp_path / "zero3"), losses(tmp_path / "zero2"), atol=1e-4, rtol=1e-4)
    found, expected = weights(tmp_path / "zero3"), weights(tmp_path / "zero2")
    torch.testing.assert_close(found["image_newline"], expected["image_newline"], atol=1e-4, rtol=1e-3)


def test_lora_learns_the_newline_too_and_is_merged_as_peft_itself_merges_it(align, pictures, tmp_path, llm):
    save(*build("tiny", None, llm, "eager", seed=0, tiles=TILES), tmp_path / "init")
    lora = {"lora_rank": 3, "lora_alpha": 6.0, "lora_dropout": 0.1}
    result = stage.train(replace(align, stage=2, init=str(tmp_path / "init"), **lora), tmp_path / "lora")
    assert result["trained"] == ["projector", "newline", "lora"]
    before, after = load_tensors(tmp_path / "init" / "model.safetensors"), weights(tmp_path / "lora")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    matrices = {name for name in changed if name.startswith("language_model")}
    assert len(matrices) == 2 * 7  # the matrices of two blocks
    for name in matrices:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 3
    assert "image_newline" in changed

    base, processor = load(tmp_path / "init", "eager", torch.float32)
    merged, _ = load(tmp_path / "lora" / "weights", "eager", torch.float32)
    inputs = processor(
        images=[Image.open(pictures / "images" / f"{i}.png") for i in range(2)],
        text=[question_prompt("what is this", 1)] * 2,
        padding=True,
        return_tensors="pt",
    )
    expected = merged(**inputs).logits
    with_adapter = PeftModel.from_pretrained(base, tmp_path / "lora" / "adapter").eval()
    torch.testing.assert_close(with_adapter(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    found = with_adapter.base_model.model.model.image_newline
    assert torch.equal(found, after["image_newline"])


def test_whole_pictures_in_stage_1_leave_the_newline_to_stage_2(align, tmp_path):
    first = stage.train(replace(align, views="whole"), tmp_path / "align")
    assert first["trained"] == ["projector"]
    assert first["data"]["mean_image_tokens"] == first["data"]["max_image_tokens"] == 4
    stage.train(replace(align, stage=2, init=str(tmp_path / "align" / "weights")), tmp_path / "instruct")
    before, after = weights(tmp_path / "align"), weights(tmp_path / "instruct")
    assert not torch.equal(before["image_newline"], after["image_newline"])


def test_official_newline_is_drawn_anew_in_stage_2(align, tmp_path):
    align = replace(align, newline="official", learning_rate=1e-30)
    assert stage.train(align, tmp_path / "align")["trained"] == ["projector"]
    instruct = replace(align, stage=2, init=str(tmp_path / "align" / "weights"))
    assert "newline" in stage.train(instruct, tmp_path / "instruct")["trained"]
    before, after = (weights(tmp_path / name)["image_newline"] for name in ("align", "instruct"))
    assert (before - after).abs().min() > 0


def test_what_is_too_long_is_refused_or_counted(align, tmp_path):
    instruct = replace(align, template="vicuna_v1")
    long = stage.train(instruct, tmp_path / "long")["data"]
    assert long["num_cut"] == long["num_skipped"] == 0
    cut = stage.train(replace(instruct, max_length=55, max_bad_fraction=0.9), tmp_path / "cut")["data"]
    assert cut["num_cut"] > 0 and cut["num_skipped"] > 0
    names = (tmp_path / "cut" / "skipped_records.jsonl").read_text()
    assert "within max_length 55" in names or "do not fit in max_length 55" in names
    with pytest.raises(ValueError, match="records cannot be used, allowed fraction"):
        stage.train(replace(instruct, max_length=55), tmp_path / "refused")


def test_samples_longer_than_the_language_model_can_tell_apart_are_refused_before_it_is_read(
    align, tmp_path, llm, monkeypatch
):
    short = shutil.copytree(llm, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    longest = stage.train(align, tmp_path / "align")["data"]["max_image_tokens"]
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": longest}))
    monkeypatch.setattr(stage, "load_model", None)
    with pytest.raises(ValueError, match=rf"positions; set max_length={longest}, or take another"):
        stage.train(replace(align, init=str(short)), tmp_path / "refused")
    with pytest.raises(ValueError, match="records cannot be used"):  # at that length they are too long
        stage.train(replace(align, init=str(short), max_length=longest), tmp_path / "cut")


def test_rope_that_is_stretched_has_more_positions(tmp_path):
    shape = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
    for kind, positions in (("default", 100), ("linear", 400), ("dynamic", 400)):
        rope = {"rope_type": kind, "rope_theta": 1e4} | ({} if kind == "default" else {"factor": 4.0})
        LlamaConfig(**shape, max_position_embeddings=100, rope_parameters=rope).save_pretrained(tmp_path)
        check_positions(tmp_path, positions)
        with pytest.raises(ValueError, match=f"has {positions} positions"):
            check_positions(tmp_path, positions + 1)


def test_broken_picture_keeps_its_place_without_a_loss(align, pictures, tmp_path):
    whole = (pictures / "images" / "0.png").read_bytes()
    (pictures / "images" / "0.png").write_bytes(whole[: len(whole) // 2] + whole[-20:])
    result = stage.train(replace(align, max_missing_fraction=0.2), tmp_path / "run")
    assert result["data"]["num_broken"] == 1 and result["num_steps"] == 8


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_image_tokens": 9}, "num_image_tokens 9 with llava_next"),
        ({"aspect": "pad"}, "aspect 'pad' with llava_next, which has its own"),
        ({"tiles": []}, r"tiles must be \[columns, rows\]"),
        ({"tiles": [[1, 2], [1, 2]]}, "tiles names a canvas twice"),
    ],
)
def test_settings_that_do_not_fit_are_refused(align, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(align, **changes)


def test_stages_of_different_frameworks_or_tiles_are_refused(align, tmp_path):
    stage.train(align, tmp_path / "align")
    instruct = replace(align, stage=2, init=str(tmp_path / "align" / "weights"))
    with pytest.raises(ValueError, match="was aligned as llava_next, not llava_1_5; run stage 1"):
        stage.train(replace(instruct, framework="llava_1_5"), tmp_path / "other")
    with pytest.raises(ValueError, match="their order counts"):
        stage.train(replace(instruct, tiles=[*TILES[::-1]]), tmp_path / "turned")
