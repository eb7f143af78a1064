"""Weights files of judges and perceptual distances: where they lie, whose they are by their hash, and how
they are read: as tensors only, never by running code from the file.

A name such as FID belongs to one published file; any other file is told apart by its own hash.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder.runtime import hub
from encoder.runtime.stage import sha256_file

if TYPE_CHECKING:
    from torch import Tensor, nn

DOWNLOAD = "download"  # in place of a path: fetch the published file if it is not there yet
_TORCH = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class Published:
    """A file that its authors publish; the end of its name opens its sha256, as torch.hub has it."""

    what: str
    file: str
    folder_url: str

    @property
    def digits(self) -> str:
        """The first 8 hex digits of its sha256."""
        return Path(self.file).stem.rpartition("-")[2]

    @property
    def place(self) -> Path:
        """Where torch.hub keeps it."""
        cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        return (
            Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub/checkpoints" / self.file
        )


INCEPTION = Published(
    what="the 2015 Inception",
    file="weights-inception-2015-12-05-6726825d.pth",
    folder_url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0",
)
TRUNKS = {
    "alex": Published("LPIPS' AlexNet trunk", "alexnet-owt-7be5be79.pth", _TORCH),
    "vgg": Published("LPIPS' VGG16 trunk", "vgg16-397923af.pth", _TORCH),
    "squeeze": Published("LPIPS' SqueezeNet trunk", "squeezenet1_1-b8a52dc0.pth", _TORCH),
}


def find(published: Published, given: str | None) -> Path:
    """The file that `given` means: a path (relative to the repository), its folder, or the hub id of a
    repository that holds it; None, `download`: torch.hub's place.

    Raises:
        FileNotFoundError: it is not there and may not be fetched.
    """
    path = published.place if given in (None, DOWNLOAD) else hub.place(given)
    path = path / published.file if path.is_dir() else path
    if not path.is_file() and given != DOWNLOAD:
        raise FileNotFoundError(
            f"{published.what} weights not found: {path}; name {published.file} (or safetensors of it) by "
            f"its path, or say '{DOWNLOAD}'"
        )
    return path


def is_genuine(published: Published, path: Path) -> bool:
    """Whether a file is the published one; one that is yet to be downloaded will be checked then."""
    return not path.is_file() or sha256_file(path).startswith(published.digits)


def read(published: Published, given: str | None) -> "dict[str, Tensor]":
    """The tensors of a state dict (torch's format or safetensors), downloaded first where that was asked for.

    Raises:
        FileNotFoundError: as `find`, or the download failed.
        ValueError: the file is damaged, or holds anything but tensors by name.
    """
    import torch  # here: the command line asks this module for names and hashes only

    path = find(published, given)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(
                f"{published.folder_url}/{published.file}", str(path), published.digits, progress=False
            )
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(f"{published.file} could not be downloaded: {error}") from None
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, torch and safetensors each raise their own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"weights damaged or unsafe, nothing was run: {path} ({reason})") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a state dict of tensors")
    return dict(state)


def fill(module: "nn.Module", state: "Mapping[str, Any]", source: Path) -> None:
    """Load every tensor of a state dict into a module.

    Raises:
        ValueError: they do not fit, in one line.
    """
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:2])[:200]
        raise ValueError(f"{source} does not fit {type(module).__name__}: {reason}") from None
