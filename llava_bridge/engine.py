"""DeepSpeed under the trainer: a process that needs no compiler, its settings, what it really runs as, and
its checkpoints, from which another number of processes can go on.

DeepSpeed's resume and its conversion unpickle files: they are read from the stage's own folder only.
"""

import json
import os
import shutil
import socket
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import deepspeed
import deepspeed.ops
import torch
import torch.distributed
from accelerate.utils import DeepSpeedOptimizerWrapper
from deepspeed.checkpoint import ds_to_universal
from transformers import Trainer

from encoder.runtime.config import ROOT
from encoder.runtime.stage import is_first_process

COMPLETE = "COMPLETE"  # in a checkpoint whose every file was written: {processes, seconds, data}
_LONGEST_WAIT = timedelta(minutes=30)  # for the process that reads or converts; NCCL's own is 10
_UNIVERSAL = "universal"  # in a checkpoint: the same state in whole tensors


def prepare_process() -> None:
    """Make this process a distributed one, with or without a launcher, let several of them find each other,
    and keep DeepSpeed from compiling anything.

    Without torchrun's variables DeepSpeed asks for mpi4py. Its first CPU start compiles a shared-memory
    operator for minutes, which gloo does not need. The stage's settings alone say whether DeepSpeed runs, not
    what `accelerate launch` (on a CPU: DDP) or this process's last training has put into the environment.
    """
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED"):
        os.environ.pop(name, None)
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if int(os.environ["WORLD_SIZE"]) > 1 and not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=_LONGEST_WAIT)
    torch.set_flush_denormal(True)  # denormal numbers slow a CPU many times over


def read_deepspeed(path: str | None) -> dict | None:
    """DeepSpeed's settings, or None where it is switched off.

    An offloaded optimiser is DeepSpeed's own for CPUs, compiled at its first start; where there is no GPU to
    offload from, torch's AdamW does the same without.

    Raises: FileNotFoundError; ValueError for settings without a ZeRO stage.
    """
    if path is None:
        return None
    file = ROOT / path
    if not file.is_file():
        raise FileNotFoundError(f"DeepSpeed settings not found: {file}")
    settings = json.loads(file.read_text())
    if "stage" not in settings.get("zero_optimization", {}):
        raise ValueError(f"{path} has no zero_optimization.stage; take one of configs/deepspeed as a pattern")
    if "offload_optimizer" in settings["zero_optimization"] and not torch.cuda.is_available():
        settings["zero_force_ds_cpu_optimizer"] = False
    return settings


def check_engine(trainer: Trainer, path: str | None) -> None:
    """Before the first step.

    Raises:
        ValueError: Accelerate, without a word, uses DeepSpeed where it is not wanted, or not where it is.
    """
    if (path is not None) != trainer.is_deepspeed_enabled:
        kind = trainer.accelerator.distributed_type.value
        raise ValueError(f"deepspeed={path or 'null'}, but Accelerate runs {kind}; launch by torchrun")


def describe_engine(trainer: Trainer) -> dict:
    """What DeepSpeed really ran as."""
    engine = trainer.model_wrapped
    if not isinstance(engine, deepspeed.DeepSpeedEngine):
        return {"zero_stage": None, "backend": None}
    return {"zero_stage": engine.zero_optimization_stage(), "backend": torch.distributed.get_backend()}


@dataclass(frozen=True, slots=True)
class Mark:
    """What a complete checkpoint says of itself."""

    processes: int  # that wrote it
    seconds: float  # of training behind it, all attempts together
    data: dict | None = None  # {num_samples, sha256} of what its steps were made of; None: nobody noted it

    def check_data(self, data: dict, folder: Path) -> None:
        """Raises: ValueError: a run goes on in `folder` with other data than its checkpoint's were."""
        if self.data in (None, data):
            return
        raise ValueError(
            f"{folder} was begun on other data: {self.data['num_samples']} samples, now "
            f"{data['num_samples']}, or as many with other words or lengths; start again in another folder, "
            "or bring records and pictures back to what they were (one that was mended or lost counts) and "
            "delete records_cache"
        )


def read_mark(checkpoint: Path | None, num_processes: int) -> Mark:
    """The mark of a checkpoint; without one, that of a run of `num_processes` that has not begun."""
    if checkpoint is None:
        return Mark(num_processes, 0.0)
    return Mark(**json.loads((checkpoint / COMPLETE).read_text()))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint. Every process calls; the first one removes those that a kill cut
    short, the others wait for it."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    complete = [path for path in found if (path / COMPLETE).is_file()]
    if is_first_process():
        for path in set(found) - set(complete):
            _remove(path)
    wait_for_all()
    return complete[-1] if complete else None


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints, their marks first: what a kill leaves of one is not taken for whole. Every
    process may call; the first one removes."""
    if is_first_process():
        for mark in folder.glob(f"checkpoint-*/{COMPLETE}"):
            mark.unlink(missing_ok=True)
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder; a part of it that is already gone is no error."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        shutil.rmtree(folder)  # says why


def wait_for_all() -> None:
    """Wait until every process of the launch has come here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def make_universal(checkpoint: Path) -> None:
    """Write a checkpoint's state once more in whole tensors, which any number of processes can load under the
    setting `checkpoint: {load_universal: true}`. Every process calls; the first one writes.

    DeepSpeed splits the optimiser's state among the processes that train.
    """
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(checkpoint / _UNIVERSAL, ignore_errors=True)  # what a kill left of it
        options = Namespace(
            input_folder=str(checkpoint / (checkpoint / "latest").read_text().strip()),
            output_folder=str(checkpoint / _UNIVERSAL),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        with redirect_stdout(sys.stderr):
            ds_to_universal.main(options)
    wait_for_all()


def mend_universal(optimizer: DeepSpeedOptimizerWrapper, rates: list[float], decays: list[float]) -> None:
    """Undo what DeepSpeed 0.19.8 does on loading whole tensors under ZeRO-3: all groups get the first one's
    rate and decay, and one step count, shared, to which each of them then adds."""
    for group, rate, decay in zip(optimizer.param_groups, rates, decays, strict=True):
        group |= {"lr": rate, "weight_decay": decay}
    state = optimizer.optimizer.optimizer.state
    for values in state.values():
        values["step"] = values["step"].clone()
