"""Checkpoints that several processes find at once: the first one clears what a kill left, the others wait."""

import os
import subprocess
import sys

from encoder.runtime.config import ROOT

NUM_PROCESSES, NUM_FOLDERS = 4, 40
FIND = """
import sys, torch.distributed
from pathlib import Path
from llava_bridge.engine import COMPLETE, last_checkpoint, prepare_process
prepare_process()
torch.distributed.barrier()
found = last_checkpoint(Path(sys.argv[1]))
assert found is not None and found.name == "checkpoint-7", found
assert [path.name for path in Path(sys.argv[1]).iterdir()] == ["checkpoint-7"]
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_four_processes_clear_what_a_kill_left_and_go_on_alike(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (7, *range(100, 100 + NUM_FOLDERS)):
        for i in range(50):
            (folder / f"checkpoint-{step}" / f"part-{i}").mkdir(parents=True)
            (folder / f"checkpoint-{step}" / f"part-{i}" / "weights").write_bytes(b"half")
    (folder / "checkpoint-7" / "COMPLETE").write_text("{}")
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={NUM_PROCESSES}"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", "--no_python"]
    command += [sys.executable, "-c", FIND, str(folder)]
    own = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environ = {key: value for key, value in os.environ.items() if key not in own} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
