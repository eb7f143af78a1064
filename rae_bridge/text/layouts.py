"""Prompts in, pictures out, in the folders that other benchmarks' own judges read.

GenEval: <out>/00000/metadata.jsonl (the prompt's line) and samples/0000.png ... DPG-Bench: <out>/<id>.png, a
2 x 2 grid of four pictures under the name of the prompt's file. Letters: M prompts, K pictures each.

Source: djghosh13/geneval at af4902f (generation/, evaluation/evaluate_images.py); TencentQQGYLab/ELLA at
025f650 (dpg_bench/).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_KEYS = ("prompt", "text")  # of a prompt in a line of JSON, the first that is there


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to draw; `id` names its file, `record` is its line."""

    id: str
    text: str
    record: dict[str, Any]


def read_prompts(source: Path, limit: int | None = None) -> list[Prompt]:
    """The first `limit` prompts of a .txt file (one a line), a .jsonl file, or a folder of .txt files.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a line has no prompt, or there are none.
    """
    if source.is_dir():
        files = sorted(source.glob("*.txt"))
        found = [Prompt(each.stem, text, {"prompt": text}) for each in files if (text := _text(each))]
    elif not source.is_file():
        raise FileNotFoundError(
            f"prompts not found: {source}; give a .txt or .jsonl file or a folder of .txt"
        )
    else:
        lines = [line for line in source.read_text().splitlines() if line.strip()]
        is_json = source.suffix == ".jsonl"
        found = [_prompt(f"{i:05d}", line, is_json, f"{source} line {i + 1}") for i, line in enumerate(lines)]
    if not found:
        raise ValueError(f"no prompts in {source}")
    return found[:limit]


def _text(file: Path) -> str:
    return " ".join(file.read_text().split())


def _prompt(name: str, line: str, is_json: bool, place: str) -> Prompt:
    if not is_json:
        return Prompt(name, line.strip(), {"prompt": line.strip()})
    try:
        record = json.loads(line)
        text = next(record[key] for key in _KEYS if key in record)
        if not isinstance(text, str) or not text.strip():
            raise TypeError
    except (ValueError, TypeError, StopIteration, AttributeError):
        raise ValueError(f"{place} is no JSON object with a text as {' or '.join(_KEYS)}") from None
    return Prompt(name, text.strip(), record)


def write_geneval(folder: Path, prompts: Sequence[Prompt], images: np.ndarray) -> None:
    """A folder for each prompt; images M*K S S 3 uint8, a prompt's K in a row."""
    for i, (prompt, pictures) in enumerate(zip(prompts, _by_prompt(images, prompts), strict=True)):
        place = folder / f"{i:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        (place / "metadata.jsonl").write_text(json.dumps({**prompt.record, "prompt": prompt.text}))
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(place / "samples" / f"{number:04d}.png")


def write_dpg(folder: Path, prompts: Sequence[Prompt], images: np.ndarray) -> None:
    """A 2 x 2 grid for each prompt; images M*4 S S 3 uint8.

    DPG-Bench's judge crops the pictures again by its `--resolution`, which is S.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for prompt, (first, second, third, fourth) in zip(prompts, _by_prompt(images, prompts), strict=True):
        rows = (np.concatenate(row, axis=1) for row in ((first, second), (third, fourth)))
        Image.fromarray(np.concatenate(list(rows))).save(folder / f"{prompt.id}.png")


def _by_prompt(images: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """M K S S 3"""
    return images.reshape(len(prompts), -1, *images.shape[1:])


WRITERS = {"geneval": write_geneval, "dpg": write_dpg}
