"""The frozen encoder inside LLaVA: weights intact, never awake, cached tokens equal to live ones, folders
that reload exactly."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import llava_bridge.model
import llava_bridge.tower
from encoder.runtime.checkpoint import save_tensors
from llava_bridge.model import LlavaOverTokens, build, check_token_count, load, save
from llava_bridge.pictures import CachedPictures
from llava_bridge.prompt import question_prompt
from llava_bridge.tower import FrozenTowerConfig, resize_grid

QUESTIONS = ["what is this", "two birds"]


@pytest.fixture
def llava(llm):
    model, processor = build("tiny", None, llm, "eager", seed=0)
    return model.eval(), processor


@pytest.fixture
def inputs(llava):
    generator = torch.Generator().manual_seed(1)
    pictures = [
        Image.fromarray(torch.randint(0, 256, (40, 50, 3), generator=generator, dtype=torch.uint8).numpy())
        for _ in QUESTIONS
    ]
    return llava[1](
        images=pictures,
        text=[question_prompt(text, 1) for text in QUESTIONS],
        padding=True,
        return_tensors="pt",
    )


def test_encoder_weights_survive_llava_construction(llava):
    encoder = llava[0].model.vision_tower.encoder
    assert (encoder.patches.bias == 0.123).all()  # transformers' initialisation would make it 0
    assert (encoder.norm.weight == 1).all()


def test_processor_gives_pixels_between_0_and_1(inputs):
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)
    assert 0 <= inputs["pixel_values"].min() < 0.2 < 0.8 < inputs["pixel_values"].max() <= 1


def test_token_count_mismatch_is_an_error_before_training(llava):
    model, processor = llava
    processor.patch_size = 8
    with pytest.raises(ValueError, match="writes 16 picture placeholders, the tower 'tiny' gives 4"):
        check_token_count(processor, model.config.vision_config)


def test_tower_cannot_be_woken(llava, inputs):
    model, _ = llava
    model.train()
    assert not any(module.training for module in model.model.vision_tower.modules())
    model.model.vision_tower.encoder.requires_grad_(True)
    tokens = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
    assert tokens.grad_fn is None
    model.eval()
    assert not any(parameter.requires_grad for parameter in model.model.vision_tower.parameters())


def test_dtype_changes_leave_the_encoder_alone(llava, inputs):
    model, _ = llava
    before = model.model.vision_tower.encoder.patches.weight.clone()
    model.bfloat16()
    assert torch.equal(model.model.vision_tower.encoder.patches.weight, before)
    assert model(**inputs).logits.dtype == torch.bfloat16


def test_cached_tokens_give_the_logits_of_live_pixels(llava, inputs):
    model, _ = llava
    tokens = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
    text = {name: value for name, value in inputs.items() if name != "pixel_values"}
    assert torch.equal(model(**text, image_tokens=tokens).logits, model(**inputs).logits)
    model.train()  # in training, live pixels take the path of the cached tokens
    assert torch.equal(model(**text, image_tokens=tokens).logits, model(**inputs).logits)


def test_batch_of_text_gives_the_projector_a_zero_gradient_not_none(llava, inputs):
    model, processor = llava
    text = processor.tokenizer(["what is this a cat"], return_tensors="pt")
    loss = model(**text, labels=text["input_ids"], image_tokens=torch.randn(1, 4, 24)).loss
    assert loss == model(**text, labels=text["input_ids"]).loss
    loss.backward()
    assert (model.model.multi_modal_projector.linear_1.weight.grad == 0).all()


def test_saved_folder_reloads_bit_exactly(llava, inputs, tmp_path):
    model, processor = llava
    save(model, processor, tmp_path)
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager").eval()
    reloaded_processor = AutoProcessor.from_pretrained(tmp_path)
    state = reloaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert any(
        "positions" in name for name in state
    )  # buffers that were not saved come back as random memory
    assert torch.equal(reloaded(**inputs).logits, model(**inputs).logits)
    assert reloaded_processor.image_processor.image_size == 32
    assert type(model) is LlavaOverTokens


def test_bf16_reload_keeps_the_encoder_in_fp32(llava, inputs, tmp_path):
    save(*llava, tmp_path)
    model, _ = load(tmp_path, "eager", torch.bfloat16)
    original = llava[0].model.vision_tower.encoder
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(model.model.vision_tower.encoder.patches.weight, original.patches.weight)
    assert torch.equal(model.model.vision_tower.encoder.positions, original.positions)
    assert model(**inputs).logits.dtype == torch.bfloat16


def test_missing_folder_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="run its training stage first"):
        load(tmp_path, "eager", torch.float32)


@pytest.mark.parametrize("num_tokens", [1, 4, 9, 16, 49])
def test_resized_grid_is_pils_bilinear_resize_of_each_channel(num_tokens):
    tokens = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    side = int(num_tokens**0.5)
    found = resize_grid(tokens, (4, 4), num_tokens)
    for row, expected in zip(found, tokens, strict=True):
        for channel in range(3):
            image = Image.fromarray(expected[:, channel].view(4, 4).numpy())
            image = np.array(image.resize((side, side), Image.Resampling.BILINEAR))
            torch.testing.assert_close(row[:, channel].view(side, side), torch.from_numpy(image))


@pytest.mark.parametrize("num_tokens", [1, 9])
def test_resized_tower_counts_caches_and_reloads_alike(llm, tmp_path, num_tokens):
    model, processor = build("tiny", None, llm, "eager", 0, num_tokens)
    assert (model.config.image_seq_length, model.config.vision_config.num_encoder_tokens) == (num_tokens, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    pictures, texts = [Image.fromarray(each) for each in pixels], [question_prompt(q, 1) for q in QUESTIONS]
    inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_index).sum() == 2 * num_tokens
    live = model.eval()(**inputs).logits

    given = model.model.vision_tower.encoder.encode(inputs["pixel_values"])  # 4 tokens, as encoder.tokens
    save_tensors(tmp_path / "tokens.safetensors", {"tokens": given.detach()})
    index = {"fingerprint": "tiny-1", "keys": ["a", "b"], "grid": [2, 2]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    tokens = CachedPictures(tmp_path, num_tokens).stack(["a", "b"])
    assert tokens.shape == (2, num_tokens, 24)
    text = {name: value for name, value in inputs.items() if name != "pixel_values"}
    assert torch.equal(model(**text, image_tokens=tokens).logits, live)

    save(model, processor, tmp_path / "model")
    reloaded, reloaded_processor = load(tmp_path / "model", "eager", torch.float32)
    again = reloaded_processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(reloaded(**again).logits, live)


def test_what_is_no_square_grid_is_refused_only_where_it_would_be_resized(llm, monkeypatch, inputs):
    with pytest.raises(ValueError, match="num_image_tokens 5 is no square grid; take 4 or 9"):
        build("tiny", None, llm, "eager", 0, 5)

    def flat(source, **options):
        encoder = original(source, **options)
        encoder.grid = (1, 4)
        return encoder

    original = llava_bridge.tower.load_encoder
    for module in (llava_bridge.tower, llava_bridge.model):
        monkeypatch.setattr(module, "load_encoder", flat)
    model, _ = build("tiny", None, llm, "eager", 0)
    assert torch.isfinite(model(**inputs).logits).all()
    with pytest.raises(ValueError, match="a grid of 1 x 4, and only a square one can be resized"):
        build("tiny", None, llm, "eager", 0, 4)


def test_tower_refuses_an_encoder_with_another_number_of_tokens(llava):
    settings = llava[0].model.vision_tower.config.to_dict() | {"num_encoder_tokens": 9}
    with pytest.raises(ValueError, match="encoder tiny gives 4 tokens, this tower was made for 9"):
        llava_bridge.tower.FrozenTower(FrozenTowerConfig(**settings))
