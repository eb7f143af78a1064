"""Stage: do the two branches pull the encoder the same way? The cosine of their gradients, layer by layer.

`python -m encoder.synergy <config.yaml> <out_dir>` reads a folder that encoder.train wrote (finished or not)
and writes synergy.json: a row for each layer and one for the whole encoder. The paper argues synergy from
loss curves (arXiv:2601.15369v2, Figs. 4 and 5); this measures it at one point of the training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from encoder import checkpoint
from encoder.config import ROOT, load
from encoder.device import require_device
from encoder.held_out import load_samples
from encoder.model import (
    OpenVision3,
    reconstruction_loss,
    reconstruction_terms,
    understanding_loss,
    understanding_terms,
)
from encoder.options import SynergyConfig, TrainConfig
from encoder.perceptual import PerceptualLoss
from encoder.stage import main, progress, write_json
from encoder.vae import load_vae
from encoder.vit import ViTEncoder

WHOLE = "encoder"  # the row over all layers


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


def load_trained(folder: Path) -> tuple[TrainConfig, OpenVision3, int]:
    """The config, the model with all its towers, and the step of an encoder.train folder's checkpoint.

    Raises: FileNotFoundError without config.yaml or checkpoint.pt; ValueError if it trained CLIP.
    """
    config = load(TrainConfig, folder / "config.yaml")
    if config.openvision3 is None:
        raise ValueError(
            f"{folder} trained the CLIP baseline, which has one branch: name an OpenVision 3 run"
        )
    state = checkpoint.load(folder / "checkpoint.pt")
    model = OpenVision3(config.openvision3)
    model.load_state_dict(state["model"])
    return config, model.eval(), state["step"]


def run(config: SynergyConfig, out_dir: Path) -> dict:
    """Measure, write synergy.json, and return the whole encoder's row."""
    torch.set_flush_denormal(True)
    trained, model, step = load_trained(ROOT / config.run)
    weights, device = trained.objective, require_device(config.device)
    model, vae = model.to(device), load_vae(trained.vae, device=device)
    is_perceptual = weights.perceptual_weight > 0 and step >= trained.perceptual_from * trained.num_steps
    perceptual = PerceptualLoss(trained.perceptual).to(device) if is_perceptual else None
    limit = config.num_batches * config.batch_size
    samples, _ = load_samples(trained, config.split, limit)
    if len(samples) < limit:
        raise ValueError(f"{trained.data}/{config.split} has {len(samples)} samples, {limit} were asked for")

    layers = encoder_layers(model.encoder)
    parameters = [parameter for layer in layers.values() for parameter in layer]
    pairs = {name: GradientPair() for name in (*layers, WHOLE)}
    for index, rows in enumerate(torch.arange(limit).split(config.batch_size)):
        batch = samples.batch(
            rows,
            checkpoint.step_generator(config.seed, index, "sentence"),
            num_pixels=config.batch_size,
            with_sentence=trained.contrastive_texts == "alt_and_sentence",
        ).to(device)
        batch = replace(batch, z_vae=vae.encode(batch.pixels))
        output = model.encoder(batch.z_vae)
        noise = checkpoint.step_generator(config.seed, index, "noise")
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
        pairs[WHOLE].add(*both)
        progress(out_dir, index + 1, config.num_batches, "batches")

    omegas = (weights.omega_rec, weights.omega_und)
    table = [asdict(pair.row(name, config.num_batches, omegas)) for name, pair in pairs.items()]
    about = {"run": config.run, "step": step, "split": config.split, "num_samples": limit}
    write_json(out_dir / "synergy.json", {**about, "batch_size": config.batch_size, "rows": table})
    return {**about, **table[-1]}


if __name__ == "__main__":
    main(SynergyConfig, run)
