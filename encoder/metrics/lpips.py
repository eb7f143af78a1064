"""LPIPS between pictures and their reconstructions, per picture. Letters: B pictures."""

from typing import Literal

import lpips
import torch
from torch import Tensor, nn

from encoder.metrics import weights
from encoder.metrics.checks import check_pictures

Net = Literal["alex", "vgg", "squeeze"]


def load_lpips(net: Net, given: str | None) -> lpips.LPIPS:
    """LPIPS 0.1: the heads of the package `lpips` on a trunk of torchvision, given as a file; frozen.

    Source: Zhang et al., arXiv:1801.03924v2, Eq. 1. The package would download its trunk; this one is read
    from where it was said to lie, as tensors only.
    """
    distance = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    published = weights.TRUNKS[net]
    state = weights.read(published, given)
    features = {name.removeprefix("features."): value for name, value in state.items()}
    places = {name.partition(".")[2]: name for name in distance.net.state_dict()}
    found = {place: features[name] for name, place in places.items() if name in features}
    weights.fill(distance.net, found, weights.find(published, given))
    return distance.eval().requires_grad_(False)


class Lpips(nn.Module):
    """LPIPS as a metric, a distance for each picture."""

    def __init__(self, net: Net, given: str | None) -> None:
        super().__init__()
        self.distance = load_lpips(net, given)

    @torch.inference_mode()
    def forward(self, pixels: Tensor, pixels_hat: Tensor) -> Tensor:
        """Distance of each picture (B,); pixels B 3 H W in [0, 1].

        Raises:
            ValueError: the shapes differ, or a picture is not finite.
        """
        check_pictures(pixels, pixels_hat)
        return self.distance(pixels, pixels_hat, normalize=True).flatten()
