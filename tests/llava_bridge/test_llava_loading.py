"""One process of a launch reads the weights; two and three hold and train what one alone does."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from encoder.runtime.checkpoint import load_tensors
from encoder.runtime.config import ROOT, dump
from llava_bridge.language_model import open_tokenizer
from llava_bridge.model import assemble, build, describe_start, save

BATCH = 6  # shared by one, two and three
ENGINES = ("none", "zero2", "zero3")  # as in loading_processes.py


@pytest.fixture
def start(llm, tmp_path) -> Path:
    """A language model in fp16 without a row for the picture mark; in its folder, what stage 1 made of it."""
    model = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float16)
    model.resize_token_embeddings(len(open_tokenizer(llm)) - 1)
    folder = tmp_path / "start"
    shutil.copytree(llm, folder)
    model.save_pretrained(folder)
    save(*build("tiny", None, folder, "eager", seed=0), folder / "llava")
    return folder


def test_two_and_three_processes_hold_and_train_what_one_does_though_only_the_first_has_weights(
    align, start, tmp_path
):
    """Every fourth record has no picture, so micro-batches of one meet others without one in both stages."""
    config = replace(align, batch_size=BATCH, micro_batch_size=1, num_epochs=0.4, checkpoint_steps=10)
    dump(replace(config, init=str(start)), tmp_path / "config.yaml")
    bare = tmp_path / "bare"
    shutil.copytree(start, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    script = Path(__file__).with_name("loading_processes.py")
    own = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # another test may have set them
    environ = {key: value for key, value in os.environ.items() if key not in own}
    environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, tmp_path, start, bare, tmp_path / "out"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one = tmp_path / "out" / "1"
    expected = json.loads((one / "loaded-0.json").read_text())
    for num_processes in (2, 3):
        out = tmp_path / "out" / str(num_processes)
        for rank in range(num_processes):
            loaded = json.loads((out / f"loaded-{rank}.json").read_text())
            for case, held in loaded.items():
                assert held["hashes"] == expected[case]["hashes"], f"{case}: rank {rank} of {num_processes}"
                assert held["tied"] == expected[case]["tied"]
                if "zero3" in case:  # split as it came
                    assert held["held"] == 0
        for stage in (1, 2):
            alone = load_tensors(one / f"{stage}-none" / "weights" / "model.safetensors")
            for engine in ENGINES:
                together = losses(out / f"{stage}-{engine}")
                assert together == pytest.approx(losses(one / f"{stage}-none"), abs=1e-4)
                together = load_tensors(out / f"{stage}-{engine}" / "weights" / "model.safetensors")
                assert together.keys() == alone.keys()
                for name, tensor in alone.items():  # sums in another order, which AdamW amplifies
                    torch.testing.assert_close(together[name], tensor, atol=2e-3, rtol=1e-2, msg=name)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_model_assembled_in_bf16_is_the_one_of_float32_rounded(start):
    """Also the rows that the tokenizer asks for, drawn from the embeddings' mean and covariance."""
    tower, processor = describe_start("tiny", None, start)
    models = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        models.append(assemble(tower, processor, start, "eager", 0, dtype))
    whole, rounded = models
    assert whole.get_input_embeddings().num_embeddings == len(processor.tokenizer)
    for (name, expected), (_, tensor) in zip(
        whole.named_parameters(), rounded.named_parameters(), strict=True
    ):
        dtype = torch.float32 if "vision_tower" in name else torch.bfloat16
        torch.testing.assert_close(tensor, expected.to(dtype), atol=0, rtol=0, msg=name)
    for (name, expected), (_, tensor) in zip(whole.named_buffers(), rounded.named_buffers(), strict=True):
        torch.testing.assert_close(tensor, expected, atol=0, rtol=0, msg=name)
