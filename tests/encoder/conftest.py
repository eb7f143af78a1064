"""Scenes in four shards, a VAE and settings for an encoder so small that trainings run in seconds."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from encoder.data.options import ScenesConfig
from encoder.data.scenes import write
from encoder.models.shapes import VaeShape
from encoder.runtime.config import load
from encoder.training import train_vae
from encoder.training.options import TrainConfig

SMALL = {"width": 16, "layers": 1, "head_width": 16}
TEXT = {"context_length": 8, **SMALL}
UNUSED = ("num_test", "num_llava_images", "num_text", "num_seed_questions", "num_pope_pairs")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """Scenes with one broken picture in 96, four shards; a VAE of random weights; latents of the scenes."""
    root = tmp_path_factory.mktemp("parts")
    scenes = {"image_size": 64, "num_train": 96, "num_val": 16, "shard_size": 24, **dict.fromkeys(UNUSED, 0)}
    (root / "scenes").mkdir()
    write.run(load(ScenesConfig, scenes), root / "scenes")
    torch.manual_seed(0)
    shape = VaeShape(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)
    train_vae.build_codec(shape).save_pretrained(root / "vae")
    break_picture(sorted((root / "scenes/train").glob("*.tar"))[1], number=5)
    return root


def break_picture(shard, number):
    """Overwrite the middle of one picture of a tar file in place."""
    with tarfile.open(shard) as tar:
        member = [each for each in tar.getmembers() if each.name.endswith((".png", ".jpg", ".webp"))][number]
    with shard.open("r+b") as file:
        file.seek(member.offset_data)
        file.write(b"broken bytes " * 8)


@pytest.fixture
def small_config(small_data) -> Callable[..., TrainConfig]:
    """small_config(**changes): six steps of eight samples, with what changes."""

    def config(**changes) -> TrainConfig:
        stream = {"sources": [{"shards": str(small_data / "scenes/train")}], "image_size": 64, "num_lanes": 4,
                  "shuffle_window": 10}  # fmt: skip
        towers = {
            "encoder": {"image_size": 8, "embed_dim": 16, **SMALL}, "decoder": {"in_width": 16, **SMALL},
            "text": TEXT, "captioner": {**TEXT, "context_length": 20},
        }  # fmt: skip
        fixed = {
            "data": str(small_data / "scenes"), "vae": str(small_data / "vae"), "stream": stream,
            "openvision3": towers, "num_steps": 6, "batch_size": 8, "optim": {"lr": 2e-3, "warmup_steps": 2},
            "eval_limit": 8, "log_steps": 1, "checkpoint_steps": 2, "device": "cpu",
        }  # fmt: skip
        changes["stream"] = stream | changes.get("stream", {})
        return load(TrainConfig, {**fixed, **changes})

    return config


@pytest.fixture
def folders(tmp_path) -> Callable[..., list[Path]]:
    """folders(*names): new folders of these names."""

    def make(*names: str) -> list[Path]:
        for name in names:
            (tmp_path / name).mkdir()
        return [tmp_path / name for name in names]

    return make


@pytest.fixture
def curve() -> Callable[[Path], dict[int, dict]]:
    """curve(folder): the last row that the log has of each step, without the speed."""

    def read(folder: Path) -> dict[int, dict]:
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "loss" in row]
        return {row["steps"]: {k: v for k, v in row.items() if k != "samples_per_second"} for row in rows}

    return read
