"""Words to ids: BERT's WordPiece with [bos] and [eos], or the closed word list of Scenes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from encoder.data.scenes.text import VOCABULARY, split_words
from encoder.runtime import hub
from encoder.runtime.config import ROOT

VOCAB_FILE = "vocab.txt"
# BERT's spare entries; OpenVision's vocabulary calls the first two of them [bos] and [eos] (ids 1 and 2)
_SPARE = re.compile(r"\[unused\d+\]")
_CAPITAL = re.compile("[A-Z]")
SPECIAL = ("[PAD]", "[bos]", "[eos]", "[UNK]", "[CLS]")


def _read_vocab(source: str) -> list[str]:
    """Lines of a BERT vocab.txt, two spare entries renamed; or the specials and the words of Scenes."""
    if source == "scenes":
        return [*SPECIAL, *VOCABULARY]
    path = ROOT / source
    path = path / VOCAB_FILE if path.is_dir() else path
    if not path.is_file():
        path = _download(source)
    # At line feeds alone: some words of the multilingual vocabulary are what Unicode calls line ends
    words = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    spare = [index for index, word in enumerate(words) if _SPARE.fullmatch(word)]
    for name, index in zip((name for name in ("[bos]", "[eos]") if name not in words), spare, strict=False):
        words[index] = name
    return words


def _download(repository: str) -> Path:
    """The vocab.txt of a hub repository such as google-bert/bert-base-uncased, from the cache if there."""
    if (folder := hub.whole(repository, VOCAB_FILE)) is not None:
        return folder / VOCAB_FILE
    from huggingface_hub import hf_hub_download

    name, revision = hub.split(repository)
    try:
        return Path(hf_hub_download(name, VOCAB_FILE, revision=revision))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        ways = "give 'scenes', a BERT vocab.txt, the folder it lies in, or a hub id"
        raise FileNotFoundError(f"tokenizer vocabulary not found: {repository}; {ways} ({reason})") from None


def _wordpiece(vocab: dict[str, int]) -> FastTokenizer:
    fast = FastTokenizer(WordPiece(vocab, unk_token="[UNK]"))
    is_cased = any(_CAPITAL.search(word) for word in vocab if not word.startswith("["))
    fast.normalizer = BertNormalizer(lowercase=not is_cased)
    fast.pre_tokenizer = BertPreTokenizer()
    return fast


class Tokenizer:
    """Text as BERT's WordPiece does it (lower-cased unless the vocabulary has capitals), or as the words,
    digits and marks of Scenes.

    Source: UCSC-VLAA/OpenVision@6c24e45 (v1 labels: [bos] text [eos] pads [CLS]; captions lack [CLS]).
    Raises: FileNotFoundError without a vocabulary; ValueError if it lacks a special entry, or for a word that
        Scenes does not know.
    """

    def __init__(self, source: str = "scenes"):
        words = _read_vocab(source)
        vocab = {word: index for index, word in enumerate(words)}
        missing = [word for word in SPECIAL if word not in vocab]
        if missing:
            raise ValueError(f"vocabulary {source} lacks {', '.join(missing)}; it must be a BERT vocab.txt")
        self.vocab = vocab
        self.words = words
        self._fast = None if source == "scenes" else _wordpiece(vocab)
        self.vocab_size = len(words)
        self.pad, self.bos, self.eos, self.unk, self.cls = (vocab[word] for word in SPECIAL)

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        if self._fast is None:
            words = [split_words(text) for text in texts]
            unknown = sorted({word for each in words for word in each} - self.vocab.keys())
            if unknown:
                raise ValueError(
                    f"not words of Scenes: {', '.join(unknown[:5])}; for other texts give a BERT "
                    "vocab.txt, its folder or a hub id as text.tokenizer"
                )
            return [[self.vocab[word] for word in each] for each in words]
        # TensorFlow-Text, which OpenVision was trained with, reads an ellipsis as three full stops
        texts = [text.replace("\u2026", "...") for text in texts]
        encodings = self._fast.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def contrastive_ids(self, texts: Sequence[str], length: int) -> Tensor:
        """texts -> input_ids (B, length): [bos] text [eos] pads, and [CLS] at the last place.

        Too long a text is cut and closed with [eos] all the same.
        """
        ids = torch.full((len(texts), length), self.pad)
        for row, pieces in zip(ids, self._pieces(texts), strict=True):
            marked = [self.bos, *pieces[: length - 3], self.eos]
            row[: len(marked)] = torch.tensor(marked)
            row[-1] = self.cls
        return ids

    def caption_ids(self, texts: Sequence[str], length: int) -> Tensor:
        """texts -> input_ids (B, length): [bos] text [eos] pads. Too long a text is cut and has no [eos]."""
        ids = torch.full((len(texts), length), self.pad)
        for row, pieces in zip(ids, self._pieces(texts), strict=True):
            marked = [self.bos, *pieces, self.eos][:length]
            row[: len(marked)] = torch.tensor(marked)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The words up to the first [eos], joined by spaces."""
        ids = list(ids)
        kept = ids[: ids.index(self.eos)] if self.eos in ids else ids
        words = [self.words[index] for index in kept if index not in (self.bos, self.pad, self.cls)]
        return " ".join(words).replace(" ##", "")
