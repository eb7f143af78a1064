"""What bench/processes.py runs: the demo's stages that several processes can share, at its sizes, on inputs
that the stages before them make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _exchange import BF16_BYTES, FP32_BYTES, all_reduce_bytes, contrastive_bytes, zero2_bytes
from _table import ROOT

import rae_bridge.train
from encoder import tokens
from encoder.data.options import ScenesConfig
from encoder.data.scenes import write
from encoder.options import TokensConfig
from encoder.runtime.config import load, read_yaml
from encoder.training.flops import num_parameters
from encoder.training.options import TrainConfig
from harness.config import CONFIGS
from llava_bridge.config import LlavaConfig
from llava_bridge.model import build, save
from rae_bridge.config import GenerateConfig, TrainDiTConfig

STEPS = 5  # of a turn
NUM_PICTURES, GENERATED = 160, 32  # drawn for this; sampled at once


@dataclass(frozen=True)
class Job:
    """A stage whose step is `batch_size` samples, however many processes do them."""

    name: str
    alone: Any  # the config of one process
    shared: Any  # of two together
    halved: Any  # of each of two that are apart
    batch_size: int
    sent: float  # bytes that each of two sends a step, by formula
    about: str


def make_inputs(folder: Path) -> dict[str, int]:
    """What the stages start from, by the stages before them: pictures, tokens, a DiT, a first LLaVA; returns
    how many parameters learn in the stages for which this is known only here."""
    for name in ("scenes", "ov3", "blind", "dit"):
        (folder / name).mkdir()
    number = {"num_train": NUM_PICTURES, "num_test": 32, "num_llava_images": NUM_PICTURES}
    nothing = dict.fromkeys(("num_val", "num_text", "num_seed_questions", "num_pope_pairs"), 0)
    write.run(ScenesConfig(image_size=64, **number, **nothing), folder / "scenes")
    tokens.run(TokensConfig(encoder="ov3-demo", data=str(folder / "scenes")), folder / "ov3")
    pictures = {"data": str(folder / "scenes" / "llava"), "records": [str(conversations(folder))]}
    tokens.run(TokensConfig(encoder="blind", **pictures), folder / "blind")
    trained = rae_bridge.train.train(dit_config(folder, batch_size=8, num_steps=1), folder / "dit")
    llava, processor = build("blind", None, ROOT / "weights" / "demo" / "llama", "sdpa", seed=0)
    save(llava, processor, folder / "init")
    llava.model.vision_tower.requires_grad_(False)
    learning = sum(each.numel() for each in llava.parameters() if each.requires_grad)
    return {"rae_bridge.train": trained["num_parameters"], "llava_bridge.train": learning}


def conversations(folder: Path) -> Path:
    return folder / "scenes" / "llava" / "instruct.json"


def demo() -> dict:
    return read_yaml(CONFIGS / "presets" / "demo.yaml")


def encoder_config(folder: Path, **own: Any) -> TrainConfig:
    own |= {
        "data": str(folder / "scenes"),
        "eval_limit": 8,
        "log_steps": 100,
        "snapshot_steps": [],
        "device": "cpu",
    }
    return load(TrainConfig, demo()["ablation"]["train"] | own)


def dit_config(folder: Path, **own: Any) -> TrainDiTConfig:
    return load(TrainDiTConfig, demo()["rae"]["train"] | own | {"tokens": str(folder / "ov3")})


def llava_config(folder: Path, **own: Any) -> LlavaConfig:
    own |= {"stage": 2, "encoder": "blind", "data": [str(conversations(folder))], "log_steps": 100}
    own |= {"tokens": str(folder / "blind"), "init": str(folder / "init")}
    return load(LlavaConfig, demo()["llava"]["instruct"] | own)


def generate_config(folder: Path, **own: Any) -> GenerateConfig:
    return GenerateConfig(model=str(folder / "dit" / "weights"), encoder="ov3-demo", num_steps=5, **own)


def make_jobs(folder: Path, num_learning: Mapping[str, int]) -> list[Job]:
    """The demo's stages at its sizes."""

    def job(name: str, batch_size: int, sent: float, about: str, make: Callable[[int], Any]) -> Job:
        return Job(name, make(batch_size), make(batch_size), make(batch_size // 2), batch_size, sent, about)

    def towers(n: int) -> TrainConfig:
        return encoder_config(folder, batch_size=n, num_steps=STEPS)

    def dit(n: int) -> TrainDiTConfig:
        return dit_config(folder, batch_size=n, num_steps=STEPS)

    def llava(n: int) -> LlavaConfig:
        return llava_config(folder, batch_size=n, num_epochs=STEPS * n / NUM_PICTURES)

    gradients = {name: all_reduce_bytes(values, FP32_BYTES, 2) for name, values in num_learning.items()}
    sent = all_reduce_bytes(sum(num_parameters(towers(32)).values()), FP32_BYTES, 2)
    sent += contrastive_bytes(towers(32), 2)
    zero = zero2_bytes(num_learning["llava_bridge.train"], BF16_BYTES, 2)
    shared = generate_config(folder, num_samples=GENERATED * STEPS, batch_size=GENERATED // 2)
    drawn = [
        replace(shared, batch_size=GENERATED),
        shared,
        replace(shared, num_samples=GENERATED * STEPS // 2),
    ]
    return [
        job("encoder.train", 32, sent, "DDP, fp32 gradients; features gathered", towers),
        job("rae_bridge.train", 64, gradients["rae_bridge.train"], "DDP, fp32 gradients", dit),
        Job("rae_bridge.generate", *drawn, GENERATED, 0.0, "25 steps in the demo, 5 here"),
        job("llava_bridge.train", 32, zero, "stage 2, ZeRO-2, bf16 gradients and weights", llava),
    ]
