"""Run by `test_llava_ranks` under a launcher, in each of its processes: trainings one after the other over
the settings in a folder, LLaVA-1.5's under ZeRO-3, with LoRA and killed too, LLaVA-NeXT's under ZeRO-2 and 3.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import llava_bridge.loss
import llava_bridge.train as stage
from encoder.runtime.config import load
from llava_bridge.config import LlavaConfig

LAST_STEP = 5


class Killed(Exception):
    pass


def die_after_last_step(self, args, state, control, **kwargs):
    if state.global_step == LAST_STEP:
        raise Killed


def llava_1_5(folder: Path) -> None:
    zero3 = {"deepspeed": "configs/deepspeed/zero3.json"}
    config = replace(load(LlavaConfig, folder / "config.yaml", []), **zero3)
    lora = replace(load(LlavaConfig, folder / "lora.yaml", []), **zero3)
    llava_bridge.loss.MAX_LOGITS = 512  # a few positions at a time
    stage.train(config, folder / "two")
    unset_hf_deepspeed_config()  # else the next model would be split while it is read
    stage.train(lora, folder / "lora-two")
    unset_hf_deepspeed_config()
    stage.StageReport.on_step_end = die_after_last_step
    try:
        stage.train(config, folder / "killed")
    except Killed:
        print("killed as wanted")


def llava_next(folder: Path) -> None:
    config = load(LlavaConfig, folder / "config.yaml", [])
    for zero in ("zero2", "zero3"):
        stage.train(replace(config, deepspeed=f"configs/deepspeed/{zero}.json"), folder / zero)


if __name__ == "__main__":
    given = Path(sys.argv[1])
    {"llava_1_5": llava_1_5, "llava_next": llava_next}[sys.argv[2]](given)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()  # its threads may abort a process that ends over them
