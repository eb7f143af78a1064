"""Label masks against hand-written ones, and refusals of samples that would train on nothing."""

import pytest

from llava_bridge.demo_llm.tokenizer import build_tokenizer
from llava_bridge.labels import IGNORE
from llava_bridge.prompt import SYSTEM, encode_conversations, question_prompt, read_turns


def record(*values: str, name: str = "sample-7") -> dict:
    speakers = ["human", "gpt"] * len(values)
    return {
        "id": name,
        "conversations": [
            {"from": who, "value": value} for who, value in zip(speakers, values, strict=False)
        ],
    }


def words(tokenizer, ids) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens([int(token) for token in ids if token != IGNORE]))


def test_vicuna_mask_is_the_hand_written_one(tokenizer):
    sample = encode_conversations(
        [record("what is this\n<image>", "a red cat", "is it big?", "yes")], "vicuna_v1", tokenizer, 3, 100
    )[0]
    input_ids = sample.input_ids.tolist()
    system = words(tokenizer, tokenizer(SYSTEM)["input_ids"])
    text = f"<s> {system} USER : <image> <image> <image> \n what is this ASSISTANT : a red cat </s> "
    text += "USER : is it big ? ASSISTANT : yes </s>"
    assert words(tokenizer, input_ids) == text
    expected = [IGNORE] * len(sample.labels)
    first = input_ids.index(tokenizer.convert_tokens_to_ids("red")) - 1
    expected[first : first + 4] = input_ids[first : first + 4]  # a red cat </s>
    expected[-2:] = input_ids[-2:]  # yes </s>
    assert sample.labels.tolist() == expected


def test_plain_supervises_caption_and_newline_but_no_end_token(tokenizer):
    sample = encode_conversations([record("what is this <image>", "a red cat")], "plain", tokenizer, 2, 100)[
        0
    ]
    assert words(tokenizer, sample.input_ids) == "<s> <image> <image> a red cat \n"
    assert words(tokenizer, sample.labels) == "a red cat \n"


def test_answers_that_repeat_the_question_are_masked_by_place_not_by_words(tokenizer):
    sample = encode_conversations([record("yes", "yes", "yes </s>", "yes")], "vicuna_v1", tokenizer, 0, 100)[
        0
    ]
    assert words(tokenizer, sample.labels) == "yes </s> yes </s>"
    assert [i for i, label in enumerate(sample.labels) if label != IGNORE][-2:] == [
        len(sample.labels) - 2,
        len(sample.labels) - 1,
    ]


def test_evaluation_prompt_is_the_beginning_of_the_training_text(tokenizer):
    sample = encode_conversations([record("<image>\nwhat is this", "a cat")], "vicuna_v1", tokenizer, 1, 100)[
        0
    ]
    prompt = tokenizer(question_prompt("what is this", 1), add_special_tokens=False)["input_ids"]
    assert sample.input_ids[1 : 1 + len(prompt)].tolist() == prompt
    assert sample.labels[1 + len(prompt)] != IGNORE


def test_leading_answer_is_dropped():
    turns = [
        {"from": "gpt", "value": "hello"},
        {"from": "human", "value": "what"},
        {"from": "gpt", "value": "cat"},
    ]
    assert read_turns({"id": 1, "conversations": turns}) == [("what", "cat")]


@pytest.mark.parametrize("speakers", [["human", "human"], ["human", "gpt", "human"], []])
def test_turns_that_do_not_alternate_are_refused_by_name(speakers):
    with pytest.raises(ValueError, match="sample 41: turns must alternate"):
        read_turns({"id": 41, "conversations": [{"from": who, "value": "what"} for who in speakers]})


def test_fully_masked_sample_is_an_error_that_names_it(tokenizer):
    with pytest.raises(ValueError, match=r"sample-9.*no token carries a loss"):
        encode_conversations(
            [record("what is this", "yes", name="sample-9")], "vicuna_v1", tokenizer, 0, max_length=20
        )


def test_picture_that_does_not_fit_is_an_error_that_names_it(tokenizer):
    with pytest.raises(ValueError, match=r"sample-7.*do not fit in max_length 40"):
        encode_conversations([record("<image> what", "yes")], "vicuna_v1", tokenizer, 60, max_length=40)


def test_word_tokenizer_reads_back_what_it_wrote(tmp_path):
    tokenizer = build_tokenizer(["there is a red cat"])
    tokenizer.save_pretrained(tmp_path)
    text = "There is a red cat, B. cat?"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    assert type(tokenizer).from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{{ '\\n' }}"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|eot_id|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def chat_tokenizer(template: str, eos: str, bos: str | None, marks: list[str]):
    tokenizer = build_tokenizer(["what is this a red cat it big yes user assistant"])
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.eos_token, tokenizer.bos_token, tokenizer.chat_template = eos, bos, template
    return tokenizer


@pytest.fixture(params=["qwen", "llama-3"])
def chat(request):
    if request.param == "qwen":
        text = "<|im_start|> user \n <image> <image> \n what is this <|im_end|> \n "
        text += "<|im_start|> assistant \n a red cat <|im_end|> \n "
        text += "<|im_start|> user \n is it big <|im_end|> \n <|im_start|> assistant \n yes <|im_end|>"
        tokenizer = chat_tokenizer(CHATML, "<|im_end|>", None, ["<|im_start|>", "<|im_end|>"])
        return tokenizer, text, "a red cat <|im_end|> yes <|im_end|>"
    head = "<|start_header_id|> {} <|end_header_id|> \n \n "
    text = "<s> " + head.format("user") + "<image> <image> \n what is this <|eot_id|> "
    text += head.format("assistant") + "a red cat <|eot_id|> " + head.format("user") + "is it big <|eot_id|> "
    text += head.format("assistant") + "yes <|eot_id|>"
    marks = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return chat_tokenizer(LLAMA_3, "<|eot_id|>", "<s>", marks), text, "a red cat <|eot_id|> yes <|eot_id|>"


def test_chat_mask_is_the_hand_written_one_and_that_of_the_generation_marks(chat):
    tokenizer, text, answers = chat
    turns = record("what is this <image>", "a red cat", "is it big", "yes")
    sample = encode_conversations([turns], "chat", tokenizer, 2, 100)[0]
    assert words(tokenizer, sample.input_ids) == text
    assert words(tokenizer, sample.labels) == answers
    spoken = ["what is this", "a red cat", "is it big", "yes"]
    roles = ["user", "assistant"] * 2
    messages = [{"role": role, "content": text} for role, text in zip(roles, spoken, strict=True)]
    marked = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    kept = [i for i, m in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if m]
    assert [label for label in sample.labels.tolist() if label != IGNORE] == kept


def test_chat_prompt_of_evaluation_is_the_beginning_of_the_training_text(chat):
    tokenizer, text, _ = chat
    prompt = question_prompt("what is this", 1, "chat", tokenizer)
    shown = words(tokenizer, tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert text.replace("<image> <image>", "<image>").startswith(shown)
    assert shown.endswith("\n")


def test_template_that_rewrites_earlier_turns_is_refused():
    template = "{{ messages | length }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer = chat_tokenizer(template, "</s>", "<s>", [])
    with pytest.raises(ValueError, match="changes earlier turns"):
        encode_conversations([record("what", "yes")], "chat", tokenizer, 0, 100)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        encode_conversations([record("what", "yes")], "chat", tokenizer, 0, 100)
