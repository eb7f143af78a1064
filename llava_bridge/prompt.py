"""Prompt templates and label masks: LLaVA-1.5's two, and any language model's own chat template.

A conversation is rendered to segments, each prompt or answer. The whole text is tokenised once, as
inference does it, and a token is supervised if its last character lies in an answer, so a mask cannot drift
from the text as it does where rounds are tokenised again and their lengths subtracted. An answer segment
opens with the blank that follows `ASSISTANT:`: at inference the prompt ends before it, so a tokenizer that
makes the blank a token of its own has to predict it.

Source: LLaVA c121f04, llava/conversation.py (conv_vicuna_v1, conv_llava_plain) and llava/train/train.py
(preprocess_v1, preprocess_plain); own code. Deviation: a sample without a supervised token is an error
here; there it trains on nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from encoder.data.records import IMAGE
from encoder.runtime.config import choose
from llava_bridge.config import Template

IGNORE = -100  # label of a token without loss
_RECORDS_AT_ONCE = 1000  # character spans of many texts take much memory
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


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


def read_turns(record: Mapping) -> list[tuple[str, str]]:
    """A LLaVA record's (question, answer) pairs. A leading answer is dropped; `<image>` moves to the front
    of its turn.

    Raises:
        ValueError: the turns do not alternate, or the last question has no answer.
    """
    turns = list(record["conversations"])
    if turns and turns[0]["from"] != "human":
        turns = turns[1:]
    speakers = [turn["from"] for turn in turns]
    if not turns or speakers != ["human", "gpt"] * (len(turns) // 2):
        raise ValueError(f"sample {record.get('id')}: turns must alternate human, gpt; got {speakers}")
    questions = [_image_first(turn["value"]) for turn in turns[::2]]
    return list(zip(questions, [turn["value"].strip() for turn in turns[1::2]], strict=True))


def _image_first(question: str) -> str:
    if IMAGE not in question:
        return question.strip()
    return f"{IMAGE}\n{question.replace(IMAGE, '').strip()}".strip()


def render_plain(turns: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """Stage 1: picture, caption, newline. The question's words are thrown away and no end token is
    supervised."""
    question, caption = turns[0]
    picture = [Segment(IMAGE, False)] if IMAGE in question else []
    return [*picture, Segment(caption + "\n", True)]


def render_vicuna_v1(turns: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """Stage 2 and evaluation: `SYSTEM USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>`; each end token
    is supervised."""
    segments = [Segment(SYSTEM + " ", False)]
    for question, answer in turns:
        segments += [
            Segment(f"USER: {question} ASSISTANT:", False),
            Segment(f" {answer}{tokenizer.eos_token}", True),
        ]
    return segments


def render_chat(turns: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """The tokenizer's own chat template (Llama-3, Qwen, ...); each answer is supervised with its end token.

    The template is rendered up to each answer and through it; what the second adds is the answer. A template
    with generation marks gives the same mask, and most have none.

    Raises:
        ValueError: there is no template, or it writes an earlier turn otherwise once another follows.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the language model's tokenizer has no chat template; use template vicuna_v1")
    messages, segments, done = [], [], ""
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        messages.append({"role": "assistant", "content": answer})
        closed = tokenizer.apply_chat_template(messages, tokenize=False)
        if not (opened.startswith(done) and closed.startswith(opened + answer)):
            raise ValueError(
                "the tokenizer's chat template changes earlier turns as a conversation grows, so no label "
                "mask fits it; set a template that does not, or use template vicuna_v1"
            )
        end = len(opened) + len(answer)
        mark = closed.find(tokenizer.eos_token, end)
        end = end if mark < 0 else mark + len(tokenizer.eos_token)
        segments += [Segment(opened[len(done) :], False), Segment(closed[len(opened) : end], True)]
        done = closed[:end]
    return segments


TEMPLATES = {"plain": render_plain, "vicuna_v1": render_vicuna_v1, "chat": render_chat}


def question_prompt(
    question: str,
    num_images: int,
    template: Template = "vicuna_v1",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """The text that asks one question, up to where the answer begins (in `vicuna_v1` before the blank after
    `ASSISTANT:`); pictures come first."""
    question = f"{IMAGE}\n" * num_images + question.replace(IMAGE, "").strip()
    if template == "chat":
        message = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return f"{SYSTEM} USER: {question} ASSISTANT:"


def answer_text(answer: str, template: Template = "vicuna_v1") -> str:
    """An answer as it follows `question_prompt`."""
    return answer.strip() if template == "chat" else f" {answer.strip()}"


def encode_conversations(
    records: Sequence[Mapping],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    num_image_tokens: int,
    max_length: int,
) -> list[Encoded]:
    """Tokenise records together; each `<image>` becomes `num_image_tokens` placeholders and the end beyond
    `max_length` is cut.

    Raises:
        ValueError: a sample has no supervised token left (it is named), or its picture does not fit in
        `max_length`.
    """
    render = choose(TEMPLATES, template, "prompt template")
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    encoded = []
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        chunk = records[start : start + _RECORDS_AT_ONCE]
        rendered = [render(read_turns(record), tokenizer) for record in chunk]
        for record, sample in zip(chunk, tokenise(rendered, tokenizer, num_image_tokens), strict=True):
            _check(record, sample, image_id, max_length)
            encoded.append(Encoded(sample.input_ids[:max_length], sample.labels[:max_length]))
    return encoded


def tokenise(
    rendered: Sequence[Sequence[Segment]], tokenizer: PreTrainedTokenizerBase, num_image_tokens: int
) -> list[Encoded]:
    """Rendered conversations to ids and labels, the first token added and placeholders expanded, nothing
    cut."""
    texts = ["".join(segment.text for segment in segments) for segments in rendered]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    encoded = []
    for segments, ids, offsets in zip(rendered, batch["input_ids"], batch["offset_mapping"], strict=True):
        labels = mask_prompt(segments, ids, offsets)
        sample = expand_image(np.array(ids, dtype=np.int32), labels, image_id, num_image_tokens)
        bos = tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos]:  # Qwen has none, Llama-3's chat template writes it
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


def expand_image(ids: np.ndarray, labels: np.ndarray, image_id: int, num_image_tokens: int) -> Encoded:
    """Repeat each picture placeholder once for each of the picture's tokens; they carry no loss."""
    repeats = np.where(ids == image_id, num_image_tokens, 1)
    ids, labels = ids.repeat(repeats), labels.repeat(repeats)
    return Encoded(ids, np.where(ids == image_id, IGNORE, labels))


def _check(record: Mapping, sample: Encoded, image_id: int, max_length: int) -> None:
    if (sample.input_ids[max_length:] == image_id).any():
        num_placeholders = (sample.input_ids == image_id).sum()
        raise ValueError(
            f"sample {record.get('id')}: its {num_placeholders} picture tokens do not fit in max_length "
            f"{max_length}"
        )
    if (sample.labels[:max_length] == IGNORE).all():
        raise ValueError(
            f"sample {record.get('id')}: no token carries a loss within max_length {max_length}; "
            "give it a shorter prompt or a non-empty answer, or raise max_length"
        )
