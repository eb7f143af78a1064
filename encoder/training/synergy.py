"""Stage: do the two branches pull the encoder the same way? The cosine of their gradients, layer by layer.

`python -m encoder.synergy <config.yaml> <out_dir>` reads a folder that encoder.train wrote (finished or not)
and writes synergy.json: at each of its snapshots and at its checkpoint, a row for each layer and one for the
whole encoder. The paper argues synergy from loss curves (arXiv:2601.15369v2, Figs. 4 and 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from encoder.data.batch import Batch
from encoder.models.openvision3 import OpenVision3
from encoder.models.perceptual import PerceptualLoss
from encoder.models.vae import FrozenVAE, load_vae
from encoder.models.vit import ViTEncoder
from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT, load
from encoder.runtime.device import require_device
from encoder.runtime.stage import progress, write_json
from encoder.training.held_out import load_samples
from encoder.training.objective import (
    reconstruction_loss,
    reconstruction_terms,
    understanding_loss,
    understanding_terms,
)
from encoder.training.options import ObjectiveConfig, SynergyConfig, TrainConfig
from encoder.training.run import CHECKPOINT, SNAPSHOTS

ALL_LAYERS = "encoder"  # name of the row over all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class SynergyRow:
    """One layer. cosine: between the two losses' gradients, each summed over all batches. batch_cosine: the
    mean over batches of the same cosine within a batch, and its standard error; noise pulls it to 0.
    Norms: of the mean gradients, each times its branch's omega."""

    layer: str
    num_parameters: int
    cosine: float | None  # None where a branch has no gradient
    batch_cosine: float | None
    batch_cosine_stderr: float | None
    reconstruction_norm: float
    understanding_norm: float


def encoder_layers(encoder: ViTEncoder) -> dict[str, list[nn.Parameter]]:
    """The encoder's parameters by layer: `embed`, `block_00`, ... The contrastive head (final norm and
    projection) is left out: reconstruction does not pass through it."""
    layers = {"embed": [encoder.conv1.weight, encoder.class_embedding]}
    for index, block in enumerate(encoder.transformer.resblocks):
        layers[f"block_{index:02}"] = list(block.parameters())
    return layers


class GradientPair:
    """Running dot products of two gradients over one layer, and their sums."""

    def __init__(self) -> None:
        self.first: Tensor | None = None
        self.second: Tensor | None = None
        self.cosines: list[float] = []

    def add(self, first: Iterable[Tensor], second: Iterable[Tensor]) -> None:
        """Count one batch's gradients of both losses, each a list of the layer's tensors."""
        one, two = (torch.cat([tensor.flatten().float() for tensor in each]) for each in (first, second))
        cosine = cosine_of(one, two)
        if cosine is not None:
            self.cosines.append(cosine)
        self.first = one if self.first is None else self.first + one
        self.second = two if self.second is None else self.second + two

    def row(self, layer: str, num_batches: int, omegas: tuple[float, float]) -> SynergyRow:
        """The layer's row; `omegas` weigh the norms of the first and the second gradient."""
        values = torch.tensor(self.cosines, dtype=torch.float64)
        first, second = (
            (gradient.double().norm() / num_batches).item() * omega
            for gradient, omega in zip((self.first, self.second), omegas, strict=True)
        )
        return SynergyRow(
            layer=layer,
            num_parameters=self.first.numel(),
            cosine=cosine_of(self.first, self.second),
            batch_cosine=values.mean().item() if len(values) else None,
            batch_cosine_stderr=(values.std() / len(values) ** 0.5).item() if len(values) > 1 else None,
            reconstruction_norm=first,
            understanding_norm=second,
        )


def cosine_of(first: Tensor, second: Tensor) -> float | None:
    """The cosine of two flat tensors, in float64; None if one is zero."""
    first, second = first.double(), second.double()
    norms = (first.norm() * second.norm()).item()
    return (first @ second).item() / norms if norms else None


def load_trained(folder: Path) -> tuple[TrainConfig, dict[int, Path]]:
    """The config of an encoder.train folder, and the files of its towers by step: snapshots and checkpoint.

    Raises: FileNotFoundError without config.yaml or checkpoint.pt; ValueError if it trained CLIP.
    """
    config = load(TrainConfig, folder / "config.yaml")
    if config.openvision3 is None:
        raise ValueError(
            f"{folder} trained the CLIP baseline, which has one branch: name an OpenVision 3 run"
        )
    files = [*(folder / SNAPSHOTS).glob("step_*.pt"), folder / CHECKPOINT]
    return config, dict(sorted((checkpoint.load(file)["step"], file) for file in files))


def load_batches(config: SynergyConfig, trained: TrainConfig, vae: FrozenVAE) -> list[Batch]:
    """The first num_batches x batch_size held-out samples, whole pictures and their latents, on vae's device.

    Raises: ValueError if there are fewer.
    """
    limit = config.num_batches * config.batch_size
    samples, _ = load_samples(trained, config.split, limit)
    if len(samples) < limit:
        raise ValueError(f"{trained.data}/{config.split} has {len(samples)} samples, {limit} were asked for")
    batches, device = [], require_device(config.device)
    for index, rows in enumerate(torch.arange(limit).split(config.batch_size)):
        batch = samples.batch(
            rows,
            checkpoint.step_generator(config.seed, index, "sentence"),
            num_pixels=config.batch_size,
            with_sentence=trained.contrastive_texts == "alt_and_sentence",
        ).to(device)
        batches.append(replace(batch, z_vae=vae.encode(batch.pixels)))
    return batches


def measure(
    model: OpenVision3,
    batches: Sequence[Batch],
    vae: FrozenVAE,
    perceptual: nn.Module | None,
    weights: ObjectiveConfig,
    seed: int,
) -> list[SynergyRow]:
    """A row for each layer and one for the encoder; the noise of a batch depends on (seed, its place)."""
    layers = encoder_layers(model.encoder)
    parameters = [parameter for layer in layers.values() for parameter in layer]
    pairs = {name: GradientPair() for name in (*layers, ALL_LAYERS)}
    for index, batch in enumerate(batches):
        output = model.encoder(batch.z_vae)
        noise = checkpoint.step_generator(seed, index, "noise")
        terms = reconstruction_terms(model, output.z_u, batch, vae, perceptual, weights.tau, noise)
        terms |= understanding_terms(model, output.z_u, output.pooled, batch)
        both = [
            torch.autograd.grad(loss, parameters, retain_graph=True)
            for loss in (reconstruction_loss(terms, weights), understanding_loss(terms, weights))
        ]
        start = 0
        for name, layer in layers.items():
            end = start + len(layer)
            pairs[name].add(both[0][start:end], both[1][start:end])
            start = end
        pairs[ALL_LAYERS].add(*both)
    omegas = (weights.omega_rec, weights.omega_und)
    return [pair.row(name, len(batches), omegas) for name, pair in pairs.items()]


def run(config: SynergyConfig, out_dir: Path) -> dict:
    """Measure, write synergy.json, and return the whole encoder's row at the last step."""
    torch.set_flush_denormal(True)
    trained, files = load_trained(ROOT / config.run)
    weights, device = trained.objective, require_device(config.device)
    vae = load_vae(trained.vae, device=device)
    batches = load_batches(config, trained, vae)
    perceptual = (
        PerceptualLoss(trained.perceptual, trained.lpips_trunk).to(device)
        if weights.perceptual_weight > 0
        else None
    )
    model = OpenVision3(trained.openvision3).to(device).eval()

    points = []
    for step, file in files.items():
        model.load_state_dict(checkpoint.load(file)["model"])
        is_perceptual = step >= trained.perceptual_from * trained.num_steps
        rows = measure(model, batches, vae, perceptual if is_perceptual else None, weights, config.seed)
        points.append({"step": step, "rows": [asdict(row) for row in rows]})
        progress(out_dir, len(points), len(files), "points of the training")

    about = {"run": config.run, "split": config.split, "num_samples": config.num_batches * config.batch_size}
    write_json(out_dir / "synergy.json", {**about, "batch_size": config.batch_size, "points": points})
    return {**about, "step": step, **points[-1]["rows"][-1]}
