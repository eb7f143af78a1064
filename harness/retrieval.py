"""The text tower that a source brings beside its frozen encoder, for `check`'s zero-shot retrieval.

Frozen encoders are vision towers alone. A folder or hub id of CLIP or SigLIP (2) holds the text tower and its
tokenizer too; a `FrozenEncoder` of one's own may have `embed_pairs`. Nothing else here has one at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from encoder.frozen import FrozenEncoder

EmbedPairs = Callable[[Tensor, list[str]], tuple[Tensor, Tensor]]
_PADDING = {"clip": "longest", "siglip": "max_length", "siglip2": "max_length"}  # as each was trained
_SCHEME = "clip:"


class NoTextTowerError(ValueError):
    """Says why an encoder has no retrieval."""


def find_embed_pairs(encoder: FrozenEncoder, source: str, device: str) -> EmbedPairs:
    """(pixels B 3 H W, B texts) -> features of both, B E.

    source: what the encoder was loaded from, as in `load_encoder`.
    Raises:
        NoTextTowerError: none is at hand, with the reason.
    """
    if hasattr(encoder, "embed_pairs"):
        return encoder.embed_pairs
    if not source.startswith(_SCHEME):
        raise NoTextTowerError("no text tower: its weights hold the vision tower alone")
    return _transformers_pairs(encoder, source.removeprefix(_SCHEME), device)


def _transformers_pairs(encoder: FrozenEncoder, folder: str, device: str) -> EmbedPairs:
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    kind = AutoConfig.from_pretrained(folder).model_type
    if kind not in _PADDING:
        raise NoTextTowerError(f"no text tower: {kind} has none")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    except Exception as error:  # tokenizers raise many kinds for files that are not there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NoTextTowerError(f"no text tower from {Path(folder).name}: {reason}") from None
    length = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def embed_pairs(pixels: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        words = tokenizer(
            texts, padding=_PADDING[kind], truncation=True, max_length=length, return_tensors="pt"
        ).to(device)
        output = model(**words, pixel_values=encoder._prepare(pixels))
        return output.image_embeds, output.text_embeds

    return embed_pairs
