"""A stage: `python -m <package>.<module> <config.yaml> <out_dir>`: resolved config in, a folder out.

No torch here. Each stage module calls `main(ConfigClass, run)`; `run(config, out_dir)` does the work and
returns its result, which is written as `DONE.json`, last.
"""

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from encoder.runtime.config import dump, load
from encoder.runtime.files import remove_leftovers, replacing
from encoder.runtime.resume import (
    DONE,
    PROGRESS,
    STAGE_CONFIG,
    note_changes,
    refuse_other_run,
)

BAD_INPUT = 2  # exit code: the caller is wrong; nothing was started
INTERRUPTED = 130
DATA_SETS = "data_sets.json"  # beside the config: name -> hash of what a stage reads one by one, or null
_SECONDS_BETWEEN_REPORTS = 0.5
_last_report: dict[Path, float] = {}


def main(
    config_class: type,
    run: Callable[[Any, Path], dict],
    argv: list[str] | None = None,
    *,
    parts: Callable[[Any, Path], dict[Path, Any]] | None = None,
) -> None:
    """Run a stage from the command line and exit: 0 done, 2 bad input (one line on stderr), 130 interrupted.

    A finished folder (`DONE.json`) is left as it is if it was made with these very settings, and refused
    otherwise; a folder that was begun goes on if only keys differ that may (`encoder.runtime.resume`). A
    stage that writes several runs gives them as `parts`: their folders and configs. Every process checks
    the folder; only the first one writes to it.
    """
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) < 2 or argv[0] in ("-h", "--help"):
        print(f"usage: python -m {_module_name()} <config.yaml> <out_dir> [key=value ...]", file=sys.stderr)
        sys.exit(0 if argv[:1] in (["-h"], ["--help"]) else BAD_INPUT)
    out_dir = Path(argv[1])
    try:
        config = load(config_class, Path(argv[0]), argv[2:])
        runs = parts(config, out_dir) if parts else {out_dir: config}
        if all((folder / DONE).is_file() for folder in (out_dir, *runs)):
            for folder, each in runs.items():
                refuse_other_run(each, folder, is_whole=parts is None)
            print(f"{out_dir} is complete")
            return
        make_writable(out_dir)
        for folder, each in runs.items():
            refuse_other_run(each, folder)
        if is_first_process():
            for folder, each in runs.items():
                note_changes(each, folder)
            dump(config, out_dir / STAGE_CONFIG)
        started = time.monotonic()
        result = run(config, out_dir)
    except (ValueError, OSError) as error:  # also a full disk
        if os.environ.get("OV3_TRACEBACK"):
            raise
        print(f"error: {first_line(error)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print(f"interrupted; what {out_dir} holds is good, the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    write_done(out_dir, _module_name(), result, time.monotonic() - started)
    _leave_the_others()


def _leave_the_others() -> None:
    """End the process group, if the stage joined one: its threads may abort a process that ends over them."""
    distributed = sys.modules.get("torch.distributed")  # no torch here where the stage needed none
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_first_process() -> bool:
    """Whether this is the first process of a launch, or the only one: it alone writes the shared files."""
    return os.environ.get("RANK", "0") == "0"


def write_done(folder: Path, stage: str, result: Any, seconds: float) -> None:
    """Write DONE.json, the last file of a stage; the first process does it for all."""
    if is_first_process():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        done = {"stage": stage, "seconds": round(seconds, 2), "peak_memory_mb": peak, "result": result}
        write_json(folder / DONE, done)


def progress(out_dir: Path, done: int, total: int, unit: str = "steps", **scalars: float) -> None:
    """Write how far a stage is, at most twice a second; `scalars` go to `log.jsonl` every time."""
    if scalars:
        with (out_dir / "log.jsonl").open("a") as log:
            log.write(json.dumps({unit: done, **scalars}) + "\n")
    now = time.monotonic()
    if now - _last_report.get(out_dir, 0.0) >= _SECONDS_BETWEEN_REPORTS or done >= total:
        _last_report[out_dir] = now
        write_json(out_dir / PROGRESS, {"done": done, "total": total, "unit": unit, **scalars}, sync=False)


def read_data_sets(folder: Path) -> dict[str, str | None]:
    """The hashes of the data sets that a stage was last started with; none where nobody noted any."""
    try:
        held = json.loads((folder / DATA_SETS).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def make_writable(folder: Path) -> None:
    """Create a folder, prove that it can be written to, and remove what a killed writer left in it.

    Raises:
        PermissionError: it cannot be created or written, with the reason.
    """
    probe = folder / ".write-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(probe, sync=False) as temporary:
            temporary.write_text("")
        probe.unlink(missing_ok=True)  # of several processes here at once, another may have been faster
        remove_leftovers(folder)
    except OSError as error:
        message = f"folder not writable: {folder} ({error.strerror}); choose another or mend its rights"
        raise PermissionError(message) from None


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Write JSON so that a reader never sees half a file; `sync`: see `files.replacing`."""
    with replacing(path, sync=sync) as temporary, temporary.open("w") as file:
        json.dump(value, file, indent=1, default=str)
        file.write("\n")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a plain value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).stem
