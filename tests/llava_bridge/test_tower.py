"""The frozen encoder inside LLaVA: weights intact, never awake, cached tokens equal to live ones, folders
that reload exactly."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_bridge.model import LlavaOverTokens, build, check_token_count, load, save
from llava_bridge.prompt import question_prompt

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
