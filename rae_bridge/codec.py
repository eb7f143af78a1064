"""A frozen encoder with its way back to pixels: its own decoder, or a pixel decoder trained on its tokens.

Letters: B batch, N tokens, D token width, S pixels on a side.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from encoder.data.batch import to_pixels
from encoder.frozen import FrozenEncoder
from encoder.load import encoder_config, load_encoder
from encoder.options import Features
from encoder.runtime.config import ROOT
from rae_bridge.decoder import PixelDecoder

OWN = "own"
TOKENS_FILE = "tokens.json"  # beside a model's weights: which tokens it was trained on


@dataclass(frozen=True, slots=True)
class Codec:
    """encode: pixels (B 3 H W in [0, 1]) -> tokens (B N D); decode: tokens -> pixels (B 3 S S in [0, 1])."""

    encoder: FrozenEncoder
    decoder: nn.Module | None  # None: the encoder's own
    image_size: int  # S

    def encode(self, pixels: Tensor) -> Tensor:
        return self.encoder.encode(pixels)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        if self.decoder is None:
            return self.encoder.decode(tokens)
        return self.decoder(tokens).clamp(0, 1)

    def reconstruct(self, images: Tensor, device: str = "cpu") -> Tensor:
        """uint8 images (B H W 3) -> pixels (B 3 S S), there and back."""
        return self.decode(self.encode(to_pixels(images.to(device))))


def load_for_generation(source: str, features: Features | None = None, device: str = "cpu") -> FrozenEncoder:
    """The frozen encoder with the features that its config names for generation, unless others are given."""
    return load_encoder(
        source, features=features or encoder_config(source).features.generation, device=device
    )


def load_codec(source: str, *, decoder: str | None = None, device: str = "cpu") -> Codec:
    """An encoder by name with its decoder: `own`, a folder by `rae_bridge.train_decoder`, or None: as its
    config says, else its own.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: the encoder has no way back to pixels, or the decoder was trained on other tokens.
    """
    choice = decoder or encoder_config(source).decoder or OWN
    encoder = load_for_generation(source, device=device)
    if choice != OWN:
        check_tokens(ROOT / choice, encoder)
        model = PixelDecoder.from_pretrained(choice).to(device).requires_grad_(False)
        return Codec(encoder, model, model.config.image_size)
    if not encoder.can_decode:
        raise ValueError(
            f"encoder {source} cannot decode; train a pixel decoder (python -m rae_bridge.train_decoder) and "
            f"name its weights folder as `decoder` in configs/encoders/{source}.yaml"
        )
    return Codec(encoder, None, encoder.image_size)


def origin_of(encoder: FrozenEncoder) -> dict[str, str]:
    """What tokens.json says of an encoder's tokens; a token store's index.json says the same."""
    return {"encoder": encoder.name, "features": encoder.features, "fingerprint": encoder.fingerprint}


def check_tokens(folder: Path, encoder: FrozenEncoder) -> None:
    """Raises: ValueError if the model in `folder` was trained on tokens that are not this encoder's."""
    path = folder / TOKENS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no weights folder of rae_bridge ({TOKENS_FILE} is missing)")
    given = "the encoder gives", origin_of(encoder)
    check_tokens_alike(f"the model {folder}", json.loads(path.read_text()), *given)


def check_tokens_alike(what: str, its: Mapping[str, str], other: str, others: Mapping[str, str]) -> None:
    """Raises: ValueError if the tokens of `what` and of `other` are not of one encoder and its features."""
    if its["fingerprint"] != others["fingerprint"]:
        named = [
            f"{each['encoder']} ({each['features']}, {each['fingerprint'][:12]})" for each in (its, others)
        ]
        raise ValueError(
            f"{what} knows tokens of {named[0]}, {other} those of {named[1]}; name two of the same "
            "tokens, or make one of them anew"
        )


def to_images(pixels: Tensor, rounding: Literal["round", "truncate"]) -> Tensor:
    """Pixels (B 3 S S in [0, 1]) -> uint8 images (B S S 3), rounded, or truncated as RAE does."""
    scaled = pixels.clamp(0, 1) * 255
    scaled = scaled.round() if rounding == "round" else scaled.floor()
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu()
