"""The answers that an evaluation has so far, batch by batch: a kill in the middle of a benchmark costs the
batches that are being asked, and no other question is asked again.

Answers are found by the very prompts and pictures of a batch. Each process adds to a file of its own and
reads those of all, so that how many they are may change.
"""

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from encoder.runtime.stage import sha256_json

ANSWERS = "answers"  # folder of the files, below the stage's, until it is done
_WEIGHTS = (".safetensors", ".bin")


def digest(picture: Image) -> bytes:
    """The hash of a picture's size and pixels."""
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest()


def weights_state(folder: Path) -> list[list]:
    """[name, bytes, time of writing in ns] of each file of weights in a model's folder: enough to tell a
    model that was trained anew in its place, none of it read."""
    found = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS) if folder.is_dir() else []
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in found]


class KeptAnswers:
    """A line for each batch, {"asked": hash, "given": answers, "num_tokens": [[tokens, pictures], ...]}.

    settings: a plain value for all that decides an answer beside prompts and pictures. num_tokens: counts how
    many pictures had so many tokens, those of kept answers too.
    """

    def __init__(self, folder: Path, settings: Any, num_tokens: Counter[int]):
        folder.mkdir(exist_ok=True)
        self.settings, self.num_tokens = sha256_json(settings), num_tokens
        self.path = folder / f"{secrets.token_hex(8)}.jsonl"
        self.found = {line["asked"]: line for file in folder.glob("*.jsonl") for line in _lines(file)}

    def ask(self, asked: Any, visuals: Sequence[Sequence[Image]], answer: Callable[[], list]) -> list:
        """The answers to a batch, plain values: the kept ones, or `answer()`, which is kept.

        asked: a plain value of all that is asked of the pictures.
        """
        pictures = [[digest(picture).hex() for picture in row] for row in visuals]
        key = sha256_json([self.settings, asked, pictures])
        if (line := self.found.get(key)) is not None:
            self.num_tokens.update(dict(line["num_tokens"]))
            return line["given"]
        before = self.num_tokens.copy()
        given = answer()
        line = {"asked": key, "given": given, "num_tokens": [*(self.num_tokens - before).items()]}
        with self.path.open(
            "a"
        ) as file:  # a line begins with its break: one that a kill cut off spoils no other
            file.write("\n" + json.dumps(line))
        return given


def _lines(path: Path) -> Iterator[dict]:
    """The whole lines of a file."""
    for line in path.read_text().splitlines():
        try:
            held = json.loads(line) if line else None
        except ValueError:  # cut off
            continue
        if isinstance(held, dict):
            yield held
