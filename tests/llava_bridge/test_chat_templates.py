"""Chat templates of the field on a tokenizer of bytes: ids are the tokenizer's own, and what closes an answer
is supervised, compared token by token with spans written by hand."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llava_bridge.labels import IGNORE
from llava_bridge.prompt import IMAGE, encode_conversations, question_prompt, read_system, stop_ids

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = 'A chat.' %}{% endif %}{{ system }} "
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} "
    "{% else %}ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n"
# template, tokens (bos and eos first), spans before and in each answer: the second and fourth are supervised
TEMPLATES = {
    "chatml": (
        CHATML,
        [None, "<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        [
            "<|im_start|>user\n<image>\nwhat is this<|im_end|>\n<|im_start|>assistant\n",
            "a red cat<|im_end|>",
            "\n<|im_start|>user\nis it big<|im_end|>\n<|im_start|>assistant\n",
            "yes<|im_end|>",
        ],
    ),
    "gemma": (
        GEMMA,
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        [
            "<bos><start_of_turn>user\n<image>\nwhat is this<end_of_turn>\n<start_of_turn>model\n",
            "a red cat<end_of_turn>",
            "\n<start_of_turn>user\nis it big<end_of_turn>\n<start_of_turn>model\n",
            "yes<end_of_turn>",
        ],
    ),
    "mistral": (
        MISTRAL,
        ["<s>", "</s>"],
        [
            "<s>[INST] <image>\nwhat is this [/INST]",
            " a red cat</s>",
            "[INST] is it big [/INST]",
            " yes</s>",
        ],
    ),
    "llama-3": (
        LLAMA_3,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        [
            f"<|begin_of_text|>{HEAD.format('user')}<image>\nwhat is this<|eot_id|>"
            + HEAD.format("assistant"),
            "a red cat<|eot_id|>",
            f"{HEAD.format('user')}is it big<|eot_id|>{HEAD.format('assistant')}",
            "yes<|eot_id|>",
        ],
    ),
    "vicuna": (
        VICUNA,
        ["<s>", "</s>"],
        [
            "A chat. USER: <image>\nwhat is this ASSISTANT:",
            " a red cat</s>",
            "USER: is it big ASSISTANT:",
            " yes</s>",
        ],
    ),
}


def byte_tokenizer(template, bos, eos, *marks):
    """One token a byte; `marks` are special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = {name: token for name, token in (("bos_token", bos), ("eos_token", eos)) if token}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=[IMAGE, *marks], **named
    )
    fast.chat_template = template
    return fast


@pytest.fixture(params=list(TEMPLATES))
def known(request):
    template, tokens, spans = TEMPLATES[request.param]
    return request.param, byte_tokenizer(template, *tokens), spans


def conversation(*turns, system=None):
    speakers = ["human", "gpt"] * len(turns)
    spoken = [{"from": who, "value": text} for who, text in zip(speakers, turns, strict=False)]
    first = [] if system is None else [{"from": "system", "value": system}]
    return {"id": "x", "image": "a.png", "conversations": first + spoken}


TALK = ("what is this <image>", "a red cat", "is it big", "yes")


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_ids_are_the_templates_own_and_answers_are_supervised_with_their_end(known):
    _, tokenizer, spans = known
    (sample,) = encode_conversations([conversation(*TALK)], "chat", tokenizer, 1, 1000)
    pieces = [ids_of(tokenizer, span) for span in spans]
    assert sample.input_ids.tolist() == [token for piece in pieces for token in piece]
    labels = [token if i % 2 else IGNORE for i, piece in enumerate(pieces) for token in piece]
    assert sample.labels.tolist() == labels
    roles = ["user", "assistant"] * 2
    spoken = ["<image>\nwhat is this", *TALK[1:]]
    messages = [{"role": role, "content": text} for role, text in zip(roles, spoken, strict=True)]
    own = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert own[: len(sample.input_ids)] == sample.input_ids.tolist()
    assert not tokenizer.decode(own[len(sample.input_ids) :]).strip()  # no more than a blank at the end


def test_an_asked_question_begins_the_training_text_and_stops_where_an_answer_closes(known):
    _, tokenizer, spans = known
    assert question_prompt("what is this", 1, "chat", tokenizer) == spans[0]
    closing = ids_of(tokenizer, spans[1])[-1]
    assert stop_ids("chat", tokenizer) == list(dict.fromkeys([tokenizer.eos_token_id, closing]))
    assert stop_ids("vicuna_v1", tokenizer) == [tokenizer.eos_token_id]


def test_a_system_turn_is_the_system_prompt_or_refused_by_name(known):
    name, tokenizer, _ = known
    record, refused = conversation(*TALK, system=" be brief "), {}
    assert read_system(record) == "be brief"
    (sample,) = encode_conversations([record], "chat", tokenizer, 1, 1000, refused.__setitem__)
    if name in ("gemma", "mistral"):
        reason = "System role not supported" if name == "gemma" else "Conversation roles must alternate"
        assert sample is None
        assert list(refused) == ["sample x"]
        assert reason in refused["sample x"]
        return
    assert refused == {}
    text = tokenizer.decode(sample.input_ids)
    assert "be brief" in text
    assert "A chat." not in text
    (without,) = encode_conversations([conversation(*TALK)], "chat", tokenizer, 1, 1000)
    assert [i for i in sample.labels if i != IGNORE] == [i for i in without.labels if i != IGNORE]


def test_vicuna_v1_takes_the_system_turn_and_plain_has_no_place_for_it():
    tokenizer = byte_tokenizer(None, "<s>", "</s>")
    record, refused = conversation("<image> what", "yes", system="be brief"), {}
    (sample,) = encode_conversations([record], "vicuna_v1", tokenizer, 1, 1000)
    assert tokenizer.decode(sample.input_ids) == "<s>be brief USER: <image>\nwhat ASSISTANT: yes</s>"
    assert encode_conversations([record], "plain", tokenizer, 1, 1000, refused.__setitem__) == [None]
    assert "template plain has no system prompt" in refused["sample x"]


def test_a_tokenizer_without_eos_never_trains_the_word_none():
    record = conversation("<image> what", "yes")
    with pytest.raises(ValueError, match="the tokenizer has no eos token"):
        encode_conversations([record], "vicuna_v1", byte_tokenizer(None, "<s>", None), 1, 1000)
    tokenizer = byte_tokenizer(CHATML, None, None, "<|im_start|>", "<|im_end|>")
    (sample,) = encode_conversations([record], "chat", tokenizer, 1, 1000)
    assert tokenizer.decode([i for i in sample.labels if i != IGNORE]) == "yes<|im_end|>"
    assert stop_ids("chat", tokenizer) == ids_of(tokenizer, "<|im_end|>")
    assert stop_ids("vicuna_v1", tokenizer) == []


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "has no chat template; use template vicuna_v1"),
        ("{% for m in messages %}{{ m['content'] }} ", "refuses the conversation"),
        ("{{ 1 // 0 }}", "refuses the conversation: integer division"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "closes an answer with nothing"),
        ("{% for m in messages %}{{ m['content'] | upper }}!{% endfor %}", "not write the question as it is"),
        (CHATML.replace("{{ m['content'] }}<", "{{ m['content'] | replace('yes', 'no') }}<"),
         "does not write an answer as it is"),
        (CHATML.partition("{% if add")[0], "answer as it is after its own generation prompt"),
        (CHATML + "{{ messages | length }}", "changes earlier turns"),
    ],
)  # fmt: skip
def test_a_template_that_renders_nothing_is_refused_with_the_true_reason(template, reason):
    tokenizer = byte_tokenizer(template, None, "</s>", "<|im_start|>", "<|im_end|>")
    with pytest.raises(ValueError, match=reason):
        encode_conversations([conversation("<image> what", "yes")], "chat", tokenizer, 1, 1000)


def test_a_template_that_drops_or_moves_the_system_prompt_is_refused():
    drops = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}#{% endfor %}"
    moves = (
        "{% for m in messages if m['role'] != 'system' %}{% if loop.revindex0 < 2 and messages[0]['role'] == "
        "'system' and m['role'] == 'user' %}{{ messages[0]['content'] }} {% endif %}{{ m['content'] }}#"
        "{% endfor %}"
    )
    record, refused = conversation(*TALK, system="brief"), {}
    for template, reason in ((drops, "no place for a system prompt"), (moves, "changes earlier turns")):
        tokenizer = byte_tokenizer(template, None, "</s>")
        assert encode_conversations([record], "chat", tokenizer, 1, 1000, refused.__setitem__) == [None]
        assert reason in refused["sample x"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (conversation("<image>", "yes", "and"), "turns must alternate human, gpt"),
        ({"id": "x", "conversations": [{"from": "gpt", "value": "yes"}]}, "turns must alternate"),
        ({"id": "x", "conversations": []}, "turns must alternate"),
        (conversation("<image>" + "what " * 200, "yes"), "no token carries a loss within max_length 500"),
        (conversation("what " * 120, "yes", "<image>", "no"), "its 20 picture tokens do not fit"),
    ],
)
def test_a_record_that_cannot_be_used_is_refused_and_the_others_are_kept(record, reason):
    tokenizer, refused = byte_tokenizer(None, "<s>", "</s>"), {}
    good = conversation("<image> what", "yes " * 200)
    samples = encode_conversations([good, record, good], "vicuna_v1", tokenizer, 20, 500, refused.__setitem__)
    assert [sample is None for sample in samples] == [False, True, False]
    assert len(samples[0].input_ids) == 500  # its text is cut, its picture is not
    assert (samples[0].input_ids == tokenizer.convert_tokens_to_ids(IMAGE)).sum() == 20
    assert list(refused) == ["sample x"]
    assert reason in refused["sample x"]
