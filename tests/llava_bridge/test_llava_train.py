"""Both stages under ZeRO-2: losses of the plain Trainer, exact resume, and only the stage's parts change."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig

import llava_bridge.train as stage
from encoder.runtime.checkpoint import load_tensors
from llava_bridge.lora import merge_lora
from llava_bridge.model import build, load, save
from llava_bridge.prompt import IMAGE


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in {row["steps"]: row for row in rows}.values()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "weights" / "model.safetensors")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_stage_changes_only_its_parts(align, tmp_path, precision):
    align = replace(align, precision=precision)
    result = stage.train(align, tmp_path / "align")
    assert result["deepspeed"] == {"zero_stage": 2, "backend": "gloo"}
    assert result["trained"] == ["projector"]
    instruct = replace(align, stage=2, init=str(tmp_path / "align" / "weights"))
    stage.train(instruct, tmp_path / "instruct")
    first, second = weights(tmp_path / "align"), weights(tmp_path / "instruct")
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}
    assert changed == {"language_model", "multi_modal_projector"}
    towers = {name: tensor for name, tensor in second.items() if name.startswith("vision_tower.encoder")}
    assert all(
        tensor.dtype == torch.float32 for tensor in towers.values()
    )  # DeepSpeed would have rounded them
    assert (towers["vision_tower.encoder.patches.bias"] == torch.tensor(0.123)).all()


def test_stage_1_leaves_the_language_model_as_it_was(align, tmp_path, llm):
    stage.train(align, tmp_path)
    before, after = load_tensors(llm / "model.safetensors"), weights(tmp_path)
    for name, tensor in before.items():
        assert torch.equal(tensor.float(), after[f"language_model.{name}"]), name


def test_zero2_gives_the_losses_of_the_plain_trainer(align, tmp_path):
    stage.train(align, tmp_path / "zero2")
    assert stage.train(replace(align, deepspeed=None), tmp_path / "plain")["deepspeed"]["zero_stage"] is None
    assert len(losses(tmp_path / "zero2")) == 8
    # equal formulas, other order of the additions in clipping and AdamW
    torch.testing.assert_close(losses(tmp_path / "zero2"), losses(tmp_path / "plain"), atol=1e-4, rtol=1e-4)


def test_micro_batches_add_up_to_the_batch(align, tmp_path):
    stage.train(align, tmp_path / "whole")
    stage.train(replace(align, micro_batch_size=2), tmp_path / "micro")
    torch.testing.assert_close(losses(tmp_path / "whole"), losses(tmp_path / "micro"), atol=1e-4, rtol=1e-4)


def test_compiled_blocks_train_as_plain_ones(align, tmp_path, monkeypatch):
    save(*build("tiny", None, Path(align.init), "eager", seed=0), tmp_path / "init")
    instruct = replace(align, stage=2, init=str(tmp_path / "init"))
    stage.train(instruct, tmp_path / "plain")
    # the whole of torch.compile but its code generator, which takes minutes
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    stage.train(replace(instruct, compile=True), tmp_path / "compiled")
    torch.testing.assert_close(
        losses(tmp_path / "compiled"), losses(tmp_path / "plain"), atol=1e-4, rtol=1e-4
    )
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "plain").keys()


def test_killed_run_goes_on_to_the_weights_of_an_uninterrupted_one(align, tmp_path, train_until_killed):
    stage.train(align, tmp_path / "whole")
    train_until_killed(align, tmp_path / "killed", 5)
    half = (
        tmp_path / "killed" / "checkpoints" / "checkpoint-5"
    )  # a kill in the middle of writing leaves such a folder
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    result = stage.train(align, tmp_path / "killed")
    assert result["training_loss"] == pytest.approx(sum(losses(tmp_path / "whole")) / 8, abs=1e-6)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert (
        stage.train(align, tmp_path / "killed") == result
    )  # killed before DONE.json: nothing is trained again
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_tensorboard_shows_one_run_of_what_went_on(
    align, tmp_path, train_until_killed, tensorboard_holds_the_log
):
    config = replace(align, trackers=["tensorboard"])
    train_until_killed(config, tmp_path / "killed", 5)  # its last checkpoint is of step 3: 4 is told twice
    stage.train(config, tmp_path / "killed")
    tensorboard_holds_the_log(tmp_path / "killed", list(range(1, 9)))


@pytest.mark.parametrize("deepspeed", [None, "configs/deepspeed/zero2.json"])
def test_a_run_goes_on_with_another_rate_and_micro_batch(align, tmp_path, train_until_killed, deepspeed):
    align = replace(align, deepspeed=deepspeed)
    stage.train(align, tmp_path / "whole")
    train_until_killed(align, tmp_path / "killed", 4)
    stage.train(replace(align, learning_rate=5e-3, micro_batch_size=2), tmp_path / "killed")
    rates = {}
    for folder in ("whole", "killed"):
        rows = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        rates[folder] = {row["steps"]: row["learning_rate"] for row in rows}
    assert sorted(rates["killed"]) == list(range(1, 9))
    for step, rate in rates["whole"].items():  # checkpoint 3 is the last
        assert rates["killed"][step] == pytest.approx(rate if step <= 3 else rate / 2, abs=1e-12)
    first = [folder / "log.jsonl" for folder in (tmp_path / "whole", tmp_path / "killed")]
    seen = [{row["steps"]: row["loss"] for row in map(json.loads, path.open())} for path in first]
    assert seen[0][4] == pytest.approx(seen[1][4], abs=1e-4)  # the same samples, the rate not yet felt


def test_tokens_of_another_encoder_are_refused(align, tmp_path, llava_data):
    index = json.loads((llava_data / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "fingerprint": "other"}))
    (tmp_path / "tokens.safetensors").write_bytes((llava_data / "tokens.safetensors").read_bytes())
    with pytest.raises(ValueError, match="tokens of another encoder"):
        stage.train(replace(align, tokens=str(tmp_path)), tmp_path / "out")


def test_stage_2_refuses_a_model_aligned_to_another_encoder(align, tmp_path):
    stage.train(align, tmp_path / "align")
    with pytest.raises(ValueError, match="was aligned to encoder tiny"):
        stage.train(
            replace(align, stage=2, encoder="other", init=str(tmp_path / "align" / "weights")),
            tmp_path / "instruct",
        )


def test_lora_is_merged_into_a_plain_model(align, tmp_path, llm):
    model, processor = build("tiny", None, llm, "eager", seed=0)
    save(model, processor, tmp_path / "init")
    options = {"lora_rank": 2, "lora_alpha": 4.0, "lora_dropout": 0.0, "projector_learning_rate": 0.0}
    lora = replace(align, stage=2, init=str(tmp_path / "init"), loss_average="samples", **options)
    result = stage.train(lora, tmp_path / "lora")
    assert (result["trained"], result["loss_average"]) == (["projector", "lora"], "samples")
    before, after = load_tensors(tmp_path / "init" / "model.safetensors"), weights(tmp_path / "lora")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 2 * 7  # the matrices of two blocks; the projector's own rate is 0
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2


def test_adapters_kept_beside_it_make_the_merged_model_of_its_start_by_peft_itself(align, tmp_path, llm):
    save(*build("tiny", None, llm, "eager", seed=0), tmp_path / "init")
    lora = {"lora_rank": 3, "lora_alpha": 6.0, "lora_dropout": 0.1}
    stage.train(replace(align, stage=2, init=str(tmp_path / "init"), **lora), tmp_path / "lora")
    base, _ = load(tmp_path / "init", "eager", torch.float32)
    merged, processor = load(tmp_path / "lora" / "weights", "eager", torch.float32)
    start = base.model.multi_modal_projector.linear_1.weight.clone()
    with_adapter = PeftModel.from_pretrained(base, tmp_path / "lora" / "adapter").eval()
    assert not torch.equal(merged.model.multi_modal_projector.linear_1.weight, start)
    text = f"{IMAGE * 4} what is this a red cat"
    inputs = processor.tokenizer(text, return_tensors="pt") | {"pixel_values": torch.rand(1, 3, 32, 32)}
    merged.model.vision_tower = base.model.vision_tower  # the tests' encoder is another one at each load
    expected = merged(**inputs).logits
    torch.testing.assert_close(with_adapter(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    with with_adapter.disable_adapter():
        assert not torch.allclose(with_adapter(**inputs).logits, expected, atol=1e-3)
    whole, state = with_adapter.merge_and_unload().state_dict(), merged.state_dict()
    assert whole.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(whole[name], tensor, atol=1e-5, rtol=1e-5, msg=name)


def test_merging_lora_leaves_biases_and_other_layers():
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 5, generator=generator), torch.randn(4, 2, generator=generator)
    base, bias, norm = torch.randn(4, 5, generator=generator), torch.randn(4), torch.randn(4)
    state = {"q.base_layer.weight": base, "q.base_layer.bias": bias, "norm.weight": norm}
    state |= {"q.lora_A.default.weight": down, "q.lora_B.default.weight": up}
    merged = merge_lora(state, rank=2, alpha=6.0)
    assert merged.keys() == {"q.weight", "q.bias", "norm.weight"}
    torch.testing.assert_close(merged["q.weight"], base + 3 * up @ down)
    assert merged["q.bias"] is bias
    assert merged["norm.weight"] is norm


def test_a_record_that_cannot_be_used_is_named_and_stops_the_stage_before_the_model(
    align, tmp_path, llava_data, monkeypatch
):
    rows = json.loads((llava_data / "train.json").read_text())
    rows[5]["conversations"][1]["value"] = None
    rows[6]["conversations"] = rows[6]["conversations"][1:2]
    (tmp_path / "dirty.json").write_text(json.dumps(rows))
    dirty = replace(align, data=[str(tmp_path / "dirty.json")], num_epochs=0.2)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="2 of 32 records cannot be used"):
        patch.setattr(stage, "load_model", None)
        stage.train(dirty, tmp_path / "out")
    named = [
        json.loads(line) for line in (tmp_path / "out" / "skipped_records.jsonl").read_text().splitlines()
    ]
    assert [row["name"].rpartition("/")[2] for row in named] == ["dirty.json row 5", "sample sample-6"]
    report = stage.train(replace(dirty, max_bad_fraction=0.1), tmp_path / "out")["data"]
    assert (report["num_read"], report["num_samples"], report["num_skipped"]) == (32, 30, 2)


def test_a_language_model_by_hub_id_comes_from_the_cache_and_its_commit_stands_in_the_result(
    align, tmp_path, llm, monkeypatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    by_id = replace(align, init="owner/llm@v1", num_epochs=0.2, deepspeed=None)
    with pytest.raises(FileNotFoundError, match=r"owner/llm@v1 is no folder .*: hf download owner/llm --rev"):
        stage.train(by_id, tmp_path / "out")
    place = tmp_path / "hub" / "models--owner--llm"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "v1").write_text("4" * 40)
    shutil.copytree(llm, place / "snapshots" / ("4" * 40))
    result = stage.train(by_id, tmp_path / "out")
    assert result["init"] == {"source": "owner/llm@v1", "revision": "4" * 40}
    folder = stage.train(replace(by_id, init=str(llm)), tmp_path / "folder")
    assert folder["init"]["revision"] is None and folder["training_loss"] == result["training_loss"]


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("gpt2", {"n_embd": 8, "n_layer": 1, "n_head": 1}, "not a `model` under an `lm_head`"),
        ("phi", {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}, "head has a bias"),
        ("opt", {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}, "no `embed_tokens`"),
        ("gemma2", {"hidden_size": 8, "num_hidden_layers": 1}, "changes its logits"),
        (
            "gpt_neox",
            {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
            "does not fit LLaVA",
        ),
    ],
)
def test_a_language_model_that_llava_cannot_hold_is_refused_before_its_weights(
    align, tmp_path, kind, options, reason
):
    AutoConfig.for_model(kind, **options).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"language model .* \({kind}\).*{reason}.*kinds that work: Llama"):
        stage.train(replace(align, init=str(tmp_path)), tmp_path / "out")
