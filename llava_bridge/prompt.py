"""Prompt templates: LLaVA-1.5's two, and any language model's own chat template.

A conversation is rendered to segments, each prompt or answer, whose tokens `labels` makes. An answer segment
opens with the blank that follows `ASSISTANT:`: at inference the prompt ends before it, so a tokenizer that
makes the blank a token of its own has to predict it. It ends with what the template closes an answer with,
whatever the tokenizer's eos is: at inference that is where the answer stops (`stop_ids`).

Source: LLaVA c121f04, llava/conversation.py (conv_vicuna_v1, conv_llava_plain) and llava/train/train.py
(preprocess_v1, preprocess_plain); own code. Deviations: a sample without a supervised token is refused here
and trains on nothing there; a leading system turn is the conversation's system prompt here and dropped there.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from encoder.data.records import IMAGE, Refuse, stop_at
from encoder.runtime.config import choose
from llava_bridge.config import Template
from llava_bridge.labels import IGNORE as IGNORE  # part of this module's interface
from llava_bridge.labels import Encoded, Segment, first_supervised, fit, length_fault, tokenise

_RECORDS_AT_ONCE = 1000  # character spans of many texts take much memory
_PROBE = ("what is this", "yes")  # the plainest conversation, which every template must render
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
Turns = Sequence[tuple[str, str]]  # questions and their answers


def read_turns(record: Mapping) -> list[tuple[str, str]]:
    """A LLaVA record's (question, answer) pairs. A leading system turn is not among them (`read_system`), a
    leading answer is dropped, as LLaVA does; `<image>` moves to the front of its turn.

    Raises:
        ValueError: the turns do not alternate, or the last question has no answer.
    """
    turns = list(record["conversations"])
    if turns and turns[0]["from"] == "system":
        turns = turns[1:]
    if turns and turns[0]["from"] == "gpt":
        turns = turns[1:]
    speakers = [turn["from"] for turn in turns]
    if not turns or speakers != ["human", "gpt"] * (len(turns) // 2):
        shown = ", ".join(speakers[:8])
        raise ValueError(f"sample {record.get('id')}: turns must alternate human, gpt; got [{shown}]")
    questions = [_image_first(turn["value"]) for turn in turns[::2]]
    return list(zip(questions, [turn["value"].strip() for turn in turns[1::2]], strict=True))


def read_system(record: Mapping) -> str | None:
    """The text of a record's leading system turn, None where there is none or it is blank."""
    turns = record["conversations"]
    return (turns[0]["value"].strip() or None) if turns and turns[0]["from"] == "system" else None


def _image_first(question: str) -> str:
    if IMAGE not in question:
        return question.strip()
    return f"{IMAGE}\n{question.replace(IMAGE, '').strip()}".strip()


def render_plain(
    turns: Turns, tokenizer: PreTrainedTokenizerBase, system: str | None = None
) -> list[Segment]:
    """Stage 1: picture, caption, newline. The question's words are thrown away and no end token is
    supervised.

    Raises:
        ValueError: there is a system prompt.
    """
    if system is not None:
        raise ValueError("template plain has no system prompt, and the record opens with a system turn")
    question, caption = turns[0]
    picture = [Segment(IMAGE, False)] if IMAGE in question else []
    return [*picture, Segment(caption + "\n", True)]


def render_vicuna_v1(
    turns: Turns, tokenizer: PreTrainedTokenizerBase, system: str | None = None
) -> list[Segment]:
    """Stage 2 and evaluation: `SYSTEM USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>`; each end token
    is supervised. system: takes the place of LLaVA's own.

    Raises:
        ValueError: the tokenizer has no end token.
    """
    if tokenizer.eos_token is None:
        raise ValueError(
            "the tokenizer has no eos token, with which template vicuna_v1 closes an answer; set its "
            "eos_token, or use template chat"
        )
    segments = [Segment(f"{system or SYSTEM} ", False)]
    for question, answer in turns:
        segments += [
            Segment(f"USER: {question} ASSISTANT:", False),
            Segment(f" {answer}{tokenizer.eos_token}", True),
        ]
    return segments


def render_chat(turns: Turns, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> list[Segment]:
    """The tokenizer's own chat template (Llama-3, Qwen, Mistral, Gemma, ...); each answer is supervised with
    what the template closes it with.

    The template is rendered up to each answer and through it; what the second adds is the answer. A template
    with generation marks gives the same mask, and most have none.

    Raises:
        ValueError: there is no template, it refuses the conversation or has no place for the system prompt,
            it does not write the question or the answer as they are or closes an answer with nothing, or it
            writes an earlier turn otherwise once another follows.
    """
    messages = [{"role": "system", "content": system}] if system is not None else []
    segments, done = [], ""
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        opened = _apply_chat_template(tokenizer, messages, add_generation_prompt=True)
        messages.append({"role": "assistant", "content": answer})
        closed = _apply_chat_template(tokenizer, messages)
        if not (opened.startswith(done) and closed.startswith(opened)):
            raise ValueError(
                "the tokenizer's chat template changes earlier turns as a conversation grows, so no label "
                "mask fits it; set a template that does not, or use template vicuna_v1"
            )
        if question not in opened[len(done) :]:
            raise ValueError("the tokenizer's chat template does not write the question as it is")
        end = len(opened) + _answer_length(closed[len(opened) :], answer, tokenizer)
        segments += [Segment(opened[len(done) :], False), Segment(closed[len(opened) : end], True)]
        done = closed[:end]
    if system is not None and not _writes_system(system, segments[0].text, messages[1:2], tokenizer):
        raise ValueError("the tokenizer's chat template has no place for a system prompt")
    return segments


def _apply_chat_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict], **options) -> str:
    if tokenizer.chat_template is None:
        raise ValueError("the language model's tokenizer has no chat template; use template vicuna_v1")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # of any kind: its own words, or whatever its operations raise
        words = " ".join(str(error).split())
        raise ValueError(f"the tokenizer's chat template refuses the conversation: {words}") from None


def _writes_system(
    system: str, opened: str, question: list[dict], tokenizer: PreTrainedTokenizerBase
) -> bool:
    without = _apply_chat_template(tokenizer, question, add_generation_prompt=True)
    return system in opened and opened != without


def _answer_length(text: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Characters of `text`, which a chat template adds for an answer, through what closes the answer: the
    first special tokens after it, else all that follows (without blanks at its end, if there is more)."""
    start = text.find(answer)
    if start < 0 or text[:start].strip():
        raise ValueError(
            "the tokenizer's chat template does not write an answer as it is after its own generation prompt"
        )
    end = start + len(answer)
    tail = text[end:]
    if not tail:
        raise ValueError("the tokenizer's chat template closes an answer with nothing, so none would end")
    closing = _special_tokens(tokenizer, len(tokenizer), tokenizer.eos_token).search(tail)
    return end + (closing.end() if closing else len(tail.rstrip()) or len(tail))


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: PreTrainedTokenizerBase, num_tokens: int, eos: str | None) -> re.Pattern:
    """One special token or several in a row; a tokenizer whose tokens have changed is another one."""
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = sorted({*tokens, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile(f"(?:{'|'.join(map(re.escape, tokens))})+" if tokens else r"(?!)")


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
        return _apply_chat_template(tokenizer, message, add_generation_prompt=True)
    return f"{SYSTEM} USER: {question} ASSISTANT:"


def answer_text(answer: str, template: Template = "vicuna_v1") -> str:
    """An answer as it follows `question_prompt`."""
    return answer.strip() if template == "chat" else f" {answer.strip()}"


def stop_ids(template: Template, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which a generated answer stops: the tokenizer's eos and, where it is one token, what the
    template closes an answer with."""
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if template == "chat":
        closing = render_chat([_PROBE], tokenizer)[-1].text.partition(_PROBE[1])[2]
        closing_ids = tokenizer(closing, add_special_tokens=False)["input_ids"]
        ids += closing_ids if len(closing_ids) == 1 else []
    return list(dict.fromkeys(ids))


def encode_conversations(
    records: Sequence[Mapping],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    num_image_tokens: int = 1,
    max_length: int | None = None,
    refuse: Refuse = stop_at,
) -> list[Encoded | None]:
    """Tokenise records together; each `<image>` becomes `num_image_tokens` placeholders and the text beyond
    `max_length` is cut. None: nothing is cut, and no sample refused for its length.

    refuse: told of each sample that cannot be rendered, has no supervised token left or whose picture does
    not fit in `max_length`; its place in the result is None.

    Raises:
        ValueError: the template cannot render even the plainest conversation; what `refuse` raises.
    """
    render = choose(TEMPLATES, template, "prompt template")
    render([_PROBE], tokenizer)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    encoded: list[Encoded | None] = [None] * len(records)
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        rendered: dict[int, list[Segment]] = {}
        for i, record in enumerate(records[start : start + _RECORDS_AT_ONCE], start):
            try:
                rendered[i] = render(read_turns(record), tokenizer, read_system(record))
            except ValueError as error:
                _refuse(record, error, refuse)
        samples = tokenise(list(rendered.values()), tokenizer, adds_bos=template != "chat")
        for i, sample in zip(rendered, samples, strict=True):
            if max_length is None:
                encoded[i] = sample
                continue
            (marks,) = np.nonzero(sample.input_ids == image_id)
            mark = int(marks[0]) if len(marks) else -1
            fault = length_fault(mark, first_supervised(sample), num_image_tokens, max_length)
            if fault is None:
                encoded[i] = fit(sample, image_id, num_image_tokens, max_length)
            else:
                _refuse(records[i], ValueError(fault), refuse)
    return encoded


def _refuse(record: Mapping, error: ValueError, refuse: Refuse) -> None:
    name = f"sample {record.get('id')}"
    refuse(name, str(error).removeprefix(f"{name}: "))
