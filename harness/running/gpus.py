"""Which stages use a GPU, which GPUs there are, and whose turn is on which."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping

from harness.running.provenance import output

VARIABLE = "CUDA_VISIBLE_DEVICES"
_WITHOUT = ("encoder.data.", "harness.own_", "harness.trained")  # modules: they render, pack and read logs


def uses_gpu(module: str) -> bool:
    """Whether a stage of this module computes on a GPU where its device is one."""
    return not module.startswith(_WITHOUT)


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: those named there, else all of
    the machine's."""
    if (named := environment.get(VARIABLE)) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return output(query).split() if shutil.which(query[0]) else []


def least_busy(gpus: Iterable[str], taken: Iterable[str]) -> str:
    """The GPU with the fewest running stages; of equal ones, the first."""
    counts = Counter(taken)
    return min(gpus, key=lambda gpu: counts[gpu])
