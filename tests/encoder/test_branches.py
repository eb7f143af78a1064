"""One branch alone: the other is followed by a probe that cannot reach the encoder."""

import pytest
import torch
from torch import nn

from encoder.data.batch import Batch
from encoder.models.openvision3 import OpenVision3
from encoder.runtime.config import load
from encoder.training import step as steps
from encoder.training.optim import build_adamw, update
from encoder.training.options import TrainConfig

SMALL = {"width": 32, "layers": 1, "head_width": 16}
TEXT = {"context_length": 6, **SMALL}
HEAD = ("encoder.ln_post.weight", "encoder.ln_post.bias", "encoder.proj")  # of the contrastive branch


def config(branches: list[str], **objective: float) -> TrainConfig:
    return load(TrainConfig, {
        "data": "nowhere", "vae": "none", "num_steps": 10, "batch_size": 4, "branches": branches,
        "optim": {"lr": 1e-2, "warmup_steps": 1, "clip_norm": 0.1},
        "objective": objective,
        "openvision3": {"encoder": {"image_size": 4, "embed_dim": 16, **SMALL}, "text": TEXT,
                        "decoder": {"in_width": 32, **SMALL}, "captioner": TEXT},
    })  # fmt: skip


class Upsample(nn.Module):
    """A VAE's decoder in name: the first channels, eight times as large."""

    def decode(self, z_vae):
        return nn.functional.interpolate(z_vae[:, :3], scale_factor=8)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 20, (4, 6), generator=generator)
    return Batch(
        pixels=torch.rand(4, 3, 32, 32, generator=generator),
        z_vae=torch.randn(4, 16, 4, 4, generator=generator),
        text_ids=(ids,), caption_ids=ids, pad_id=0,
    )  # fmt: skip


def trained(chosen: TrainConfig, num_steps: int = 3) -> tuple[dict, list[dict]]:
    """Weights after some steps from one start, and the terms of each step."""
    torch.manual_seed(0)
    model = OpenVision3(chosen.openvision3)
    optimiser = build_adamw(model, chosen.optim)
    probe = steps.probe_parameters(model, chosen.branches)
    curve = []
    for step in range(num_steps):
        terms = steps.train_step(model, batch(), chosen, step, Upsample())
        update(optimiser, terms["loss"], chosen.optim, step, num_steps + 1, probe)
        curve.append(terms)
    return model.state_dict(), curve


def trunk(state: dict) -> dict:
    return {name: value for name, value in state.items() if name.startswith("encoder.") and name not in HEAD}


@pytest.mark.parametrize(("branch", "other", "weight"), [
    ("understanding", "omega_rec", "beta"), ("reconstruction", "omega_und", "alpha")])  # fmt: skip
def test_the_probe_of_the_other_branch_leaves_the_encoder_alone_to_the_last_bit(branch, other, weight):
    state, curve = trained(config([branch]))
    changed, changed_curve = trained(config([branch], **{other: 7.0, weight: 0.1}))
    for name, value in trunk(state).items():
        assert torch.equal(value, changed[name]), name
    assert not all(torch.equal(value, changed[name]) for name, value in state.items())
    assert set(curve[0]) == set(changed_curve[0]) >= {"pixel_l1", "latent_l1", "caption", "contrastive"}


@pytest.mark.parametrize("branch", ["understanding", "reconstruction"])
def test_a_branch_alone_trains_the_encoder_as_if_the_other_weighed_nothing(branch):
    """The first step without clipping: its gradient on the trunk is that of the branch alone."""
    torch.manual_seed(0)
    model = OpenVision3(config([branch]).openvision3)
    weightless = {"understanding": {"omega_rec": 0.0}, "reconstruction": {"omega_und": 0.0}}[branch]
    grads = []
    for chosen in (config([branch]), config(["understanding", "reconstruction"], **weightless)):
        model.zero_grad()
        steps.train_step(model, batch(), chosen, 0, Upsample())["loss"].backward()
        grads.append({name: each.grad.clone() for name, each in model.named_parameters()})
    for name in trunk(grads[0]):
        torch.testing.assert_close(grads[0][name], grads[1][name], atol=1e-7, rtol=1e-5)
    probed = {"understanding": "decoder.head.weight", "reconstruction": "encoder.proj"}[branch]
    assert grads[0][probed].abs().sum() > 0 and grads[1][probed].abs().sum() == 0


def test_the_probe_learns_what_the_frozen_tokens_tell():
    _, curve = trained(config(["understanding"]), num_steps=40)
    assert curve[-1]["latent_l1"] < 0.9 * curve[0]["latent_l1"]


def test_branches_that_make_no_sense_are_refused():
    for branches in ([], ["understanding", "understanding"]):
        with pytest.raises(ValueError, match="one or both branches"):
            config(branches)
