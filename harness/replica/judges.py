"""The networks that judge pictures, at their true shapes: FID's Inception, and LPIPS' trunks and heads.

Source: torch-fidelity 0.4.0, `feature_extractor_inceptionv3.py` (names, and the file's name in its release
v0.2.0; 566 tensors, 95 MB); torchvision's `models/{alexnet,vgg}.py` and lpips 0.1.4's
`pretrained_networks.py` (which trunk) and `weights/v0.1/*.pth` (heads: lin<k>.model.1.weight). Reference
sheet "Metrics, VAEs", Sec. 1.2 and 2.
The published trunks hold the classifiers of ImageNet too (AlexNet 244 MB, VGG16 553 MB), which LPIPS does not
read: here each of their tensors is one number stretched to its shape, so they take no room (10 and 59 MB).
"""

import io
from pathlib import Path

import torch

from harness.replica.config import ReplicaConfig
from harness.replica.mark import README, readme
from harness.replica.networks import Shape, layer, random_weights

INCEPTION, LPIPS = "inception", "lpips"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
TRUNKS = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
# number in `features` -> channels out and in, side of the kernel
_CONVOLUTIONS = {
    "alex": {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)},
    "vgg": {
        0: (64, 3, 3), 2: (64, 64, 3), 5: (128, 64, 3), 7: (128, 128, 3), 10: (256, 128, 3),
        12: (256, 256, 3), 14: (256, 256, 3), 17: (512, 256, 3), 19: (512, 512, 3), 21: (512, 512, 3),
        24: (512, 512, 3), 26: (512, 512, 3), 28: (512, 512, 3),
    },
}  # fmt: skip
_CLASSIFIERS = {  # number in `classifier` -> out and in
    "alex": {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)},
    "vgg": {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)},
}
_HEADS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}  # channels they read


def write_inception(root: Path, config: ReplicaConfig) -> str:
    """Inception's state dict."""
    folder = root / INCEPTION
    folder.mkdir()
    state = random_weights(_inception_shapes(), config.seed, INCEPTION)
    torch.save(state, folder / INCEPTION_FILE)
    where = "github.com/toshas/torch-fidelity, release v0.2.0"
    (folder / README).write_text(readme("the 2015 Inception of FID", where))
    return f"{len(state)} tensors"


def write_lpips(root: Path, config: ReplicaConfig) -> str:
    """Trunks of torchvision, and heads in v0.1/."""
    folder = root / LPIPS
    (folder / "v0.1").mkdir(parents=True)
    for net, file in TRUNKS.items():
        trunk: dict[str, Shape] = {}
        for place, (out, into, side) in _CONVOLUTIONS[net].items():
            trunk |= layer(f"features.{place}", out, into, side, side)
        state = random_weights(trunk, config.seed, file)
        for place, shape in _CLASSIFIERS[net].items():
            for name, full in layer(f"classifier.{place}", *shape).items():
                state[name] = torch.full((1,), 1e-3).expand(full)
        torch.save(state, folder / file)
        heads = {f"lin{k}.model.1.weight": (1, width, 1, 1) for k, width in enumerate(_HEADS[net])}
        drawn = random_weights(heads, config.seed, f"{net} heads")
        torch.save({name: value.abs() for name, value in drawn.items()}, folder / f"v0.1/{net}.pth")
    where = "download.pytorch.org/models (trunks); the package lpips 0.1.4 (heads, in weights/v0.1)"
    (folder / README).write_text(readme("LPIPS' AlexNet and VGG16", where))
    return " and ".join(TRUNKS.values())


def _inception_shapes() -> dict[str, Shape]:
    """Names and shapes of a network that is never filled."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        """Takes no weights: the constructor always loads some."""

        def load_state_dict(self, *_: object, **__: object) -> None:
            return None

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.device("meta"):
        network = Blank("inception-v3-compat", ["2048"], feature_extractor_weights_path=nothing)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
