"""`run.py check encoders=[...]`: is each a frozen encoder as the bridges need it? What do cheap proxies say?

Every rule of the contract (`encoder.frozen`) is tried on a handful of pictures, so that a violation is found
before hours of training. The proxies are seconds of work: a linear probe of the class, one of the facts that
questions ask for, zero-shot retrieval where the encoder has a text tower, PSNR where it decodes.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from encoder.data.scenes.render import make_scene, render
from encoder.data.scenes.scene import Scene
from encoder.data.scenes.text import org_caption
from encoder.data.scenes.wording import DIMENSIONS
from encoder.frozen import FrozenEncoder
from encoder.load import load_encoder
from encoder.metrics.probes import linear_probe, recall_at_1
from encoder.metrics.readout import ReadoutConfig, fit_readout
from harness.encoders import Encoder
from harness.metrics.psnr_ssim import psnr
from harness.probe.readers import flat_tokens, percent_right
from harness.probe.scene_facts import NUM_VALUES, facts_of
from harness.retrieval import NoTextTowerError, find_embed_pairs

NUM_TRAIN, NUM_TEST = 600, 300  # pictures of the probes
LEGEND = (
    f"proxies on Scenes: class of {NUM_TEST} pictures by ridge regression on the mean token of {NUM_TRAIN} "
    "others (chance 6 %); questions about them, mean of Scenes-SEED's nine dimensions, all answers open, by "
    "a linear probe of the facts in their tokens; texts of 50 pictures at a time (chance 2 %)"
)
_GRID = 8  # tokens on a side that the probe of facts sees at most
_READOUT = ReadoutConfig(batch_size=50)
_BATCH_SIZE = 50
_HALF_MAX = 65504.0  # tokens are cached as fp16
_TOLERANCE = 1e-3  # of a token between batches, relative to the tokens' size: float32 sums in other orders


@dataclasses.dataclass(frozen=True)
class Probes:
    """Pictures with class and text, the first `NUM_TRAIN` for fitting."""

    pixels: Tensor  # M 3 H W in [0, 1]
    labels: Tensor  # M
    texts: list[str]
    scenes: list[Scene]

    @classmethod
    def scenes(cls, image_size: int = 64) -> "Probes":
        """From the embedded world, of a seed that nothing was trained on."""
        scenes = [make_scene(2, index, "val") for index in range(NUM_TRAIN + NUM_TEST)]
        images = torch.from_numpy(np.stack([render(scene, image_size) for scene in scenes]))
        return cls(
            pixels=rearrange(images, "m h w c -> m c h w").float() / 255,
            labels=torch.tensor([scene.label for scene in scenes]),
            texts=[org_caption(scene) for scene in scenes],
            scenes=scenes,
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found out about one encoder; a proxy that it cannot give is None."""

    name: str
    faults: tuple[str, ...]
    num_tokens: int | None = None
    width: int | None = None
    probe_percent: float | None = None  # linear probe's accuracy on the mean token
    questions_percent: float | None = None  # answered right from the facts that a linear probe reads
    retrieval_percent: float | None = None  # recall@1, mean of both directions
    psnr_db: float | None = None
    not_run: tuple[str, ...] = ()  # each proxy that it cannot give, and why


def check(encoder: Encoder, word: str, probes: Probes, device: str = "cpu") -> Report:
    """Load an encoder as both bridges would, try the contract, and run the proxies if it holds."""
    found: dict[str, None] = {}
    for bridge in ("understanding", "generation"):
        features = getattr(encoder.config.features, bridge)
        try:
            frozen, again = (load_encoder(word, features=features, device=device) for _ in "ab")
        except Exception as error:  # an encoder of somebody else may raise anything: that is the finding
            return Report(name=encoder.name, faults=(f"cannot be loaded: {_first_line(error)}",))
        if frozen.fingerprint != again.fingerprint:
            found["loaded twice it is two encoders: its weights are drawn anew; load them from a file"] = None
        found |= dict.fromkeys(violations(frozen, probes.pixels[:4].to(device)))
    sizes = {"num_tokens": frozen.num_tokens, "width": frozen.width}
    if found:
        return Report(name=encoder.name, faults=tuple(found), **sizes)
    return Report(name=encoder.name, faults=(), **sizes, **_proxies(frozen, encoder, word, probes, device))


def violations(encoder: FrozenEncoder, pixels: Tensor) -> Iterator[str]:
    """Each rule of the contract that an encoder breaks on pixels (B 3 H W in [0, 1]), in one line."""
    before = encoder._digest()
    encoder.train()
    try:
        yield from _wrong_tokens(encoder, pixels)
        yield from _unfrozen(encoder, before)
        yield from _wrong_pixels(encoder, pixels)
    except Exception as error:  # an encoder of somebody else may raise anything: that is the finding
        yield f"encode fails: {type(error).__name__}: {_first_line(error)}"


def _wrong_tokens(encoder: FrozenEncoder, pixels: Tensor) -> Iterator[str]:
    """Shape, kind and values of z_u; independence of the rest of the batch and of the pictures' size."""
    z_u = encoder.encode(pixels)
    expected = (len(pixels), encoder.num_tokens, encoder.width)
    if tuple(z_u.shape) != expected:
        yield (
            f"tokens are {tuple(z_u.shape)}, grid {encoder.grid} and width {encoder.width} promise {expected}"
        )
        return
    if encoder.grid[0] != encoder.grid[1]:
        yield f"grid {encoder.grid} is not square; the diffusion transformer needs a square one"
    if z_u.dtype != torch.float32:
        yield f"tokens are {z_u.dtype}, expected torch.float32"
    if not bool(z_u.isfinite().all()):
        yield f"{int((~z_u.isfinite()).sum())} of {z_u.numel()} values of the tokens are not finite"
        return
    largest = float(z_u.abs().max())
    if largest > _HALF_MAX:
        yield f"tokens reach {largest:.3g}, which fp16 cannot hold; set tokens.dtype=fp32 or scale them"
    scale = _TOLERANCE * max(1.0, largest)
    if not _close(z_u, encoder.encode(pixels), scale):
        yield "the same pictures give other tokens the second time: something is random or moves"
    elif not _close(z_u[:1], encoder.encode(pixels[:1]), scale):
        yield "a picture's tokens depend on the batch it comes in (batch statistics?)"
    oblong = encoder.encode(torch.nn.functional.interpolate(pixels[:1], (48, 80)))
    if oblong.shape[1:] != z_u.shape[1:]:
        yield f"a 48 x 80 picture gives tokens {tuple(oblong.shape)}; every size must give the same number"


def _unfrozen(encoder: FrozenEncoder, before: str) -> Iterator[str]:
    """Anything that training around the encoder could change, or has changed."""
    trainable = [name for name, value in encoder.named_parameters() if value.requires_grad]
    if trainable:
        yield f"{len(trainable)} weights are trainable, such as {trainable[0]}; freeze() must hold"
    if encoder.encode(torch.rand(1, 3, 32, 32, device=encoder.device)).requires_grad:
        yield "tokens carry a gradient; encode must not build a graph"
    awake = [name or type(encoder).__name__ for name, module in encoder.named_modules() if module.training]
    if awake:
        yield f"after train(), {awake[0]} is in training mode; a frozen encoder stays in eval mode"
    if encoder._digest() != before:
        yield "encode changes its weights or buffers (moving batch statistics?)"


def _wrong_pixels(encoder: FrozenEncoder, pixels: Tensor) -> Iterator[str]:
    """What goes in must be [0, 1] floats; what decode gives, too."""
    try:
        encoder.encode((pixels * 255).to(torch.uint8))
        yield "integer pixels are taken without a word; encode must refuse all but floats in [0, 1]"
    except ValueError:
        pass
    if not encoder.can_decode:
        return
    hat = encoder.decode(encoder.encode(pixels))
    expected = (len(pixels), 3, encoder.image_size, encoder.image_size)
    if tuple(hat.shape) != expected:
        yield f"decode gives {tuple(hat.shape)}, expected {expected}"
    if not bool(hat.isfinite().all()) or float(hat.min()) < 0 or float(hat.max()) > 1:
        yield f"decoded pixels lie in [{float(hat.min()):.3g}, {float(hat.max()):.3g}], expected [0, 1]"


def _proxies(
    encoder: FrozenEncoder, row: Encoder, word: str, probes: Probes, device: str
) -> dict[str, float | tuple[str, ...]]:
    def map_batches(act: Callable[[Tensor, list[str]], Tensor], first: int = 0) -> Tensor:
        parts = [slice(start, start + _BATCH_SIZE) for start in range(first, len(probes.texts), _BATCH_SIZE)]
        return torch.cat([act(probes.pixels[part].to(device), probes.texts[part]).cpu() for part in parts])

    def see(pixels: Tensor, _texts: list[str]) -> Tensor:  # the mean token, then all of them
        tokens = encoder.encode(pixels)
        return torch.cat([tokens.mean(dim=1), flat_tokens(tokens, encoder.grid, _GRID)], dim=1)

    mean, flat = map_batches(see).tensor_split([encoder.width], dim=1)
    seen, unseen = slice(None, NUM_TRAIN), slice(NUM_TRAIN, None)
    accuracy = linear_probe(mean[seen], probes.labels[seen], mean[unseen], probes.labels[unseen])
    given: dict[str, float] = {"probe_percent": accuracy}
    given["questions_percent"] = _questions(flat, probes.scenes)
    not_run = []
    try:
        embed_pairs = find_embed_pairs(encoder, row.config.source, device)
        both = map_batches(lambda *pair: torch.stack(embed_pairs(*pair), dim=1), NUM_TRAIN)
        recalls = [recall_at_1(part[:, 0], part[:, 1]) for part in both.split(_BATCH_SIZE)]
        given["retrieval_percent"] = float(np.mean(recalls))
    except NoTextTowerError as reason:
        not_run.append(f"retrieval: {reason}")
    decode = _decoder(encoder, word, device)
    if decode is not None:
        given["psnr_db"] = float(map_batches(lambda pixels, _texts: _psnr(decode, pixels), NUM_TRAIN).mean())
    else:
        not_run.append("PSNR: no decoder, neither its own nor one that its config names")
    return given | {"not_run": tuple(not_run)}


def _questions(features: Tensor, scenes: list[Scene]) -> float:
    """% of the questions about the last scenes that a probe of the first ones' facts answers right, mean of
    Scenes-SEED's dimensions; features M D."""
    readout = fit_readout(features[:NUM_TRAIN], facts_of(scenes[:NUM_TRAIN]), NUM_VALUES, _READOUT)
    right = percent_right(readout, features[NUM_TRAIN:], scenes[NUM_TRAIN:])
    return float(np.mean([right[dimension] for dimension in DIMENSIONS.values()]))


def _decoder(encoder: FrozenEncoder, word: str, device: str) -> Callable[[Tensor], Tensor] | None:
    """Pixels there and back: by the encoder's own decoder, or by the one that its config names."""
    from rae_bridge.codec import load_codec

    if encoder.can_decode:
        return lambda pixels: encoder.decode(encoder.encode(pixels))
    try:
        codec = load_codec(word, device=device)
    except (ValueError, FileNotFoundError):
        return None
    return lambda pixels: codec.decode(codec.encode(pixels))


def _psnr(decode: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    hat = decode(pixels)
    return psnr(torch.nn.functional.interpolate(pixels, hat.shape[2:], mode="bicubic").clamp(0, 1), hat)


def _close(a: Tensor, b: Tensor, scale: float) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= scale


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
