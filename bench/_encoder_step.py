"""The training step's part of bench/encoder.py: its time by part, MFU, and pixel losses on less than all."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from _table import Row, make_row, seconds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from encoder.data.batch import Batch, to_pixels
from encoder.data.scenes.render import make_scene, render
from encoder.models.openvision3 import OpenVision3
from encoder.models.shapes import (
    VAE_DOWNSAMPLE,
    CaptionerShape,
    DecoderShape,
    OpenVision3Shape,
    TextShape,
    VaeShape,
    ViTShape,
)
from encoder.models.vae import FrozenVAE, load_vae
from encoder.models.vit import ViTEncoder
from encoder.training.objective import (
    objective,
    reconstruction_loss,
    reconstruction_terms,
    understanding_terms,
)
from encoder.training.options import ObjectiveConfig
from encoder.training.train_vae import build_codec

FLUX = VaeShape(block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32)
VOCAB_SIZE = 30_522  # of BERT
# Dense bf16 peak, FLOP/s. Source: NVIDIA's data sheets
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


@dataclass(frozen=True)
class Sizes:
    """What this machine is asked for."""

    device: str
    towers: tuple[str, ...]
    forward_batch: int  # pictures of 256 px
    step_px: int
    step_batch: int
    repeats: int

    @property
    def clock(self) -> Callable[[], float]:
        """Processor time on a CPU, which others may use as well; on a GPU the wall's."""
        return time.process_time if self.device == "cpu" else time.perf_counter


def bf16(device: str) -> contextlib.AbstractContextManager:
    return torch.autocast(device, torch.bfloat16)


def build_step(sizes: Sizes, folder: Path) -> tuple[OpenVision3, FrozenVAE, Batch]:
    """ViT-B with all its towers, FLUX.1's VAE and a batch, all of them random."""
    vocab = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]"]
    vocab += [f"w{index}" for index in range(VOCAB_SIZE - len(vocab))]
    (folder / "vocab.txt").write_text("\n".join(vocab))
    model = OpenVision3(
        OpenVision3Shape(
            encoder=ViTShape(image_size=sizes.step_px // VAE_DOWNSAMPLE),
            decoder=DecoderShape(),
            text=TextShape(tokenizer=str(folder)),
            captioner=CaptionerShape(),
        )
    ).to(sizes.device)
    vae = FrozenVAE(build_codec(FLUX), name="flux").to(sizes.device)
    rows, length = sizes.step_batch, 80
    batch = Batch(
        pixels=torch.rand(rows, 3, sizes.step_px, sizes.step_px),
        z_vae=None,
        text_ids=tuple(torch.randint(5, VOCAB_SIZE, (2, rows, length))),
        caption_ids=torch.randint(5, VOCAB_SIZE, (rows, 128)),
        pad_id=0,
    ).to(sizes.device)
    return model, vae, replace(batch, z_vae=vae.encode(batch.pixels))


def step_rows(sizes: Sizes) -> list[Row]:
    """Milliseconds a picture of each part, forward and backward, and of the whole step by pixel choice."""
    with tempfile.TemporaryDirectory() as folder:
        model, vae, batch = build_step(sizes, Path(folder))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    with torch.no_grad():
        output = model.encoder(batch.z_vae)
    z_u, pooled = output.z_u.requires_grad_(), output.pooled.requires_grad_()
    z_vae_hat = batch.z_vae.clone().requires_grad_()

    def whole(fraction: float = 1.0, crop: int | None = None) -> None:
        part = replace(batch, pixels=batch.pixels[: max(1, int(len(batch.pixels) * fraction))])
        with bf16(sizes.device):
            seen = model.encoder(part.z_vae)
            generator = torch.Generator(sizes.device).manual_seed(0)
            terms = reconstruction_terms(model, seen.z_u, part, vae, None, 0.8, generator, crop)
            terms |= understanding_terms(model, seen.z_u, seen.pooled, part)
            loss = objective(terms, ObjectiveConfig())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def learn(forward: Callable[[], Tensor]) -> Callable[[], None]:
        def work() -> None:
            with bf16(sizes.device):
                loss = forward()
            loss.float().backward()

        return work

    works = {
        "vae_encode": lambda: vae.encode(batch.pixels),
        "encoder": learn(lambda: model.encoder(batch.z_vae).z_u.sum()),
        "vit_decoder": learn(lambda: model.decoder(z_u).sum()),
        "vae_decode": learn(lambda: vae.decode(z_vae_hat).sum()),
        "text": learn(lambda: sum(understanding_terms(model, z_u, pooled, batch).values())),
        "optimiser": optimiser.step,
        "whole": whole,
        "half_of_batch": lambda: whole(0.5),
        "half_side_crop": lambda: whole(1.0, sizes.step_px // 16),
    }
    with bf16(sizes.device) if sizes.device == "cuda" else contextlib.nullcontext():
        times = seconds(works, repeats=sizes.repeats, clock=sizes.clock)
    unit = f"ms a picture of {sizes.step_px} px"
    per_picture = {name: 1000 * value / sizes.step_batch for name, value in times.items()}
    note = "no baseline: the authors released no training code; ViT-B, FLUX.1's VAE, bf16, batch "
    note += f"{sizes.step_batch}; forward and backward"
    parts = list(works)[:7]
    rows = [make_row(f"train_step/{name}", unit, per_picture[name], None, note) for name in parts]
    for name in ("half_of_batch", "half_side_crop"):
        baseline = "baseline: every picture decoded whole; see pixel_loss_noise for the price"
        sides = (per_picture[name], per_picture["whole"])
        rows.append(make_row(f"pixel_loss/{name}", unit, *sides, baseline, higher_is_better=False))
    if sizes.device == "cuda":
        rows.append(mfu_row(model.encoder, batch.z_vae, sizes))
    return rows


def mfu_row(encoder: ViTEncoder, z_vae: Tensor, sizes: Sizes) -> Row:
    """Share of the GPU's bf16 peak that the compiled tower's forward and backward reach."""
    compiled = torch.compile(encoder)

    def work() -> None:
        with bf16(sizes.device):
            compiled(z_vae).z_u.sum().backward()

    with FlopCounterMode(display=False) as counter, bf16(sizes.device):
        encoder(z_vae).z_u.sum().backward()
    rate = counter.get_total_flops() / seconds({"ours": work}, repeats=sizes.repeats, warmup=3)["ours"]
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    if peak is None:
        return make_row("mfu/base", "TFLOP/s", rate / 1e12, None, f"no baseline: peak of {name} not listed")
    return make_row("mfu/base", "% of peak", 100 * rate / peak, 50.0, "baseline: the aim, 50 %")


def noise_rows(sizes: Sizes, num_batches: int = 12, batch_size: int = 16) -> list[Row]:
    """Noise of the reconstruction gradient on the demo's encoder, with pixels decoded of a part only.

    The squared distance of a batch's gradient from the mean of the other batches' whole ones: it counts both
    the noise that the choice adds and the bias that a crop's edges bring.
    """
    model = OpenVision3.from_pretrained("weights/demo/ov3").to(sizes.device)
    vae = load_vae("weights/demo/vae", device=sizes.device)
    parameters = list(model.encoder.transformer.parameters())
    choices = {"whole": (1.0, None), "half_of_batch": (0.5, None), "half_side_crop": (1.0, 4)}
    gradients: dict[str, list[Tensor]] = {name: [] for name in choices}
    for index in range(num_batches):
        scenes = range(index * batch_size, (index + 1) * batch_size)
        images = np.stack([render(make_scene(0, i, "val"), 64) for i in scenes])
        pixels = to_pixels(torch.from_numpy(images)).to(sizes.device)
        z_vae = vae.encode(pixels)
        for name, (fraction, crop) in choices.items():
            batch = Batch(pixels[: int(batch_size * fraction)], z_vae, (), torch.empty(0), 0)
            generator = torch.Generator(sizes.device).manual_seed(index)
            z_u = model.encoder.tokens(z_vae)
            terms = reconstruction_terms(model, z_u, batch, vae, None, 0.8, generator, crop)
            grads = torch.autograd.grad(reconstruction_loss(terms, ObjectiveConfig()), parameters)
            gradients[name].append(torch.cat([each.flatten() for each in grads]).double())
    whole = torch.stack(gradients["whole"])
    others = (whole.sum(dim=0) - whole) / (num_batches - 1)  # K P
    errors = {
        name: (torch.stack(each) - others).square().sum(dim=1).mean() for name, each in gradients.items()
    }
    note = "baseline: every picture decoded whole; demo encoder, L_rec, batches of 16 pictures of Scenes"
    return [
        make_row(
            f"pixel_loss_noise/{name}", "squared error of the gradient", errors[name].item(),
            errors["whole"].item(), note, higher_is_better=False,
        )
        for name in ("half_of_batch", "half_side_crop")
    ]  # fmt: skip
