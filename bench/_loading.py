"""Part of bench/llava.py: what the processes of a launch hold while a model is loaded.

Each process of a launch loads stage 1's model in several ways, one after the other, and says by how much its
resident memory rose at most: as `llava_bridge.train` does, where the first process reads and the others
receive, unsplit or split as it comes (ZeRO-3); and reading it all by itself. On a CPU over gloo, with a Llama
of about 200 MB in fp32, whose file is in fp16; 7B and GPUs are not measured.

As a script, `_loading.py LLM`, it imports everything once and forks the processes of each launch.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from _table import ROOT, Row, make_row

if TYPE_CHECKING:
    from llava_bridge.tower import FrozenTowerConfig

ENCODER = "blind"  # without weights of its own
WIDTH, LAYERS, MLP_WIDTH = 768, 5, 2816  # with the demo's tokenizer
PROCESSES = (1, 2, 4)
ANSWERS = "answers.json"


def make_language_model(folder: Path) -> float:
    """Write a Llama of random weights in fp16, as Vicuna's are, with the demo's tokenizer; its MB in fp32."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "weights" / "demo" / "llama")
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": MLP_WIDTH}
    config = LlamaConfig(**shape, num_attention_heads=WIDTH // 64, vocab_size=len(tokenizer))
    model = LlamaForCausalLM(config)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters()) * 4 / 1e6


def peak_rise(work: Callable[[], object]) -> int:
    """By how many bytes the process's resident memory rose at most during `work`; nothing is kept."""
    import torch

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak()
    work()
    return _peak() - before


def _peak() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def former_way(tower: FrozenTowerConfig, llm: str) -> object:
    """Read in full by this process, and copied into a whole second model."""
    import torch
    from transformers import AutoModelForCausalLM, LlavaConfig

    from llava_bridge.model import LlavaOverTokens

    language_model = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    config = LlavaConfig(vision_config=tower, text_config=language_model.config)
    model = LlavaOverTokens._from_config(config)
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.lm_head.load_state_dict(language_model.lm_head.state_dict())
    return model


def measure(llm: str) -> dict[str, float]:
    """One process of a launch: the peak in MiB of each way to load stage 1's model."""
    import torch

    from llava_bridge.config import LlavaConfig
    from llava_bridge.engine import prepare_process
    from llava_bridge.model import assemble
    from llava_bridge.train import load_model, open_start

    torch.set_num_threads(1)
    prepare_process()
    given = {"stage": 1, "encoder": ENCODER, "data": ["-"], "tokens": "-", "init": llm, "batch_size": 8}
    config = LlavaConfig(**given, learning_rate=1e-3, precision="fp32")
    tower, processor = open_start(config)
    zero3 = replace(config, deepspeed="configs/deepspeed/zero3.json")
    ways = {
        "once": lambda: load_model(config, tower, processor),
        "former": lambda: former_way(tower, llm),
        "each": lambda: assemble(tower, processor, llm, config.attention, config.seed),
        "split": lambda: load_model(zero3, tower, processor),
    }
    ways["each"]()  # what the first call of all leaves behind is no way's
    peaks = {name: peak_rise(way) / 2**20 for name, way in ways.items()}
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()  # its threads may abort a process that ends over them
    return peaks


def fork(llm: str, place: dict[str, str], answer: Path) -> int:
    """Start one process of a launch, which writes its `answer`; its number."""
    pid = os.fork()
    if pid == 0:
        os.environ.update(place)
        try:
            answer.write_text(json.dumps(measure(llm)))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def launch(llm: str) -> None:
    """Fork the processes of each launch and print what each says, by launch."""
    from processes import launch_places

    import llava_bridge.train  # noqa: F401 - once, before the processes part

    answers = {}
    for num_processes in PROCESSES:
        paths = [Path(llm) / f"answer-{num_processes}-{rank}.json" for rank in range(num_processes)]
        places = launch_places(num_processes)
        pids = [fork(llm, place, path) for place, path in zip(places, paths, strict=True)]
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        if any(statuses):
            sys.exit(f"loading in {num_processes} processes failed")
        answers[num_processes] = [json.loads(path.read_text()) for path in paths]
    (Path(llm) / ANSWERS).write_text(json.dumps(answers))


def loading_rows() -> list[Row]:
    """Peak memory of a process, the mean of a launch: under ZeRO-3, against each reading it all."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        size = make_language_model(Path(folder))
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # what is freed goes back to the system
        subprocess.run([sys.executable, __file__, folder], env=environ, check=True, stdout=subprocess.DEVNULL)
        answers = json.loads((Path(folder) / ANSWERS).read_text())
        for num_processes, peaks in answers.items():
            mean = {name: sum(peak[name] for peak in peaks) / len(peaks) for name in peaks[0]}
            each = {name: " ".join(f"{peak[name]:.0f}" for peak in peaks) for name in peaks[0]}
            note = f"a model of {size:.0f} MB in fp32 on a CPU, gloo; by process, ZeRO-3: {each['split']}; "
            note += f"unsplit (ZeRO-2 or none): {each['once']}; each process reads: {each['each']}; "
            note += f"baseline: each reads and copies it into a second model, as before: {each['former']}"
            sides = (mean["split"], mean["former"])
            name = f"load/{num_processes}_ranks"
            rows.append(make_row(name, "MiB a rank", *sides, note, higher_is_better=False))
    return rows


if __name__ == "__main__":
    launch(sys.argv[1])
