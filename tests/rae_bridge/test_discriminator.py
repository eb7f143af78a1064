"""RAE's adversarial term: formulas against naive ones, frozen parts, and a run with it that resumes."""

import math
from dataclasses import replace

import pytest
import torch

from encoder.runtime import checkpoint
from encoder.runtime.ranks import Ranks
from rae_bridge import train_decoder as stage
from rae_bridge.config import AdversarialConfig, DecoderSize, TrainDecoderConfig
from rae_bridge.discriminator import Adversary, FrozenFeatures, Heads, adaptive_weight, augment, hinge_loss

TINY = AdversarialConfig(backbone="test_vit.r160_in1k", checkpoint="random", learns_from=0.0, acts_from=0.5)
ALONE = Ranks(0, 1, "cpu")


def test_losses_and_weight_follow_their_formulas():
    real, fake = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 0.5]])
    assert hinge_loss(real, fake) == pytest.approx(0.5 * (0.25 + 0.75))
    gradient, other = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    assert adaptive_weight(gradient, other, 1e4) == pytest.approx(2.5, rel=1e-5)
    assert adaptive_weight(gradient, other, 2.0) == 2.0
    assert adaptive_weight(gradient, torch.zeros(1, 2), 1e4) == 1e4


def test_augmentation_without_change_is_the_identity_and_moves_by_whole_pixels():
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    # reach 2: a draw of 0.5 is no move; brightness + 0, saturation x 1, contrast x 1
    still = torch.full((5, 2), 0.5)
    torch.testing.assert_close(augment(pixels, still), pixels, rtol=0, atol=1e-6)
    moved = still.clone()
    moved[0, 0], moved[1, 0] = 0.99, 0.0  # two rows further down the source, two columns to the left
    seen = augment(pixels, moved)
    torch.testing.assert_close(seen[0, :, :14, 2:], pixels[0, :, 2:, :14], rtol=0, atol=1e-6)
    assert not seen[0, :, 14:].any() and not seen[0, :, :, :2].any()  # grey from outside
    torch.testing.assert_close(seen[1], pixels[1], rtol=0, atol=1e-6)


def test_colours_change_as_diffaug_says():
    pixels = torch.rand(1, 3, 8, 8)
    draws = torch.tensor([0.5, 0.5, 0.9, 0.25, 0.8])[:, None]
    x = pixels + 0.4
    x = (x - x.mean(1, keepdim=True)) * 0.5 + x.mean(1, keepdim=True)
    x = (x - x.mean()) * 1.3 + x.mean()
    torch.testing.assert_close(augment(pixels, draws), x)


def test_heads_see_samples_apart_and_are_spectrally_bounded():
    torch.manual_seed(0)
    heads = Heads(width=8, num_heads=2, kernel_size=3).eval()
    features = [torch.randn(3, 8, 10), torch.randn(3, 8, 10)]
    logits = heads(features)
    assert logits.shape == (3, 20)
    alone = heads([feature[1:2] for feature in features])
    torch.testing.assert_close(alone[0], logits[1])
    matrix = heads.heads[0][0][0].weight.flatten(1)
    assert torch.linalg.matrix_norm(matrix, 2) < 1.5  # 15 iterations at the start bring it near 1


def test_frozen_features_are_those_of_the_blocks_and_stay_asleep():
    torch.manual_seed(0)
    features = FrozenFeatures(TINY).train()
    assert not features.training and not any(p.requires_grad for p in features.parameters())
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    seen = features(pixels)
    assert len(seen) == 1 + len(features.key_blocks)
    found = {}
    for i, block in enumerate(features.vit.blocks):
        block.register_forward_hook(lambda _, __, output, i=i: found.__setitem__(i, output))
    large = torch.nn.functional.interpolate(pixels, size=(160, 160), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features.vit.forward_features(((large + 1) / 2 - mean) / std)
    num_prefix = features.vit.num_prefix_tokens
    for block, feature in zip([len(found) - 1, *features.key_blocks], seen, strict=True):
        torch.testing.assert_close(feature, found[block][:, num_prefix:].mT, rtol=1e-4, atol=1e-5)


def test_the_discriminator_learns_to_tell_and_the_decoder_hears_of_it():
    adversary = Adversary(replace(TINY, lr=3e-3), ALONE, "fp32", seed=0)
    real, fake = torch.rand(4, 3, 16, 16), torch.full((4, 3, 16, 16), 0.5)
    draws = torch.full((5, 4), 0.5)
    losses = [adversary.learn(real, fake, (draws, draws)).item() for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0] and math.isfinite(losses[-1])
    last = torch.ones(3, requires_grad=True)
    pixels_hat = real * last[:, None, None]
    term = adversary.term(pixels_hat, (pixels_hat - 0.3).square().mean(), last, draws)
    gradient = torch.autograd.grad(term, last)[0]
    # weighted adaptively: its gradient at the last layer is 0.75 of the reconstruction's
    expected = torch.autograd.grad((real * last[:, None, None] - 0.3).square().mean(), last)[0].norm()
    assert gradient.norm() == pytest.approx(0.75 * expected.item(), rel=1e-2)  # RAE adds 1e-6 to a norm
    assert not any(p.grad is not None for p in adversary.heads.parameters())


@pytest.fixture
def adversarial(pictures, blind_to_pixels) -> TrainDecoderConfig:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    size = DecoderSize(**dict(zip((f"decoder_{name}" for name in names), (32, 1, 2, 64), strict=True)))
    about = {"encoder": blind_to_pixels, "data": str(pictures), "size": size, "adversarial": TINY}
    steps = {"num_steps": 4, "batch_size": 4, "checkpoint_steps": 2, "log_steps": 1}
    return TrainDecoderConfig(**about, **steps, perceptual_weight=0.0)


def test_a_run_with_an_adversary_resumes_to_the_same_last_bit(adversarial, tmp_path, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = stage.train(adversarial, tmp_path / "whole")
    log = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    assert ["adversarial" in line for line in log] == [False, False, True, True]
    assert all("discriminator" in line for line in log)
    original = stage.train_step

    def killed(decoder, tokens, pixels, config, step, *others):
        if step == 3:
            raise KeyboardInterrupt
        return original(decoder, tokens, pixels, config, step, *others)

    monkeypatch.setattr(stage, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.train(adversarial, tmp_path / "cut")
    monkeypatch.setattr(stage, "train_step", original)
    assert stage.train(adversarial, tmp_path / "cut") == whole
    first, second = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    for part, state in (("decoder", first["decoder"]), ("heads", first["adversary"]["heads"])):
        other = second["decoder"] if part == "decoder" else second["adversary"]["heads"]
        assert all(torch.equal(tensor, other[key]) for key, tensor in state.items())


def test_a_discriminator_whose_loss_is_nan_stops_the_run(adversarial):
    adversary = Adversary(TINY, ALONE, "fp32", seed=0)
    pixels = torch.rand(4, 3, 16, 16)
    with pytest.raises(ValueError, match=r"discriminator's loss is nan at step 3; lower adversarial\.lr"):
        stage.adversary_step(
            adversary, torch.nn.Identity(), pixels, pixels * math.nan, adversarial, 3, slice(0, 4)
        )


def test_wrong_starts_and_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="in this order"):
        replace(TINY, learns_from=0.6, acts_from=0.5)
    torch.save({"cls_token": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not fit test_vit"):
        FrozenFeatures(replace(TINY, checkpoint=str(tmp_path / "other.pt")))
    with pytest.raises(FileNotFoundError):
        FrozenFeatures(replace(TINY, checkpoint=str(tmp_path / "missing.pt")))
