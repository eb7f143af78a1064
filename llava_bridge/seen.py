"""How many tokens of the questions' pictures the language model saw, as metrics beside its scores."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encoder.runtime.stage import write_json
from llava_bridge.config import TOKENS_SEEN

_SEEN = "image_tokens.json"  # {tokens of a picture: how many questions' pictures had so many}


def read_tokens_seen(out_dir: Path, counts: Mapping[int, int], base: int) -> dict[str, dict[str, Any]]:
    """What all attempts of an evaluation saw, `counts` those of this one, which are noted in its folder.

    base: tokens of one view. Nothing where no picture was asked about.
    """
    file, seen = out_dir / _SEEN, Counter(counts)
    if file.is_file():
        seen.update({int(tokens): count for tokens, count in json.loads(file.read_text()).items()})
    write_json(file, dict(sorted(seen.items())))
    return tokens_seen(seen, base)


def tokens_seen(counts: Mapping[int, int], base: int) -> dict[str, dict[str, Any]]:
    """Tokens of one view, and the mean and the maximum over the pictures of all questions."""
    num = sum(counts.values())
    if not num:
        return {}
    values = (base, sum(tokens * count for tokens, count in counts.items()) / num, max(counts))
    about = {"stderr": None, "unit": "tokens", "higher_is_better": None, "num_samples": num}
    return {key: {"value": value, **about} for key, value in zip(TOKENS_SEEN, values, strict=True)}
