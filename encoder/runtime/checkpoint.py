"""Checkpoints that survive a kill, and the seeds that make a resumed run equal an uninterrupted one.

A trainer draws everything that step `s` needs from `step_generator(seed, s)` and its data order from
`epoch_order(seed, epoch)`, so model, optimiser and step number are all that going on needs. (`encoder.train`
also stores each process's generators, for what a library might draw, and its places in streamed data.)
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize_tensors
from torch import Tensor

from encoder.runtime.files import replacing


def save(path: Path, state: Mapping[str, Any], *, keep: int = 1) -> None:
    """Write `state` (tensors, numbers, strings, dicts, lists) atomically.

    Of the files before it the last `keep` - 1 stay: checkpoint.1.pt is the one before checkpoint.pt, and so
    on. At a kill between two names the newest is for a moment checkpoint.1.pt: see `newest`.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        serialize(dict(state), file)
        file.flush()
        if keep > 1:
            os.fsync(file.fileno())
            _shift(path, keep)
    for old in _earlier(path)[keep - 1 :]:
        old.unlink(missing_ok=True)


class _Sink:
    """A file that keeps the error it raised: torch's writer replaces it by one about its own positions."""

    def __init__(self, file: BinaryIO):
        self.file, self.error = file, None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def serialize(state: dict[str, Any], file: BinaryIO) -> None:
    """Write `state` as torch does.

    Raises:
        OSError: the file cannot be written, such as on a full disk.
    """
    sink = _Sink(file)
    try:
        torch.save(state, sink)
    except RuntimeError:
        if sink.error is None:
            raise
        raise sink.error from None


def newest(path: Path) -> Path | None:
    """The latest file that `save` left under this name: itself, else the last one before it; None without."""
    return next((each for each in (path, *_earlier(path)) if each.is_file()), None)


def _earlier(path: Path) -> list[Path]:
    """checkpoint.1.pt, checkpoint.2.pt, ... beside checkpoint.pt, as far as they are there."""
    found = (each for each in path.parent.glob(f"{path.stem}.*{path.suffix}") if _number(each, path) > 0)
    return sorted(found, key=lambda each: _number(each, path))


def _number(earlier: Path, path: Path) -> int:
    word = earlier.name.removeprefix(f"{path.stem}.").removesuffix(path.suffix)
    return int(word) if word.isdigit() else 0


def _shift(path: Path, keep: int) -> None:
    """Make room for a new file: each goes one number up, as far as there is no gap."""
    chain = [path, *(path.with_name(f"{path.stem}.{i}{path.suffix}") for i in range(1, keep))]
    last = next((i for i, each in enumerate(chain) if not each.is_file()), len(chain) - 1)
    for i in range(last, 0, -1):
        chain[i - 1].replace(chain[i])


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, on the CPU, without running code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each raise their own kinds for a damaged file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        remedy = "delete it to go on from the one before it, or else to start again"
        raise ValueError(f"checkpoint damaged or unsafe: {path} ({reason}); {remedy}") from None


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write named tensors as safetensors, atomically; `metadata` values are stored as JSON."""
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    data = serialize_tensors(contiguous, {key: json.dumps(value) for key, value in (metadata or {}).items()})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not valid safetensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights not found: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # safetensors raises its own kind, not importable by name in every version
        raise ValueError(f"weights damaged: {path} ({str(error).splitlines()[0][:120]})") from None


def step_generator(
    seed: int, step: int, what: str = "", device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator that depends on (seed, step, what) alone: step `s` draws the same after any resume."""
    digest = hashlib.sha256(f"{seed}/{step}/{what}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def epoch_order(seed: int, epoch: int, num_samples: int) -> Tensor:
    """The order in which epoch `epoch` visits the samples: a permutation of range(num_samples)."""
    return torch.randperm(num_samples, generator=step_generator(seed, epoch, "order"))


@functools.lru_cache(maxsize=2)  # a batch lies in one epoch or two, the next one in the same
def _kept_order(seed: int, epoch: int, num_samples: int) -> Tensor:
    return epoch_order(seed, epoch, num_samples)


def batch_indices(seed: int, step: int, batch_size: int, num_samples: int) -> Tensor:
    """The samples of step `step`: consecutive entries of the epochs' orders, one epoch joined to the next."""
    start, end, parts = step * batch_size, (step + 1) * batch_size, []
    while start < end:
        epoch, first = divmod(start, num_samples)
        parts.append(_kept_order(seed, epoch, num_samples)[first : first + end - start])
        start += len(parts[-1])
    return torch.cat(parts)
