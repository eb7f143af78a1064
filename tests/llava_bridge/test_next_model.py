"""LLaVA-NeXT around the frozen tower: a picture's sequence written out by hand, transformers' own model of
the same weights, folders that reload exactly."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)

import llava_bridge.model
from llava_bridge.any_resolution.model import LlavaNextOverTokens, views_of
from llava_bridge.lmms import LlavaLmms
from llava_bridge.model import adopt, build, load, save
from llava_bridge.prompt import question_prompt

TILES = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
SIZES = [(40, 70), (64, 64), (30, 100), (90, 35), (5, 350)]  # the last one is a line


@pytest.fixture
def llava(llm):
    model, processor = build("tiny", None, llm, "eager", seed=0, tiles=TILES)
    return model.eval(), processor


@pytest.fixture
def pictures():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]


@pytest.fixture
def inputs(llava, pictures):
    text = [question_prompt("what is this", 1)] * len(pictures)
    return llava[1](images=pictures, text=text, padding=True, return_tensors="pt")


def sequence_by_hand(model, views, picture) -> torch.Tensor:
    """A picture's sequence (L D_llm), token by token."""
    g, side = views.grid, views.side
    pixels = torch.from_numpy(views.cut(picture)).permute(0, 3, 1, 2) / 255
    maps = model.model.multi_modal_projector(model.model.vision_tower(pixels).last_hidden_state)
    canvas = views.choose((picture.height, picture.width))
    rows, columns = canvas[0] // side, canvas[1] // side
    kept_rows, kept_columns = views.kept((picture.height, picture.width))
    top, left = (rows * g - kept_rows) // 2, (columns * g - kept_columns) // 2
    sequence = list(maps[0])
    for y in range(top, top + kept_rows):
        for x in range(left, left + kept_columns):
            tile = 1 + (y // g) * columns + x // g
            sequence.append(maps[tile, (y % g) * g + x % g])
        sequence.append(model.model.image_newline)
    return torch.stack(sequence)


def test_sequences_are_those_written_by_hand(llava, inputs, pictures):
    model, processor = llava
    views = views_of(processor)
    found = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True)
    for sequence, picture in zip(found.pooler_output, pictures, strict=True):
        assert len(sequence) == views.num_tokens((picture.height, picture.width))
        torch.testing.assert_close(sequence, sequence_by_hand(model, views, picture), atol=1e-6, rtol=1e-5)
    assert len(found.pooler_output[-1]) == 4  # of a line the first view alone


def test_logits_are_those_of_transformers_own_model_of_the_same_weights(llava, inputs, tmp_path):
    model, processor = llava
    save(model, processor, tmp_path)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(theirs) is LlavaNextForConditionalGeneration
    expected = theirs(**inputs).logits
    assert torch.equal(model(**inputs).logits, expected)

    counted = zip(inputs["pixel_values"], count_views(processor, inputs), strict=True)
    views = torch.cat([padded[:count] for padded, count in counted])
    tokens = model.model.vision_tower(views).last_hidden_state
    text = {name: value for name, value in inputs.items() if name != "pixel_values"}
    torch.testing.assert_close(model(**text, image_tokens=tokens).logits, expected, atol=1e-5, rtol=0)
    model.train()  # in training, live pixels take the path of cached tokens
    torch.testing.assert_close(model(**text, pixel_values=views).logits, expected, atol=1e-5, rtol=0)


def count_views(processor, inputs) -> list[int]:
    return [views_of(processor).num_views(tuple(size)) for size in inputs["image_sizes"].tolist()]


def test_saved_folder_reloads_bit_exactly_with_its_newline(llava, inputs, pictures, tmp_path):
    model, processor = llava
    newline = model.model.image_newline
    assert newline.shape == (32,) and 0.5 < newline.std() * 32**0.5 < 1.5  # N(0, 1 / width)
    save(model, processor, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).image_grid_pinpoints[0] == [64, 32]  # the tall canvas first
    reloaded, reloaded_processor = load(tmp_path, "eager", torch.float32)
    state = reloaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert isinstance(reloaded_processor, LlavaNextProcessor)
    again = reloaded_processor(
        images=pictures, text=[question_prompt("what is this", 1)] * 5, padding=True, return_tensors="pt"
    )
    assert all(torch.equal(again[name], value) for name, value in inputs.items())
    anyones = AutoProcessor.from_pretrained(tmp_path)(images=pictures, text=["<image>"] * 5, padding=True)
    assert np.shape(anyones["pixel_values"]) == tuple(inputs["pixel_values"].shape)
    assert type(adopt(reloaded)) is LlavaNextOverTokens


def test_newline_is_drawn_from_the_seed_and_learns(llava, llm, inputs):
    model, processor = llava
    same, other = (build("tiny", None, llm, "eager", seed, tiles=TILES)[0] for seed in (0, 1))
    assert torch.equal(same.model.image_newline, model.model.image_newline)
    assert not torch.equal(other.model.image_newline, model.model.image_newline)
    model.train()
    views = torch.rand(sum(count_views(processor, inputs)), 3, 32, 32)
    inputs = {**inputs, "pixel_values": views}
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.model.image_newline.grad.abs().sum() > 0


def test_batch_of_text_gives_newline_and_projector_a_zero_gradient_not_none(llava):
    model, processor = llava
    text = processor.tokenizer(["what is this a cat"], return_tensors="pt")
    sizes = torch.zeros(0, 2, dtype=torch.long)
    given = {"image_tokens": torch.randn(1, 4, 24), "image_sizes": sizes}
    loss = model(**text, labels=text["input_ids"], **given).loss
    assert loss == model(**text, labels=text["input_ids"]).loss
    loss.backward()
    assert (model.model.multi_modal_projector.linear_1.weight.grad == 0).all()
    assert (model.model.image_newline.grad == 0).all()


def test_the_whole_picture_alone_gets_no_newline(llava):
    model, processor = llava
    ids = torch.full((1, 6), processor.image_token_id)
    ids[:, 4:] = 9
    tokens = torch.randn(1, 4, 24)
    expected = model.model.get_input_embeddings()(ids)
    expected[:, :4] = model.model.multi_modal_projector(tokens)
    found = model(input_ids=ids, image_tokens=tokens).logits
    torch.testing.assert_close(found, model(inputs_embeds=expected).logits)


def test_grid_that_is_not_square_is_refused(llm, monkeypatch):
    def flat(source, **options):
        encoder = original(source, **options)
        encoder.grid = (1, 4)
        return encoder

    original = llava_bridge.model.load_encoder
    monkeypatch.setattr(llava_bridge.model, "load_encoder", flat)
    with pytest.raises(ValueError, match="grid of 'tiny' is 1 x 4, not square; use framework=llava_1_5"):
        build("tiny", None, llm, "eager", 0, tiles=TILES)


def test_answers_do_not_depend_on_the_batch_and_count_the_tokens_seen(llava, pictures):
    def answers(batch_size: int) -> tuple[list[str], dict]:
        lm = LlavaLmms(*llava, batch_size=batch_size, max_new_tokens=5)
        lm.task_dict = {"task": {"test": [{"image": picture} for picture in pictures]}}
        requests = [
            SimpleNamespace(args=(text, {}, lambda doc: [doc["image"]], i, "task", "test"))
            for i, text in enumerate(["what is this", "two birds", "red cat", "a", "is it big"])
        ]
        return lm.generate_until(requests), dict(lm.pictures.num_tokens)

    views = views_of(llava[1])
    texts, seen = answers(5)
    assert answers(1) == (texts, seen) and answers(2) == (texts, seen)
    counted = Counter(views.num_tokens((picture.height, picture.width)) for picture in pictures)
    assert seen == counted and len(counted) > 2
