"""All sources, one after the other, under one root."""

from collections.abc import Iterator
from pathlib import Path

from encoder.runtime.config import resolve
from encoder.runtime.stage import make_writable
from harness.replica import (
    adm,
    benchmarks,
    bert,
    clip,
    dino,
    imagenet,
    judges,
    language_model,
    llava,
    llava_next,
    openvision3,
    shards,
    vae,
)
from harness.replica.config import ReplicaConfig
from harness.replica.mark import write_mark

# source -> the function that writes it, given the root; each returns a line that says what it wrote
SOURCES = {
    "imagenet": imagenet.write,
    "llava_pretrain": llava.write_pretrain,
    "llava_mix": llava.write_mix,
    "open_next_mix": llava_next.write_open_mix,
    "next_mix": llava_next.write_next_mix,
    "benchmarks": benchmarks.write,
    "language_model": language_model.write,
    "openvision3": openvision3.write,
    "vae": vae.write,
    "clip": clip.write,
    "shards": shards.write,
    "vocabulary": bert.write,
}
NETWORKS = {  # at their true shapes
    "inception": judges.write_inception,
    "lpips": judges.write_lpips,
    "adm": adm.write,
    "dino": dino.write,
}


def write(root: Path, config: ReplicaConfig) -> Iterator[str]:
    """Write a replica into `root`; yields a line for each source.

    Raises:
        ValueError: `root` holds something already.
        OSError: it cannot be written.
    """
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty: a replica takes a folder of its own; choose another")
    make_writable(root)
    sizes = resolve(config)
    write_mark(root, config.seed, sizes, complete=False)
    for name, make in (SOURCES | (NETWORKS if config.networks else {})).items():
        yield f"{name:15} {make(root, config)}"
    write_mark(root, config.seed, sizes, complete=True)
