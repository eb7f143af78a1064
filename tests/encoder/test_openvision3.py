"""The four towers together: noise, captions, the objective's weights, and what is written to disk."""

import pytest
import torch

from encoder.data.batch import Batch
from encoder.models.clip import Clip
from encoder.models.openvision3 import OpenVision3
from encoder.models.shapes import (
    CaptionerShape,
    ClipShape,
    DecoderShape,
    OpenVision3Shape,
    TextShape,
    ViTShape,
)
from encoder.training.objective import add_noise, objective, understanding_terms
from encoder.training.options import ObjectiveConfig

SHAPE = OpenVision3Shape(
    encoder=ViTShape(image_size=8, width=32, layers=2, head_width=16, embed_dim=24),
    decoder=DecoderShape(in_width=32, width=32, layers=1, head_width=16),
    text=TextShape(context_length=8, width=32, layers=1, head_width=16),
    captioner=CaptionerShape(context_length=10, width=32, layers=2, head_width=16),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return OpenVision3(SHAPE).eval()


def test_noise_has_one_sigma_a_sample_uniform_up_to_tau():
    z_u = torch.zeros(2000, 20, 8)
    noise = add_noise(z_u, 0.8, torch.Generator().manual_seed(0))
    sigma = noise.double().square().mean(dim=(1, 2)).sqrt()  # 160 values: 6 % off at most, mostly
    assert sigma.max() < 0.8 * 1.25
    assert sigma.mean().item() == pytest.approx(0.4, abs=0.02)
    assert sigma.std().item() == pytest.approx(0.8 / 12**0.5, abs=0.02)
    halves = torch.stack([half.square().mean(dim=(1, 2)).sqrt() for half in noise.split(10, dim=1)])
    assert torch.corrcoef(halves)[0, 1] > 0.95  # the same sigma all over a sample
    assert torch.equal(add_noise(z_u, 0.0, torch.Generator().manual_seed(0)), z_u)


def test_noise_is_drawn_from_the_generator_alone():
    z_u = torch.randn(3, 4, 8)
    first, again = (add_noise(z_u, 0.5, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)


def test_the_objective_weighs_its_terms_as_the_paper_does():
    names = ("pixel_l1", "latent_l1", "perceptual", "caption", "contrastive")
    terms = {name: torch.tensor(2.0**power, dtype=torch.float64) for power, name in enumerate(names)}
    weights = ObjectiveConfig(perceptual_weight=0.5)
    # 0.5 (1 + 0.4 x 2 + 0.5 x 4) + 1.0 (8 + 1.0 x 16)
    assert objective(terms, weights).item() == pytest.approx(0.5 * (1 + 0.8 + 2) + 24)
    del terms["perceptual"]
    assert objective(terms, weights).item() == pytest.approx(0.5 * 1.8 + 24)


def test_a_caption_word_sees_the_picture_and_the_past_only(model):
    z_u, input_ids = torch.randn(2, 16, 32), torch.randint(3, 60, (2, 10))
    logits = model.captioner(z_u, input_ids)
    changed = input_ids.clone()
    changed[:, 6] = 70
    difference = (model.captioner(z_u, changed) - logits).abs().amax(dim=(0, 2))
    assert difference[:6].max() == 0 and difference[6:].min() > 0
    moved = z_u.clone()
    moved[:, -1] += 1
    assert (model.captioner(moved, input_ids) - logits).abs().amax(dim=(0, 2)).min() > 0


def test_two_text_passes_average_two_contrastive_losses(model):
    z_u, pooled = torch.randn(4, 16, 32), torch.randn(4, 24)
    alt, sentence = torch.randint(3, 60, (2, 4, 8))
    caption_ids = torch.randint(3, 60, (4, 6))

    def term(*text_ids):
        batch = Batch(torch.empty(0), None, text_ids, caption_ids, 0)
        return understanding_terms(model, z_u, pooled, batch)["contrastive"]

    torch.testing.assert_close(term(alt, sentence), (term(alt) + term(sentence)) / 2)


def test_save_and_load_is_exact_and_fp16_without_text_is_half_the_towers(model, tmp_path):
    model.save_pretrained(tmp_path / "all")
    again = OpenVision3.from_pretrained(tmp_path / "all")
    assert again.shape == model.shape
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    model.save_pretrained(tmp_path / "vision", dtype=torch.float16, text=False)
    vision = OpenVision3.from_pretrained(tmp_path / "vision")
    assert vision.shape.text is None and not hasattr(vision, "text")
    for name, value in vision.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half().float()), name


def test_a_weights_folder_that_does_not_fit_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds model 'openvision3', not 'clip'"):
        Clip.from_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"layers": 1', '"layers": 2'))
    with pytest.raises(ValueError, match="weights do not fit"):
        OpenVision3.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="damaged"):
        OpenVision3.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        OpenVision3.from_pretrained(tmp_path / "nowhere")


def test_clip_saves_its_tower_without_text(tmp_path):
    shape = ClipShape(
        encoder=ViTShape(image_size=32, patch_size=16, in_channels=3, width=32, layers=1, head_width=16),
        text=SHAPE.text,
    )
    clip = Clip(shape)
    clip.save_pretrained(tmp_path, text=False)
    again = Clip.from_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(again.encoder(pixels).pooled, clip.encoder(pixels).pooled, atol=0, rtol=0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"decoder": DecoderShape(in_width=16, width=32, head_width=16)}, "must be equal"),
    ({"text": None}, "both text and captioner"),
])  # fmt: skip
def test_shapes_that_cannot_work_together_are_refused(changes, message):
    parts = {name: getattr(SHAPE, name) for name in ("encoder", "decoder", "text", "captioner")}
    with pytest.raises(ValueError, match=message):
        OpenVision3Shape(**(parts | changes))
