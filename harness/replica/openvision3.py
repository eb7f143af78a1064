"""OpenVision 3's releases: open_clip_config.json and open_clip_pytorch_model.bin, tower alone, fp32.

Source: reference sheet "Official OpenVision repository", Sec. 1.2 (config: image_size is the side of the
latents, 28 for 224 px and 32 for 256 px), Sec. 1.3 (names and shapes, in the file's order; no conv bias),
Sec. 1.5 (positions: the sin-cos table of the JAX code, its first row zero); hub collection "OpenVision 3".
No published file was seen: what the sheet infers is inferred here too (pool_type, final_ln_after_pool).
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from encoder.runtime.stage import write_json
from harness.replica.config import ReplicaConfig
from harness.replica.mark import README, readme

FOLDER = "openvision3"
# folder -> side of the latents, width, layers, heads' width, width of the pooled output
RELEASES = {
    "openvision3-vit-base-patch2-28": (28, 48, 2, 16, 32),
    "openvision3-vit-base-patch2-32": (32, 48, 2, 16, 32),
    "openvision3-vit-large-patch2-32": (32, 64, 3, 16, 48),
}
CHANNELS, PATCH_SIZE = 16, 2


def write(root: Path, config: ReplicaConfig) -> str:
    """The three releases, at their own grids."""
    for name, (side, width, layers, head_width, embed_dim) in RELEASES.items():
        folder = root / FOLDER / name
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{config.seed}/{name}".encode()))
        state = dict(_weights(generator, side // PATCH_SIZE, width, layers, embed_dim))
        torch.save(state, folder / "open_clip_pytorch_model.bin")
        vision = {
            "image_size": side, "layers": layers, "width": width, "head_width": head_width,
            "patch_size": PATCH_SIZE, "in_channels": CHANNELS, "no_ln_pre": True, "pool_type": "avg",
            "final_ln_after_pool": True, "norm_kwargs": {"eps": 1e-06}, "output_tokens": True,
        }  # fmt: skip
        model = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": {}}
        write_json(folder / "open_clip_config.json", {"model_cfg": model, "preprocess_cfg": {}})
        (folder / README).write_text(readme(name, f"hub: UCSC-VLAA/{name}"))
    return ", ".join(RELEASES)


def _weights(
    generator: torch.Generator, grid: int, width: int, layers: int, embed_dim: int
) -> Iterator[tuple[str, Tensor]]:
    def matrix(*shape: int, std: float = 0.02) -> Tensor:
        return std * torch.randn(shape, generator=generator)

    yield "class_embedding", matrix(width)
    yield "positional_embedding", positions(grid, width)
    yield "proj", matrix(width, embed_dim, std=width**-0.5)
    yield "conv1.weight", matrix(width, CHANNELS, PATCH_SIZE, PATCH_SIZE, std=0.125)
    for layer in range(layers):
        prefix = f"transformer.resblocks.{layer}"
        yield from _norm(f"{prefix}.ln_1", width)
        yield f"{prefix}.attn.in_proj_weight", matrix(3 * width, width, std=width**-0.5)
        yield f"{prefix}.attn.in_proj_bias", torch.zeros(3 * width)
        yield f"{prefix}.attn.out_proj.weight", matrix(width, width, std=width**-0.5)
        yield f"{prefix}.attn.out_proj.bias", torch.zeros(width)
        yield from _norm(f"{prefix}.ln_2", width)
        yield f"{prefix}.mlp.c_fc.weight", matrix(4 * width, width, std=width**-0.5)
        yield f"{prefix}.mlp.c_fc.bias", torch.zeros(4 * width)
        yield f"{prefix}.mlp.c_proj.weight", matrix(width, 4 * width, std=0.5 * width**-0.5)
        yield f"{prefix}.mlp.c_proj.bias", torch.zeros(width)
    yield from _norm("ln_post", width)


def _norm(name: str, width: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", torch.ones(width)
    yield f"{name}.bias", torch.zeros(width)


def positions(grid: int, width: int) -> Tensor:
    """(1 + grid * grid, width): zeros, then [sin(x w), cos(x w), sin(y w), cos(y w)] row by row, with
    w_i = 10000^(-i / (width/4 - 1))."""
    quarter = width // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / (quarter - 1))
    y, x = torch.meshgrid(*2 * [torch.arange(grid, dtype=torch.float64)], indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (x, y)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table]).float()
