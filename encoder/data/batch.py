"""The training set in memory, and the batch that a step sees of it. For sets that fit: the demo's.

Pictures stay uint8, latents fp16, texts ids: a hundred thousand samples at 64 px take 1.7 GB.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoder.data.captions import DEFAULT_KEYS, choose_texts
from encoder.data.options import CaptionKeys
from encoder.data.tokenizer import Tokenizer

_SENTENCE_END = re.compile(r"[.!]+")


@dataclass(frozen=True, slots=True)
class Batch:
    """pixels (P 3 H W, in [0, 1]): of the first P rows, or of all; z_vae (B C h w) or None without a VAE;
    text_ids: one (B L) for each contrastive pass; caption_ids (B L), [bos] first, `pad_id` after the end.

    As read, pixels are (P H W 3, uint8), a quarter of the bytes to move, and latents of any float type; `to`
    converts both on the device.
    """

    pixels: Tensor
    z_vae: Tensor | None
    text_ids: tuple[Tensor, ...]
    caption_ids: Tensor
    pad_id: int

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, pixels as floats; to a GPU from pinned memory, so that nothing waits."""
        pixels = _move(self.pixels, device)
        return Batch(
            pixels=to_pixels(pixels) if pixels.dtype == torch.uint8 else pixels,
            z_vae=None if self.z_vae is None else _move(self.z_vae, device).float(),
            text_ids=tuple(_move(each, device) for each in self.text_ids),
            caption_ids=_move(self.caption_ids, device),
            pad_id=self.pad_id,
        )


def _move(tensor: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 images (B H W 3) -> pixels (B 3 H W, float32 in [0, 1])."""
    return images.permute(0, 3, 1, 2).float() / 255


def sentences(caption: str, alt_text: str) -> list[str]:
    """The sentences of a dense caption, split at '.' and '!'; the alt text if there is none.

    Source: UCSC-VLAA/OpenVision@6c24e45 (v1's second contrastive pass).
    """
    return [part.strip() for part in _SENTENCE_END.split(caption) if part.strip()] or [alt_text]


def cut_padding(caption_ids: Tensor, pad_id: int) -> Tensor:
    """caption_ids (B L) without the places beyond the longest caption."""
    return caption_ids[:, : int((caption_ids != pad_id).sum(dim=1).max())]


def _id_type(vocab_size: int) -> torch.dtype:
    """The smallest type that holds every id: held in memory for all samples."""
    return torch.int16 if vocab_size - 1 <= torch.iinfo(torch.int16).max else torch.int32


class TrainingSet:
    """Images, texts and (if given) cached latents of every sample.

    images: N H W 3 uint8; records: mappings that hold the texts (see `choose_texts`).
    """

    def __init__(
        self,
        images: Tensor,
        records: Sequence[dict],
        tokenizer: Tokenizer,
        *,
        text_length: int,
        caption_length: int | None,
        captions: CaptionKeys = DEFAULT_KEYS,
    ):
        if not len(images):
            raise ValueError("the training set is empty")
        texts = [choose_texts(record, captions) for record in records]
        alt_texts, captions = [each.alt for each in texts], [each.dense for each in texts]
        split = [sentences(caption, alt) for caption, alt in zip(captions, alt_texts, strict=True)]
        self.images = images
        self.z_vae: Tensor | None = None
        self.pad_id = tokenizer.pad
        kind = _id_type(tokenizer.vocab_size)
        self.alt_ids = tokenizer.contrastive_ids(alt_texts, text_length).to(kind)
        flat = [sentence for each in split for sentence in each]
        self.sentence_ids = tokenizer.contrastive_ids(flat, text_length).to(kind)
        self.num_sentences = torch.tensor([len(each) for each in split])
        self.first_sentence = self.num_sentences.cumsum(0) - self.num_sentences
        self.caption_ids = None
        if caption_length is not None:
            self.caption_ids = tokenizer.caption_ids(captions, caption_length).to(kind)

    def __len__(self) -> int:
        return len(self.images)

    def batch(
        self,
        indices: Tensor,
        generator: torch.Generator,
        *,
        num_pixels: int,
        with_sentence: bool,
        rows: slice = slice(None),
    ) -> Batch:
        """The samples `indices[rows]` (B,) as stored, pixels for the first `num_pixels` of them.

        `with_sentence` adds a second text pass: one sentence of each dense caption, drawn from `generator`
        for all `indices`, so that parts of a batch draw what the whole draws.
        """
        draws = torch.rand(len(indices), generator=generator)[rows] if with_sentence else None
        indices = indices[rows]
        text_ids = [self.alt_ids[indices].long()]
        if draws is not None:
            drawn = (draws * self.num_sentences[indices]).long()
            text_ids.append(self.sentence_ids[self.first_sentence[indices] + drawn].long())
        caption_ids = torch.empty(len(indices), 0, dtype=torch.long)
        if self.caption_ids is not None:
            caption_ids = cut_padding(self.caption_ids[indices].long(), self.pad_id)
        return Batch(
            pixels=self.images[indices[:num_pixels]],
            z_vae=None if self.z_vae is None else self.z_vae[indices],
            text_ids=tuple(text_ids),
            caption_ids=caption_ids,
            pad_id=self.pad_id,
        )
