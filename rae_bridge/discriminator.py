"""RAE's discriminator of pixel decoders: small heads on the tokens of a frozen DINO, and its training.

Letters: B batch, S pixels on a side, N tokens, C their width, L = N x number of heads. Pixels are in [-1, 1]
here, as DiffAug's amounts are meant.

Source: RAE (arXiv:2510.11690, App.; src/disc at a4d18c4), after StyleGAN-T and DiffAug (arXiv:2006.10738).
Deviations: DINO by timm, with the exact GELU it was trained with; RAE zeroes the bias of the keys, which a
softmax does not see. Gradients of the discriminator are averaged over processes, which RAE's step forgets.
"""

import math
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from encoder.models.pretrained import IMAGENET_MEAN, IMAGENET_STD
from encoder.runtime import checkpoint, hub
from encoder.runtime.ranks import Ranks, unwrapped
from encoder.training.optim import autocast
from rae_bridge.config import AdversarialConfig

KEY_BLOCKS = (2, 5, 8, 11)
TRANSLATION = 0.125  # of the picture's side
RANDOM = "random"


class FrozenFeatures(nn.Module):
    """Patch tokens of a ViT of timm's: of its last block, then of the key blocks it has.

    Raises:
        FileNotFoundError, ValueError: `checkpoint` names a file that is missing or does not fit.
    """

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        self.vit = timm.create_model(config.backbone, pretrained=config.checkpoint is None, num_classes=0)
        if config.checkpoint not in (None, RANDOM):
            path = hub.place(config.checkpoint)
            path = path / "model.safetensors" if path.is_dir() else path
            read = checkpoint.load_tensors if path.suffix == ".safetensors" else checkpoint.load
            try:
                self.vit.load_state_dict(read(Path(path)))
            except RuntimeError as error:
                raise ValueError(f"{path} does not fit {config.backbone}: {str(error)[:200]}") from None
        self.eval().requires_grad_(False)
        self.width: int = self.vit.embed_dim
        self.image_size: int = self.vit.patch_embed.img_size[0]
        depth = len(self.vit.blocks)
        self.key_blocks = [block for block in KEY_BLOCKS if block < depth]
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "FrozenFeatures":
        """Frozen for good: nothing wakes it."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """B 3 S S in [-1, 1] -> B C N for each head."""
        size = (self.image_size, self.image_size)
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        last = len(self.vit.blocks) - 1
        wanted = sorted({*self.key_blocks, last})
        found = self.vit.forward_intermediates(
            ((pixels + 1) / 2 - self.mean) / self.std,
            indices=wanted,
            output_fmt="NLC",
            intermediates_only=True,
        )
        by_block = dict(zip(wanted, found, strict=True))
        return [by_block[block].mT for block in (last, *self.key_blocks)]


class Residual(nn.Module):
    """(x + layers(x)) / sqrt(2)"""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.layers(x)) / math.sqrt(2)


def convolution(width: int, kernel_size: int) -> nn.Sequential:
    """Circular convolution along the tokens with spectral norm, a norm per sample and channel, LeakyReLU."""
    padding = {"padding": kernel_size // 2, "padding_mode": "circular"}
    return nn.Sequential(
        spectral_norm(nn.Conv1d(width, width, kernel_size, **padding), eps=1e-12),
        nn.InstanceNorm1d(width, eps=1e-6, affine=True),  # RAE's batch norm with a virtual batch of one
        nn.LeakyReLU(0.2),
    )


class Heads(nn.Module):
    """One small network per feature map: list of B C N -> logits B L, in fp32."""

    def __init__(self, width: int, num_heads: int, kernel_size: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                convolution(width, 1),
                Residual(convolution(width, kernel_size)),
                spectral_norm(nn.Conv1d(width, 1, 1), eps=1e-12),
            )
            for _ in range(num_heads)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        with torch.autocast(features[0].device.type, enabled=False):
            pairs = zip(self.heads, features, strict=True)
            return torch.cat([head(x.float())[:, 0] for head, x in pairs], dim=1)


def augment(pixels: Tensor, draws: Tensor) -> Tensor:
    """DiffAug: each picture (B 3 S S in [-1, 1]) moved, brightened, saturated and contrasted by draws
    (5, B) in [0, 1). What is moved in from outside is grey.
    """
    size = pixels.shape[-1]
    reach = round(size * TRANSLATION)
    down, right = ((draw * (2 * reach + 1)).floor().long() - reach for draw in draws[:2])
    line = torch.arange(size, device=pixels.device)
    padded = F.pad(pixels, (1, 1, 1, 1))
    rows = (line + down[:, None] + 1).clamp(0, size + 1)  # B S
    columns = (line + right[:, None] + 1).clamp(0, size + 1)
    sample = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    brightness, saturation, contrast = draws[2:, :, None, None, None]
    moved = moved + (brightness - 0.5)
    grey = moved.mean(dim=1, keepdim=True)
    moved = (moved - grey) * (2 * saturation) + grey
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    return (moved - mean) * (contrast + 0.5) + mean


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's: (relu(1 - real) + relu(1 + fake)) / 2, means over logits."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(of_reconstruction: Tensor, of_adversary: Tensor, largest: float) -> Tensor:
    """The ratio of two gradients' norms, at most `largest`.

    Source: VQGAN (arXiv:2012.09841), Eq. 7.
    """
    return (of_reconstruction.norm() / (of_adversary.norm() + 1e-6)).clamp(0, largest).detach()


class Adversary:
    """The discriminator with its optimiser, and the term that it adds to the decoder's loss."""

    def __init__(self, config: AdversarialConfig, ranks: Ranks, precision: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.config, self.ranks, self.precision, self.seed = config, ranks, precision, seed
        self.features = FrozenFeatures(config).to(ranks.device)
        num_heads = len(self.features.key_blocks) + 1
        heads = Heads(self.features.width, num_heads, config.kernel_size).to(ranks.device)
        self.heads = ranks.wrap(heads)
        settings = {"betas": (0.9, 0.95), "weight_decay": 0.0}
        self.optimiser = torch.optim.AdamW(heads.parameters(), lr=config.lr, **settings)

    def draws(self, step: int, what: str, part: slice, size: int) -> Tensor:
        """DiffAug's numbers (5, B) for the rows `part` of a step's `size`."""
        generator = checkpoint.step_generator(self.seed, step, f"augment/{what}")
        return torch.rand(5, size, generator=generator)[:, part].to(self.ranks.device)

    def see(self, pixels: Tensor, draws: Tensor) -> list[Tensor]:
        """Features of pixels (B 3 S S in [0, 1])."""
        with autocast(self.precision, pixels.device.type):
            return self.features(augment(pixels * 2 - 1, draws))

    def term(self, pixels_hat: Tensor, reconstruction: Tensor, last_weight: Tensor, draws: Tensor) -> Tensor:
        """What the decoder's loss gains: minus the mean logit of pixels_hat, weighted.

        reconstruction: the loss without it; last_weight: the decoder's last matrix, whose gradients it
        compares, over all processes.
        """
        heads = unwrapped(self.heads).requires_grad_(False)
        loss = -heads(self.see(pixels_hat, draws)).mean()
        heads.requires_grad_(True)
        gradients = (
            self.ranks.mean(torch.autograd.grad(each, last_weight, retain_graph=True)[0])
            for each in (reconstruction, loss)
        )
        return self.config.weight * adaptive_weight(*gradients, self.config.max_adaptive_weight) * loss

    def learn(self, pixels: Tensor, pixels_hat: Tensor, draws: tuple[Tensor, Tensor]) -> Tensor:
        """One step of the discriminator on real and decoded pixels (B 3 S S); returns its loss.

        The decoded ones are rounded to 8 bits, so that it cannot tell them by their finer values.
        """
        fake = (pixels_hat.detach().clamp(0, 1) * 255).round() / 255
        features = self.see(torch.cat([pixels, fake]), torch.cat(draws, dim=1))
        real_logits, fake_logits = self.heads(features).chunk(2)
        loss = hinge_loss(real_logits, fake_logits)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    def set_rate(self, factor: float) -> None:
        """The learning rate of the next step, as a part of the peak."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr * factor

    def state_dict(self) -> dict:
        """All that a resumed run needs."""
        return {"heads": unwrapped(self.heads).state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        unwrapped(self.heads).load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])
