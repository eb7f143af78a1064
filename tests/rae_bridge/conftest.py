"""A tiny frozen encoder, tiny pictures, and one thread: on tensors this small a second one only waits."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from encoder.frozen import FrozenEncoder
from encoder.runtime.stage import write_json
from rae_bridge.codec import load_for_generation, origin_of
from rae_bridge.config import DiTConfig
from rae_bridge.dit import build_dit
from rae_bridge.latents import LatentStatistics

torch.set_num_threads(1)


class PatchEncoder(FrozenEncoder):
    """8 px pictures as 2 x 2 tokens: each token is its patch of 4 x 4 pixels under a fixed rotation."""

    def __init__(self, *, features=None, vae=None):
        super().__init__(name="patches", image_size=8, grid=(2, 2), width=48, features=features)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("rotation", torch.linalg.qr(torch.randn(48, 48, generator=generator))[0])

    def _tokens(self, inputs):
        patches = rearrange(inputs, "b c (h p) (w q) -> b (h w) (c p q)", p=4, q=4)
        return patches @ self.rotation


class InvertibleEncoder(PatchEncoder):
    """The same with the rotation's inverse as its own decoder."""

    can_decode = True

    def _decode(self, z_u):
        return rearrange(z_u @ self.rotation.T, "b (h w) (c p q) -> b c (h p) (w q)", h=2, p=4, q=4)


@pytest.fixture
def blind_to_pixels() -> str:
    """Source of an encoder that cannot decode."""
    return f"module:{__name__}:PatchEncoder"


@pytest.fixture
def invertible() -> str:
    """Source of an encoder that can."""
    return f"module:{__name__}:InvertibleEncoder"


@pytest.fixture
def write_model():
    """A function that writes a weights folder as `rae_bridge.train` leaves it, with random weights."""
    return write_random_model


def write_random_model(folder, encoder_source, seed=0, class_dropout_prob=0.1):
    """A weights folder as `rae_bridge.train` leaves it, with random weights."""
    size = {"hidden_size": (16, 16), "depth": (1, 1), "num_heads": (2, 2), "input_size": 2, "in_channels": 48}
    torch.manual_seed(seed)
    model = build_dit(DiTConfig(**size, num_classes=3, class_dropout_prob=class_dropout_prob))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(folder)
    LatentStatistics(torch.full((48, 2, 2), 0.1), torch.full((48, 2, 2), 0.2)).save(
        folder / "latent_stats.pt"
    )
    write_json(folder / "flow.json", {"shift": 2.0})
    write_json(folder / "tokens.json", origin_of(load_for_generation(encoder_source)))
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of shards: 24 train and 5 val pictures of 8 px, each of two flat halves, in 3 classes."""
    for seed, (split, num) in enumerate((("train", 24), ("val", 5))):
        write_shard(tmp_path / "pictures" / split, num, seed)
    return tmp_path / "pictures"


@pytest.fixture
def write_pictures():
    """A function (folder, num, seed) that writes a shard of such pictures."""
    return write_shard


def write_shard(folder: Path, num: int, seed: int) -> None:
    """Pictures in img2dataset's layout."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    with tarfile.open(folder / "00000.tar", "w") as shard:
        for i in range(num):
            pixels = generator.integers(0, 256, (1, 2, 3), dtype=np.uint8).repeat(8, 0).repeat(4, 1)
            picture = io.BytesIO()
            Image.fromarray(pixels).save(picture, "png")
            record = json.dumps({"key": f"{i:05d}", "label": i % 3}).encode()
            for suffix, content in (("png", picture.getvalue()), ("txt", b"halves"), ("json", record)):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
