"""Rendered conversations to token ids and labels: what is supervised, a picture's tokens, the cut.

The whole text is tokenised once, as inference does it, and a token is supervised if its last character lies
in an answer, so a mask cannot drift from the text as it does where rounds are tokenised again and their
lengths subtracted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from encoder.data.records import IMAGE

IGNORE = -100  # label of a token without loss


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a rendered conversation; an answer is supervised, the rest is not."""

    text: str
    is_answer: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one sample, image placeholders expanded, and its labels (`IGNORE` where there is no
    loss); both L, int32."""

    input_ids: np.ndarray
    labels: np.ndarray


def tokenise(
    rendered: Sequence[Sequence[Segment]],
    tokenizer: PreTrainedTokenizerBase,
    num_image_tokens: int | Sequence[int | Sequence[int]] = 1,
    adds_bos: bool = True,
) -> list[Encoded]:
    """Rendered conversations to ids and labels, nothing cut. num_image_tokens: what a placeholder becomes, in
    all conversations or in each; a sequence has a number for each of its placeholders. adds_bos: the
    tokenizer's first token goes before each, where it has one; a chat template writes its own."""
    if not rendered:
        return []
    texts = ["".join(segment.text for segment in segments) for segments in rendered]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    encoded = []
    counts = [num_image_tokens] * len(texts) if isinstance(num_image_tokens, int) else num_image_tokens
    rows = zip(rendered, batch["input_ids"], batch["offset_mapping"], counts, strict=True)
    for segments, ids, offsets, count in rows:
        labels = mask_prompt(segments, ids, offsets)
        sample = expand_image(np.array(ids, dtype=np.int32), labels, image_id, count)
        bos = tokenizer.bos_token_id
        if adds_bos and bos is not None and ids[:1] != [bos]:  # Qwen has none
            sample = Encoded(np.insert(sample.input_ids, 0, bos), np.insert(sample.labels, 0, IGNORE))
        encoded.append(sample)
    return encoded


def mask_prompt(
    segments: Sequence[Segment], ids: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Labels of the tokens `ids` at the character spans `offsets` of the joined segments."""
    lengths = [len(segment.text) for segment in segments]
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    places = np.searchsorted(
        np.cumsum(lengths), ends - 1, side="right"
    )  # the segment that holds each token's last character
    is_answer = np.array([segment.is_answer for segment in segments])[places] & (ends > starts)
    return np.where(is_answer, ids, IGNORE).astype(np.int32)


def expand_image(
    ids: np.ndarray, labels: np.ndarray, image_id: int, num_image_tokens: int | Sequence[int]
) -> Encoded:
    """Repeat each picture placeholder once for each of the picture's tokens (of all alike, or each its own
    number); they carry no loss."""
    repeats = np.ones(len(ids), np.int64)
    repeats[ids == image_id] = num_image_tokens
    ids, labels = ids.repeat(repeats), labels.repeat(repeats)
    return Encoded(ids, np.where(ids == image_id, IGNORE, labels))


def fit(sample: Encoded, image_id: int, num_image_tokens: int, max_length: int) -> Encoded:
    """A sample with its picture's tokens, cut at `max_length`."""
    whole = expand_image(sample.input_ids, sample.labels, image_id, num_image_tokens)
    return Encoded(whole.input_ids[:max_length], whole.labels[:max_length])


def first_supervised(sample: Encoded) -> int:
    """The place of a sample's first supervised token, its length where there is none."""
    (places,) = np.nonzero(sample.labels != IGNORE)
    return int(places[0]) if len(places) else len(sample.labels)


def length_fault(mark: int, first: int, num_image_tokens: int, max_length: int) -> str | None:
    """Why a sample cannot be cut at `max_length`, by the places of its picture's one placeholder (-1: it has
    none) and of its first supervised token; None where it can."""
    if mark >= 0 and mark + num_image_tokens > max_length:
        return f"its {num_image_tokens} picture tokens do not fit in max_length {max_length}"
    if first + (num_image_tokens - 1 if 0 <= mark < first else 0) >= max_length:
        return (
            f"no token carries a loss within max_length {max_length}; give it a shorter prompt or a "
            "non-empty answer, or raise max_length"
        )
    return None
