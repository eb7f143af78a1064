"""What a judge sees in pictures: features of a frozen network, taken batch by batch.

Letters: N pictures, D feature width, K classes of its classifier, S size of its spatial features (sFID's).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from encoder.frozen import FrozenEncoder
from encoder.load import load_encoder
from encoder.metrics.checks import check_features
from encoder.metrics.networks import load_network
from encoder.metrics.seen import Seen
from harness.metrics.config import ENCODER, ReferenceConfig
from harness.metrics.fid import Moments
from harness.metrics.picture_sets import check_sets


@dataclasses.dataclass(frozen=True)
class Features:
    """What the judge sees in a set of pictures."""

    pooled: Tensor  # N D
    logits: Tensor | None = None  # N K; an encoder has no classifier
    spatial: Moments | None = None  # of N S features: only their moments are ever needed

    def save(self, path: Path) -> None:
        """Write as an npz file."""
        parts = {"pooled": self.pooled.numpy()}
        if self.logits is not None:
            parts["logits"] = self.logits.numpy()
        if self.spatial is not None:
            parts |= {f"spatial_{name}": value for name, value in self.spatial.arrays().items()}
        np.savez(path, **parts)

    @classmethod
    def load(cls, path: Path) -> "Features":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as archive:
            held = dict(archive)
        spatial = {name.removeprefix("spatial_"): held[name] for name in held if name.startswith("spatial_")}
        return cls(
            pooled=torch.from_numpy(held["pooled"]),
            logits=torch.from_numpy(held["logits"]) if "logits" in held else None,
            spatial=Moments.from_arrays(spatial) if spatial else None,
        )


class EncoderJudge(nn.Module):
    """Any frozen encoder as a judge: the mean of its tokens."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> Seen:
        """See pictures (N 3 H W, uint8); the encoder resizes and normalises as ever."""
        return Seen(pooled=self.encoder.encode(pictures.float() / 255).mean(dim=1))


def load_extractor(config: ReferenceConfig, device: str = "cpu") -> nn.Module:
    """The network that `extractor` names.

    Raises:
        FileNotFoundError, ValueError: its weights are missing, damaged, unsafe or of another network.
    """
    if config.extractor.startswith(ENCODER):
        encoder = load_encoder(config.extractor.removeprefix(ENCODER), device=device)
        return EncoderJudge(encoder)
    return load_network(config.extractor, config.weights).to(device)


def extract(
    network: nn.Module,
    pictures: np.ndarray,
    *,
    batch_size: int = 16,
    device: str = "cpu",
    report: Callable[[int], None] = lambda done: None,
) -> Features:
    """Features of pictures (N H W 3, uint8), on the CPU; `report` is told how many are done.

    Raises:
        ValueError: they are no such pictures, or what the network sees in one is not finite.
    """
    check_sets(pictures)
    pooled, logits, spatial = [], [], None
    for start in range(0, len(pictures), batch_size):
        batch = torch.from_numpy(np.array(pictures[start : start + batch_size]))
        seen = network(rearrange(batch, "n h w c -> n c h w").to(device))
        pooled.append(seen.pooled.float().cpu())
        check_features(pooled[-1], "what the judge sees", first=start)
        if seen.logits is not None:
            logits.append(seen.logits.float().cpu())
        if seen.spatial is not None:
            spatial = spatial or Moments.empty(seen.spatial.shape[1])
            spatial.update(seen.spatial)
        report(start + len(batch))
    return Features(pooled=torch.cat(pooled), logits=torch.cat(logits) if logits else None, spatial=spatial)
