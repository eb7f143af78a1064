"""Where a training tells how it goes: its own log, and the trackers that its config names.

A run that goes on, after a kill or with more steps, goes on in the same run of each tracker: its id lies in
tracker.json in the run's folder. What came after the last checkpoint is then told again: TensorBoard shows
the second telling, wandb keeps the first, trackio both; on a CPU they are equal. No torch and no numpy here
until a tracker that needs them is opened.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from encoder.runtime.config import choose, resolve
from encoder.runtime.stage import progress, write_json

if TYPE_CHECKING:
    import numpy as np

Tracker = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "openvision3"
TRACKER_FILE, TENSORBOARD = "tracker.json", "tensorboard"  # in the run's folder


class Journal:
    """What a run logs, written by its first process alone."""

    def __init__(
        self, out_dir: Path, trackers: Sequence[Tracker] = (), config: Any = None, *, is_main: bool = True
    ):
        """Open the trackers; `config` is shown beside the run.

        Raises: ValueError: one is not installed, or cannot start.
        """
        for name in trackers:
            if find_spec(name) is None:
                raise ValueError(f"tracker {name} is not installed: pip install {name}")
        self.out_dir, self.is_main = out_dir, is_main
        self._trackers = [choose(_KINDS, name, "tracker")(out_dir, config) for name in trackers if is_main]

    def write(self, done: int, total: int, **scalars: float) -> None:
        """Tell what holds after `done` of `total` steps."""
        if self.is_main:
            progress(self.out_dir, done, total, **scalars)
            finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
            for tracker in self._trackers:
                tracker.log(done, finite)

    def show(self, done: int, name: str, image: np.ndarray) -> None:
        """Show a picture (uint8, H W 3) after `done` steps."""
        for tracker in self._trackers:
            tracker.show(done, name, image)

    def close(self) -> None:
        """End the trackers' runs: complete."""
        for tracker in self._trackers:
            tracker.close()


class _Kind(Protocol):
    def log(self, done: int, scalars: dict[str, float]) -> None: ...
    def show(self, done: int, name: str, image: np.ndarray) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    """Event files in out_dir/tensorboard. A later start purges what an earlier one told of the same steps."""

    def __init__(self, out_dir: Path, config: Any):
        self.folder, self._writer = out_dir / TENSORBOARD, None

    def _opened(self, done: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=done)
        return self._writer

    def log(self, done: int, scalars: dict[str, float]) -> None:
        writer = self._opened(done)
        for name, value in scalars.items():
            writer.add_scalar(name, value, done)
        writer.flush()

    def show(self, done: int, name: str, image: np.ndarray) -> None:
        self._opened(done).add_image(name, image, done, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Wandb:
    """A run of wandb, resumed by its id; WANDB_MODE=offline keeps it in out_dir/wandb, for `wandb sync`."""

    def __init__(self, out_dir: Path, config: Any):
        import wandb

        run = _run_of(out_dir)
        about = {"project": PROJECT, "name": run["name"], "config": resolve(config), "dir": str(out_dir)}
        try:
            self._run = wandb.init(**about, id=run["id"], resume="allow")
        except wandb.Error as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(f"tracker wandb cannot start: {reason}; or set WANDB_MODE=offline") from None

    def log(self, done: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=done)

    def show(self, done: int, name: str, image: np.ndarray) -> None:
        import wandb

        self._run.log({name: wandb.Image(image)}, step=done)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of trackio, resumed by its name, which therefore bears its id; where it keeps it, it says."""

    def __init__(self, out_dir: Path, config: Any):
        import trackio

        run = _run_of(out_dir)
        name = f"{run['name']}-{run['id']}"
        about = {"project": PROJECT, "name": name, "config": resolve(config)}
        self._run = trackio.init(**about, resume="allow", embed=False)

    def log(self, done: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=done)

    def show(self, done: int, name: str, image: np.ndarray) -> None:
        import trackio

        self._run.log({name: trackio.Image(image)}, step=done)

    def close(self) -> None:
        self._run.finish()


_KINDS: dict[str, type[_Kind]] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio}


def _run_of(out_dir: Path) -> dict[str, str]:
    """The run's name and id, given once."""
    path, folder = out_dir / TRACKER_FILE, out_dir.resolve()
    if not path.is_file():
        run = {"name": f"{folder.parent.name}-{folder.name}", "id": secrets.token_hex(8)}
        write_json(path, run)
    return json.loads(path.read_text())
