"""Texts encoded once, trimmed to their real tokens: the empty one, which stands for no text, is the last.

A model that is told a text by its number is a model of classes: batches, dropout, guidance and samplers of
`rae_bridge` take it as it is. Letters: M texts, T their tokens in all, B texts of a batch, L tokens of its
longest, D width of a token, P width of a text's one vector.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoder.runtime import checkpoint
from encoder.runtime.stage import write_json
from rae_bridge.text.encoders import Text, TextModel

TENSORS, ABOUT = "texts.safetensors", "texts.json"
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class TextBank:
    """M texts and, after them, the empty one: `take` gives any of them, padded to the longest asked for."""

    tokens: Tensor  # T D
    ends: Tensor  # M + 1: number of tokens up to the end of each
    pooled: Tensor  # M + 1, P
    about: dict[str, Any]  # of the text encoder

    @staticmethod
    def encode(
        texts: Sequence[str], model: TextModel, dtype: str = "fp32", batch_size: int = 64
    ) -> "TextBank":
        """Encode texts and the empty one.

        Raises:
            ValueError: a state does not fit the type; what the text encoder refuses.
        """
        every, tokens, lengths, pooled = [*texts, ""], [], [], []
        for start in range(0, len(every), batch_size):
            part = every[start : start + batch_size]
            text = model.encode(part)
            stored = text.tokens[text.mask].to(DTYPES[dtype]).cpu()
            if not bool(torch.isfinite(stored).all()):
                raise ValueError(
                    f"states of the texts from {part[0]!r:.60} on overflow {dtype}: set dtype=fp32"
                )
            tokens.append(stored)
            lengths.append(text.mask.sum(dim=1).cpu())
            pooled.append(text.pooled.to(DTYPES[dtype]).cpu())
        ends = torch.cat(lengths).cumsum(0)
        return TextBank(torch.cat(tokens), ends, torch.cat(pooled), model.about)

    @property
    def null(self) -> int:
        """The number of the empty text, which is also how many others there are."""
        return len(self.ends) - 1

    def take(self, y: Tensor) -> Text:
        """The texts y (B,) in fp32, on the CPU: tokens B L D, zero where there are none.

        Raises: IndexError: there is no such text.
        """
        y = y.cpu()
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) <= self.null:
            raise IndexError(f"texts {int(y.min())} to {int(y.max())} of {self.null} and the empty one")
        starts = torch.cat([self.ends.new_zeros(1), self.ends[:-1]])[y]
        lengths = self.ends[y] - starts
        places = torch.arange(int(lengths.max()) if len(y) else 0)
        mask = places < lengths[:, None]  # B L
        rows = torch.where(mask, starts[:, None] + places, 0)
        if not len(self.tokens):
            tokens = torch.zeros(*mask.shape, self.tokens.shape[1])
        else:
            tokens = self.tokens[rows].float() * mask[..., None]
        return Text(tokens, mask, self.pooled[y].float())

    def save(self, folder: Path, more: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Write the texts, more tensors and more about them to a folder."""
        tensors = {"tokens": self.tokens, "ends": self.ends, "pooled": self.pooled, **more}
        checkpoint.save_tensors(folder / TENSORS, tensors)
        write_json(folder / ABOUT, {"text_encoder": self.about, **about})


@dataclass(frozen=True, slots=True)
class Captions:
    """The captions of a split: each picture's key, and the numbers of its short and its dense text."""

    folder: Path
    bank: TextBank
    keys: Sequence[str]  # N
    short: Tensor  # N
    dense: Tensor  # N

    @staticmethod
    def load(folder: Path) -> "Captions":
        """What `rae_bridge.text.encode` wrote.

        Raises:
            FileNotFoundError, ValueError: it is missing or damaged.
        """
        if not (folder / ABOUT).is_file():
            raise FileNotFoundError(f"no captions in {folder} ({ABOUT}); run rae_bridge.text.encode")
        held, tensors = json.loads((folder / ABOUT).read_text()), checkpoint.load_tensors(folder / TENSORS)
        try:
            bank = TextBank(*(tensors[name] for name in ("tokens", "ends", "pooled")), held["text_encoder"])
            return Captions(folder, bank, held["keys"], tensors["short"], tensors["dense"])
        except KeyError as error:
            raise ValueError(f"{folder} holds no captions of rae_bridge.text.encode: no {error}") from None

    def of(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The numbers of the short and the dense texts of pictures, by their keys.

        Raises: ValueError: a picture has none.
        """
        places = {key: place for place, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in places]
        if missing:
            raise ValueError(
                f"{self.folder} has no caption for {len(missing)} of {len(keys)} pictures, such as "
                f"{missing[0]}: encode the captions of the same data and split"
            )
        rows = torch.tensor([places[key] for key in keys], dtype=torch.long)
        return self.short[rows], self.dense[rows]
