"""OpenVision 3's encoder and its training step: `python bench/encoder.py` prints a table and writes
results/bench/encoder.json (on a GPU encoder.<gpu>.json, at larger sizes, with the share of its peak reached).

Rows: forward/<tower>/<precision> against open_clip 3.3's VisionTransformer on the same weights (its conv1
made for 16 channels: the official class); train_step/<part> of ViT-B with FLUX.1's VAE (random weights);
pixel_loss/<choice>: what decoding a part costs, and what it does to the gradient's noise on the demo's
encoder; memory/..., and contrastive_memory against the plain loss; stream/...: what one reader gives,
what a batch costs the main process, and a step while a slow file system is read ahead or on demand, with the
share of it that waits (`python bench/encoder.py stream` prints these alone).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from _data_path import data_path_rows
from _encoder_step import Sizes, bf16, noise_rows, step_rows
from _slow_disk import slow_disk_rows
from _table import Row, make_row, peak_bytes, publish, seconds, show
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoder.models.losses import contrastive
from encoder.models.shapes import VAE_DOWNSAMPLE, ViTShape
from encoder.models.vit import ViTEncoder

TOWERS = {"base": {}, "large": {"width": 1024, "layers": 24}}
CPU = Sizes(device="cpu", towers=("base",), forward_batch=2, step_px=64, step_batch=2, repeats=3)
GPU = Sizes(device="cuda", towers=("base", "large"), forward_batch=64, step_px=256, step_batch=32, repeats=10)


def forward_rows(sizes: Sizes) -> list[Row]:
    """Frozen forward passes at 256 px: ours and open_clip's in the same precision, ours compiled on a GPU."""
    from open_clip.transformer import VisionTransformer

    rows = []
    for tower in sizes.towers:
        shape = ViTShape(image_size=32, **TOWERS[tower])
        ours = ViTEncoder(shape).to(sizes.device).eval()
        theirs = VisionTransformer(
            image_size=32, patch_size=2, width=shape.width, layers=shape.layers, heads=shape.width // 64,
            mlp_ratio=4, no_ln_pre=True, pool_type="avg", final_ln_after_pool=True, output_tokens=True,
            output_dim=shape.embed_dim, norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        )  # fmt: skip
        theirs.conv1 = nn.Conv2d(16, shape.width, 2, 2, bias=False)
        theirs.load_state_dict(ours.state_dict())
        theirs = theirs.to(sizes.device).eval()
        z_vae = torch.randn(sizes.forward_batch, 16, 32, 32, device=sizes.device)
        with torch.no_grad():
            torch.testing.assert_close(ours(z_vae).z_u, theirs(z_vae)[1], atol=1e-3, rtol=1e-3)
        fast = torch.compile(ours) if sizes.device == "cuda" else ours
        for precision in ("fp32", "bf16"):
            context = bf16(sizes.device) if precision == "bf16" else contextlib.nullcontext()
            works = {"ours": partial(fast, z_vae), "theirs": partial(theirs, z_vae)}
            with torch.no_grad(), context:
                times = seconds(works, repeats=sizes.repeats, warmup=1, clock=sizes.clock)
            rates = {name: sizes.forward_batch / value for name, value in times.items()}
            note = "baseline: open_clip 3.3 VisionTransformer, same weights and precision"
            name = f"forward/{tower}-256px/{precision}"
            rows.append(make_row(name, "pictures/s", rates["ours"], rates["theirs"], note))
    return rows


def memory_rows(sizes: Sizes) -> list[Row]:
    """Activations of a ViT-B step with and without checkpointing; the contrastive loss at 8192 x 768."""
    encoder = ViTEncoder(ViTShape(image_size=sizes.step_px // VAE_DOWNSAMPLE)).to(sizes.device)
    z_vae = torch.randn(
        2 * sizes.step_batch,
        16,
        sizes.step_px // VAE_DOWNSAMPLE,
        sizes.step_px // VAE_DOWNSAMPLE,
        device=sizes.device,
    )

    def tokens(block: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], None]:
        def work() -> None:
            x = encoder.conv1(z_vae).flatten(2).mT
            for each in encoder.transformer.resblocks:
                x = block(each, x)
            x.sum().backward()

        return work

    plain = peak_bytes(tokens(lambda block, x: block(x)))
    kept = peak_bytes(tokens(lambda block, x: checkpoint(block, x, use_reentrant=False)))
    mib = 2**20
    note = f"baseline: activations kept; ViT-B, {len(z_vae)} pictures of {sizes.step_px} px, fp32"
    row = make_row("memory/checkpointing", "MiB", kept / mib, plain / mib, note, higher_is_better=False)

    features = torch.randn(2, 8192, 768, device=sizes.device)
    images, texts = (each.clone().requires_grad_() for each in features)
    scale = torch.tensor(14.3, device=sizes.device)

    def naive() -> None:
        logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
        labels = torch.arange(len(logits), device=sizes.device)
        (0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))).backward()

    ours = peak_bytes(lambda: contrastive(images, texts, scale, chunk_size=128).backward())
    sides = (ours / mib, peak_bytes(naive) / mib)
    note = "baseline: the plain form; batch 8192, width 768, blocks of 128 rows, forward and backward"
    return [row, make_row("contrastive_memory", "MiB", *sides, note, higher_is_better=False)]


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    sizes = GPU if torch.cuda.is_available() else CPU
    if sys.argv[1:] == ["stream"]:
        show([*data_path_rows(), *slow_disk_rows()])
        sys.exit()
    table = [*forward_rows(sizes), *step_rows(sizes), *noise_rows(sizes), *memory_rows(sizes)]
    table += [*data_path_rows(), *slow_disk_rows()]
    publish("encoder", table, setting=f"{sizes.clock.__name__}, torch {torch.__version__}")
