"""Label masks against hand-written ones, and refusals of samples that would train on nothing."""

import pytest

from llava_bridge.prompt import IGNORE, SYSTEM, encode_conversations, question_prompt, read_turns
from llava_bridge.tokenizer import build_tokenizer


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
