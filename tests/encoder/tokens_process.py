"""One of several processes of `encoder.tokens`: `python tokens_process.py CONFIG OUT_DIR DYING`.

The process of rank DYING is gone in the middle of its first shard's file.
"""

import os
import sys
from pathlib import Path

import torch

from encoder import token_store
from encoder.options import TokensConfig
from encoder.runtime.config import load
from encoder.tokens import run


def die(path: Path, tensors: dict, metadata: dict) -> None:
    path.with_name(f".{path.name}.half").write_bytes(b"half")
    os._exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[3] == os.environ["RANK"]:
        token_store.save_tensors = die
    run(load(TokensConfig, sys.argv[1]), Path(sys.argv[2]))
    torch.distributed.destroy_process_group()
