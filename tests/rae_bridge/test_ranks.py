"""Two processes equal one: both models' training, the latent cache, sampling, reconstruction, the judge."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT, dump
from encoder.runtime.ranks import Ranks
from rae_bridge import decoder_data
from rae_bridge.config import (
    AdversarialConfig,
    DecodeConfig,
    DecoderSize,
    DiTOptimConfig,
    DiTSize,
    GenerateConfig,
    ReconstructConfig,
    SweepConfig,
    TrainDecoderConfig,
    TrainDiTConfig,
)
from rae_bridge.latents import open_latents
from rae_bridge.pictures_config import CacheConfig, LivePicturesConfig
from rae_bridge.watch_config import JudgeConfig, OnlineConfig

# All stages in one start of torch, which costs more than they do.
PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from encoder.runtime.config import load
from rae_bridge import cache, config, decode, decoder_data, generate, pictures_config, reconstruct, sweep
from rae_bridge import train, train_decoder
decoder_data.CHUNK = 10
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
stages = {
    "cache": (pictures_config.CacheConfig, cache.run),
    "decode": (config.DecodeConfig, decode.run),
    "train": (config.TrainDiTConfig, train.train),
    "decoder": (config.TrainDecoderConfig, train_decoder.train),
    "live": (config.TrainDecoderConfig, train_decoder.train),
    "generate": (config.GenerateConfig, generate.run),
    "reconstruct": (config.ReconstructConfig, reconstruct.run),
    "sweep": (config.SweepConfig, sweep.run),
}
for name, (kind, run) in stages.items():
    (out / name).mkdir(parents=True, exist_ok=True)
    run(load(kind, folder / f"{name}.yaml"), out / name)
"""


def launch(program: Path, arguments: list[str], world: int) -> None:
    """The program in `world` processes, as `accelerate launch` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": paths},
            stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]
    for process in processes:
        errors = process.communicate()[1].decode()
        assert process.returncode == 0, errors[-2000:]


@pytest.fixture
def outputs(tmp_path, pictures, write_model, invertible, monkeypatch) -> dict[int, Path]:
    """What one process and what two processes wrote."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(decoder_data, "CHUNK", decoder_data.CHUNK)  # the program sets it, here too
    encoder = "module:conftest:InvertibleEncoder"  # as the other processes can import it
    judge = JudgeConfig(reference=str(tmp_path / "features.npz"), network="test_sweep:Network")
    np.savez(tmp_path / "features.npz", pooled=torch.rand(9, 6).numpy())
    online = OnlineConfig(judge=judge, every_steps=2, num_samples=5, num_steps=2, encoder=encoder)
    size = DiTSize(hidden_size=(16, 16), depth=(1, 1), num_heads=(2, 2))
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    small = dict(zip((f"decoder_{name}" for name in names), (16, 1, 2, 32), strict=True))
    adversarial = AdversarialConfig(
        backbone="test_vit.r160_in1k", checkpoint="random", learns_from=0, acts_from=0
    )
    program, results = tmp_path / "stages.py", {}
    program.write_text(PROGRAM)
    for world in (1, 2):
        folder, out = tmp_path / f"configs-{world}", tmp_path / f"out-{world}"
        folder.mkdir()
        data = {"encoder": encoder, "data": str(pictures)}
        write_model(tmp_path / "model", encoder)
        configs = {
            "cache": CacheConfig(**data, shard_size=5, batch_size=4),
            "decode": DecodeConfig(encoder=encoder, tokens=str(out / "cache"), first=2, batch_size=5),
            "train": TrainDiTConfig(
                tokens=str(out / "cache"), num_classes=3, num_steps=3, batch_size=8, micro_batch_size=2,
                size=size, optim=DiTOptimConfig(lr=1e-3, muon_lr=1e-2), online=online, log_steps=1,
            ),
            "decoder": TrainDecoderConfig(
                **data, num_steps=2, batch_size=4, size=DecoderSize(**small), perceptual_weight=0.0,
                adversarial=adversarial, log_steps=1,
            ),
            "live": TrainDecoderConfig(
                **data, num_steps=2, batch_size=4, size=DecoderSize(**small), perceptual_weight=0.0,
                live=LivePicturesConfig(num_threads=1, encode_batch_size=2), log_steps=1,
            ),
            "generate": GenerateConfig(
                model=str(tmp_path / "model"), encoder=encoder, num_samples=8, num_steps=2, batch_size=3
            ),
            "reconstruct": ReconstructConfig(**data, split="train", limit=19, batch_size=4),
            "sweep": SweepConfig(
                model=str(tmp_path / "model"), encoder=encoder, judge=judge, scales=(1.0, 2.0), steps=(2,),
                default_steps=2, num_samples=9, batch_size=2,
            ),
        }  # fmt: skip
        for name, config in configs.items():
            dump(config, folder / f"{name}.yaml")
        arguments = [str(folder), str(out)]
        if world == 1:
            monkeypatch.setattr(sys, "argv", ["stages", *arguments])
            runpy.run_path(str(program))
        else:
            launch(program, arguments, world)
        results[world] = out
    return results


def test_two_processes_write_what_one_does(outputs):
    one, two = outputs[1], outputs[2]
    caches = [open_latents(out / "cache") for out in (one, two)]
    everything, flips = torch.arange(24), torch.ones(24, dtype=torch.bool)
    assert torch.equal(caches[0].latents(everything, flips), caches[1].latents(everything, flips))
    assert torch.equal(caches[0].statistics().var, caches[1].statistics().var)
    first, second = (checkpoint.load(out / "train" / "checkpoint.pt") for out in (one, two))
    for part in ("model", "averaged"):  # sums of fp32 gradients in another order
        for key, tensor in first[part].items():
            torch.testing.assert_close(tensor, second[part][key], rtol=1e-3, atol=1e-5)
    logs = [(out / "train" / "log.jsonl").read_text().count("frechet_distance") for out in (one, two)]
    assert logs == [2, 2]  # after step 2 and at the end, written once
    for split, sizes in (("train", [10, 10, 4]), ("val", [5])):
        files = [sorted((out / "decoder" / split).iterdir()) for out in (one, two)]
        for size, mine, theirs in zip(sizes, *files, strict=True):
            held, other = checkpoint.load_tensors(mine), checkpoint.load_tensors(theirs)
            assert len(held["images"]) == size
            assert all(torch.equal(tensor, other[name]) for name, tensor in held.items())
    first, second = (checkpoint.load(out / "decoder" / "checkpoint.pt") for out in (one, two))
    live = [checkpoint.load(out / "live" / "checkpoint.pt")["decoder"] for out in (one, two)]
    states = [
        tuple(live),
        (first["decoder"], second["decoder"]),
        (first["adversary"]["heads"], second["adversary"]["heads"]),
    ]
    for mine, theirs in states:
        for key, tensor in mine.items():
            if key.endswith(".0.bias"):  # before a norm that takes it away: its gradient is rounding alone
                continue
            torch.testing.assert_close(tensor, theirs[key], rtol=1e-3, atol=1e-5)
    first, second = (np.load(out / "decode" / "decoded.npz") for out in (one, two))
    assert len(first["arr_0"]) == 22
    assert all(np.array_equal(first[key], second[key]) for key in ("arr_0", "labels"))
    images = [np.load(out / "generate" / "samples.npz")["arr_0"] for out in (one, two)]
    assert np.array_equal(images[0], images[1])
    for name in ("reconstructions", "originals"):  # three batches and two
        first, second = (np.load(out / "reconstruct" / f"{name}.npz") for out in (one, two))
        assert len(first["arr_0"]) == 19
        assert all(np.array_equal(first[key], second[key]) for key in ("arr_0", "labels"))
    swept = [json.loads((out / "sweep" / "sweep.json").read_text()) for out in (one, two)]
    assert swept[0] == pytest.approx(swept[1], rel=1e-6) and len(swept[0]) == 2
    best = [json.loads((out / "sweep" / "best.json").read_text()) for out in (one, two)]
    assert best[0] == best[1]


def test_rows_are_shared_evenly_or_refused():
    parts = [Ranks(rank, 4, "cpu").part(12) for rank in range(4)]
    assert [list(range(12))[part] for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    with pytest.raises(ValueError, match="multiple of the 4 processes"):
        Ranks(0, 4, "cpu").part(10)
