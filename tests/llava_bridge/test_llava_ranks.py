"""Two processes, launched as a user would, and offloading, against one: LLaVA-1.5 under ZeRO-3, LLaVA-NeXT
under ZeRO-2 and ZeRO-3."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import llava_bridge.model
import llava_bridge.tower
import llava_bridge.train as stage
from encoder.load import load_encoder
from encoder.runtime.checkpoint import load_tensors, save_tensors
from encoder.runtime.config import ROOT, dump
from llava_bridge.config import TILES, LlavaConfig
from llava_bridge.model import build, save

NUM_PICTURES = 12  # as in conftest
SIZES = [(40, 70), (64, 64), (30, 100), (90, 35)]  # height, width
ZERO3 = "configs/deepspeed/zero3.json"


@pytest.fixture
def blind(llava_data, tmp_path, llm, monkeypatch) -> LlavaConfig:
    """Stage 2 over an encoder that another process can load too, in packed rows."""
    for module in (llava_bridge.tower, llava_bridge.model):
        monkeypatch.setattr(module, "load_encoder", load_encoder)
    save(*build("blind", None, llm, "eager", seed=0), tmp_path / "init")
    tower = load_encoder("blind")
    tokens = torch.randn(NUM_PICTURES, tower.num_tokens, tower.width)
    save_tensors(tmp_path / "tokens.safetensors", {"tokens": tokens})
    index = json.loads((llava_data / "index.json").read_text()) | {"fingerprint": tower.fingerprint}
    (tmp_path / "index.json").write_text(json.dumps(index))
    return LlavaConfig(
        stage=2,
        encoder="blind",
        data=[str(llava_data / "train.json")],
        tokens=str(tmp_path),
        records_cache=str(tmp_path / "records"),
        init=str(tmp_path / "init"),
        batch_size=4,
        micro_batch_size=2,
        max_length=128,
        pack_length=256,
        learning_rate=1e-2,
        log_steps=1,
        checkpoint_steps=3,
        weight_decay=0.1,
        precision="fp32",
        attention="eager",
    )


@pytest.fixture
def blind_next(blind, tmp_path, llm) -> LlavaConfig:
    """The same under LLaVA-NeXT, on live pictures of several sizes, a sample a micro-batch, so that processes
    with and without a picture meet."""
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(NUM_PICTURES):
        pixels = draw.integers(0, 256, (*SIZES[i % len(SIZES)], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    save(*build("blind", None, llm, "eager", seed=0, tiles=TILES), tmp_path / "init_next")
    return replace(
        blind,
        framework="llava_next",
        init=str(tmp_path / "init_next"),
        tokens=None,
        image_root=str(tmp_path),
        micro_batch_size=1,
        num_epochs=0.5,
        max_length=256,
        pack_length=None,
        grouping="random",
    )


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in {row["steps"]: row for row in rows}.values()]


def launch(folder: Path, framework: str) -> None:
    """The trainings of two_processes.py, as a user would start them.

    With --cpu for --multi_gpu, which needs no GPU, Accelerate starts one process without a word.
    """
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--multi_gpu", "--num_processes=2"]
    command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    command += [Path(__file__).with_name("two_processes.py"), folder, framework]
    own = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # this process has set them
    environ = {key: value for key, value in os.environ.items() if key not in own} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(map(str, command), env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_same_weights(folder: Path, expected: Path) -> None:
    one, other = (load_tensors(path / "weights" / "model.safetensors") for path in (expected, folder))
    assert one.keys() == other.keys()
    for name, tensor in one.items():  # AdamW at rate 1e-2 amplifies the rounding of another order of sums
        torch.testing.assert_close(other[name], tensor, atol=2e-3, rtol=1e-2, msg=name)


def test_two_processes_under_zero3_give_the_weights_of_one_under_zero2(blind, tmp_path):
    """Also by LoRA, where two processes begin what one ends, and with one that offloads."""
    lora = replace(blind, lora_rank=2, lora_alpha=4.0, lora_dropout=0.0)
    stage.train(blind, tmp_path / "one")
    stage.train(lora, tmp_path / "lora-one")
    dump(blind, tmp_path / "config.yaml")
    dump(lora, tmp_path / "lora.yaml")
    launch(tmp_path, "llava_1_5")
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["deepspeed"] == {"zero_stage": 3, "backend": "gloo"}
    assert result["processes"] == 2
    mark = tmp_path / "killed" / "checkpoints" / "checkpoint-3" / "COMPLETE"
    assert json.loads(mark.read_text())["processes"] == 2
    try:
        stage.train(replace(blind, deepspeed=ZERO3), tmp_path / "killed")
        unset_hf_deepspeed_config()  # else the next model would be split while it is read
        offload = replace(blind, deepspeed="configs/deepspeed/zero3_offload.json")
        stage.train(offload, tmp_path / "offload")
    finally:
        unset_hf_deepspeed_config()
    expected_of = {"two": "one", "lora-two": "lora-one", "killed": "one", "offload": "one"}
    for folder, expected in expected_of.items():
        ours, plain = losses(tmp_path / folder), losses(tmp_path / expected)
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
        assert_same_weights(tmp_path / folder, tmp_path / expected)


def test_two_processes_of_llava_next_meet_with_and_without_a_picture(blind_next, tmp_path):
    one = stage.train(blind_next, tmp_path / "one")
    assert one["data"]["num_text_only"] == 8 and one["trained"] == ["projector", "newline", "language_model"]
    dump(blind_next, tmp_path / "config.yaml")
    launch(tmp_path, "llava_next")
    for zero in ("zero2", "zero3"):
        result = json.loads((tmp_path / zero / "result.json").read_text())
        assert (result["processes"], result["deepspeed"]["zero_stage"]) == (2, int(zero[-1]))
        assert result["data"] == one["data"]
        torch.testing.assert_close(losses(tmp_path / zero), losses(tmp_path / "one"), atol=1e-4, rtol=1e-4)
        assert_same_weights(tmp_path / zero, tmp_path / "one")
