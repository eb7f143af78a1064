"""`decoder_only`: the decoder learns from the tokens of towers that stay as they are, to the last bit."""

import pytest
import torch
from safetensors.torch import load_file

from encoder.models.openvision3 import OpenVision3
from encoder.models.vae import load_vae
from encoder.training import step, trainer
from encoder.training.flops import sample_flops
from tests.encoder.test_train_parts import batch


def test_of_what_is_exported_the_decoder_alone_is_new(small_config, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    trainer.train(small_config(), first)
    changes = {
        "init": str(first / "weights"),
        "decoder_only": True,
        "objective": {"tau": 3.0},
        "ema_decay": 0.5,
    }
    scores = trainer.train(small_config(**changes), second)
    before, after = (load_file(folder / "weights" / "model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    is_new = {name for name in before if not torch.equal(before[name], after[name])}
    assert is_new and all(name.startswith("decoder.") for name in is_new)
    assert {"r1_image_to_text", "psnr"} <= scores.keys()


def test_its_gradient_is_that_of_the_reconstruction_alone_and_reaches_nothing_else(small_config, tmp_path):
    torch.manual_seed(0)
    model = OpenVision3(small_config().openvision3)
    model.save_pretrained(tmp_path / "weights")
    vae, found = load_vae(small_config().vae), {}
    alone = small_config(decoder_only=True, init=str(tmp_path / "weights"))
    for name, chosen in (("alone", alone), ("both", small_config(objective={"omega_und": 0.0}))):
        towers = trainer.build_model(chosen) if name == "alone" else model
        terms = step.backward(step.Step(towers, chosen, vae, None), [batch()], chosen, 0, 0, 1)
        found[name] = terms, dict(towers.named_parameters())
    (terms, ours), (_, theirs) = found["alone"], found["both"]
    assert {"pixel_l1", "latent_l1"} <= terms.keys() and "caption" not in terms
    for name, parameter in ours.items():
        if not name.startswith("decoder."):
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-7, rtol=1e-4)


def test_micro_batches_have_the_gradient_of_the_whole_batch(small_config, tmp_path):
    torch.manual_seed(0)
    OpenVision3(small_config().openvision3).save_pretrained(tmp_path / "weights")
    chosen = small_config(decoder_only=True, init=str(tmp_path / "weights"), objective={"tau": 0.0})
    model, gradients = trainer.build_model(chosen), []
    for count in (1, 4):
        model.zero_grad()
        rows = 8 // count
        parts = [batch(slice(i * rows, (i + 1) * rows)) for i in range(count)]
        step.backward(step.Step(model, chosen, load_vae(chosen.vae), None), parts, chosen, 0, 0, count)
        gradients.append([each.grad.clone() for each in model.decoder.parameters()])
    for whole, in_parts in zip(*gradients, strict=True):
        torch.testing.assert_close(in_parts, whole, atol=1e-6, rtol=1e-3)


def test_it_costs_the_encoder_a_forward_pass_and_the_text_towers_nothing(small_config):
    both, alone = (
        sample_flops(small_config(decoder_only=is_alone, init="somewhere")) for is_alone in (False, True)
    )
    assert alone["encoder"] == both["encoder"] / 3 and alone["decoder"] == both["decoder"]
    assert alone["text encoder"] == alone["captioner"] == 0


@pytest.mark.parametrize("changes", [{}, {"init": "a", "branches": ["reconstruction"]}])
def test_without_trained_towers_or_with_a_branch_of_them_it_is_refused(changes, small_config):
    with pytest.raises(ValueError, match="decoder_only needs"):
        small_config(decoder_only=True, **changes)
