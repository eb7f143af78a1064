"""Run by `test_llava_loading`: launches of one, two and three processes, all forked from this one, which has
imported everything. Each process, over the settings of a folder, loads each stage's model under each engine
and then trains it. What it has loaded goes to OUT/<launch>/loaded-<number>.json.

Usage: loading_processes.py FOLDER START BARE OUT. Stage 1 starts from the language model in START, stage 2
from START/llava; processes that are not the first of their launch take BARE, without weights, instead.
"""

import json
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from conftest import TinyEncoder
from deepspeed.runtime.zero.partition_parameters import GatheredParameters, is_zero_param
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import llava_bridge.model
import llava_bridge.tower
import llava_bridge.train as stage
from encoder.runtime.config import load
from encoder.runtime.stage import sha256_json
from llava_bridge.config import LlavaConfig
from llava_bridge.engine import prepare_process

ENGINES = {"none": None, "zero2": "configs/deepspeed/zero2.json", "zero3": "configs/deepspeed/zero3.json"}


def own_encoder(source: str, **options) -> TinyEncoder:
    """Another one in each process, as files of different contents would give."""
    with torch.random.fork_rng():
        torch.manual_seed(int(os.environ.get("RANK", 0)))
        return TinyEncoder()


def hashes(model: torch.nn.Module) -> dict[str, str]:
    """Of every parameter and buffer, gathered where ZeRO-3 has split it."""
    found = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        with GatheredParameters([tensor] if is_zero_param(tensor) else []):
            found[name] = sha256_json([str(tensor.dtype), tensor.double().tolist()])
    return found


def describe(config: LlavaConfig) -> dict:
    """What this process holds of the model that a stage starts from."""
    tower, processor = stage.open_start(config)
    torch.manual_seed(config.seed)
    model = stage.load_model(config, tower, processor)
    held = sum(p.numel() for p in model.model.language_model.parameters())
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    return {"hashes": hashes(model), "held": held, "tied": tied}


def run(folder: Path, llm: Path, out: Path) -> None:
    """What one process of a launch does."""
    prepare_process()
    base = load(LlavaConfig, folder / "config.yaml", [])
    starts = {1: str(llm), 2: str(llm / "llava")}
    loaded = {}
    for number, init in starts.items():
        for engine, path in ENGINES.items():
            config = replace(base, stage=number, init=init, deepspeed=path)
            for precision in ("fp32", "bf16"):
                name = f"{number}-{engine}-{precision}"
                loaded[name] = describe(replace(config, precision=precision))
            if os.environ["WORLD_SIZE"] != "1" or engine == "none":  # one alone is what others are held to
                stage.train(config, out / f"{number}-{engine}")
            unset_hf_deepspeed_config()  # else the next model would be split while it is read
    (out / f"loaded-{os.environ['RANK']}.json").write_text(json.dumps(loaded))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()  # its threads may abort a process that ends over them


def fork(num_processes: int, folder: Path, start: Path, bare: Path, out: Path) -> list[int]:
    """Start a launch; the numbers of its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared["WORLD_SIZE"] = shared["LOCAL_WORLD_SIZE"] = str(num_processes)
    out.mkdir(parents=True)
    pids = []
    for rank in range(num_processes):
        pid = os.fork()
        if pid == 0:
            os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
            try:
                run(folder, bare if rank else start, out)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    return pids


def main(folder: Path, start: Path, bare: Path, out: Path) -> None:
    for module in (llava_bridge.tower, llava_bridge.model):
        module.load_encoder = own_encoder
    torch.set_num_threads(1)
    pids = [pid for n in (1, 2, 3) for pid in fork(n, folder, start, bare, out / str(n))]
    for _ in pids:
        if os.wait()[1]:
            for pid in pids:  # its launch would wait for it
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            sys.exit("a process failed")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
