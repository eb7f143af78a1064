"""Parts of a batch train as the whole; compiled, checkpointed, cached, in a second phase."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from encoder import cache
from encoder.data.batch import Batch
from encoder.data.options import CacheConfig
from encoder.models.openvision3 import OpenVision3
from encoder.models.vae import load_vae
from encoder.runtime import checkpoint
from encoder.runtime.config import load
from encoder.training import step, trainer

SMALL = {"width": 16, "layers": 1, "head_width": 16}
TEXT = {"context_length": 8, **SMALL}


def batch(rows: slice = slice(None)) -> Batch:
    """Eight samples, captions of unequal length."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 20, (3, 8, 8), generator=generator)
    captions = ids[2].masked_fill(torch.arange(8) >= torch.arange(1, 9).clamp_min(3)[:, None], 0)
    pixels = torch.rand(8, 3, 64, 64, generator=generator)
    z_vae = torch.randn(8, 16, 8, 8, generator=generator)
    return Batch(pixels[rows], z_vae[rows], (ids[0][rows], ids[1][rows]), captions[rows], 0)


@pytest.mark.parametrize("changes", [{}, {"contrastive_chunk": 3}, {"branches": ["reconstruction"]}])
def test_micro_batches_have_the_gradient_of_the_whole_batch_contrastive_loss_included(changes, small_config):
    chosen = small_config(objective={"tau": 0.0}, **changes)
    torch.manual_seed(0)
    model = OpenVision3(chosen.openvision3)
    module = step.Step(model, chosen, load_vae(chosen.vae), None)
    found = []
    for count in (1, 4):
        model.zero_grad()
        rows = 8 // count
        parts = [batch(slice(i * rows, (i + 1) * rows)) for i in range(count)]
        terms = step.backward(module, parts, chosen, 0, 0, count)
        found.append((terms, {name: each.grad.clone() for name, each in model.named_parameters()}))
    (whole, wanted), (parts, got) = found
    for name in ("loss", "contrastive", "caption", "pixel_l1", "latent_l1"):
        torch.testing.assert_close(parts[name], whole[name], atol=1e-5, rtol=1e-5)
    for name, gradient in wanted.items():  # float32, sums in another order
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-3, msg=name)


def test_checkpointed_activations_change_no_gradient_and_no_name(small_config):
    chosen = small_config()
    grads = []
    for changed in (chosen, small_config(activation_checkpointing=True)):
        model = trainer.build_model(changed)
        trainer.speed_up(model, changed)
        module = step.Step(model, changed, load_vae(chosen.vae), None)
        step.backward(module, [batch()], changed, 0, 0, 1)
        grads.append([each.grad for each in model.parameters()])
        names = set(model.state_dict())
    assert names == set(OpenVision3(chosen.openvision3).state_dict())
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.fixture
def dynamo_limits():
    """What a test sets of dynamo's limits ends with it; monkeypatch would delete the setting at its end."""
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        yield


def test_every_block_of_a_second_phase_runs_compiled(monkeypatch, dynamo_limits, small_config):
    """Counted by a backend that runs what it is given; without the reset it was none of the second phase."""
    ran, calls = [], []

    def backend(graph, _inputs):
        return lambda *inputs: ran.append(1) or graph.forward(*inputs)

    true_compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: true_compile(self, backend=backend))
    for side, width in ((8, 16), (4, 32)):
        towers = small_config().openvision3
        sizes = {"width": width, "layers": 1, "head_width": 16}
        shape = replace(
            towers,
            encoder=replace(towers.encoder, image_size=side, **sizes),
            decoder=replace(towers.decoder, in_width=width),
        )
        chosen = replace(small_config(), openvision3=shape, compile=True)
        model = trainer.build_model(chosen)
        for block in (each for each in model.modules() if isinstance(each, trainer.Block)):
            block.register_forward_pre_hook(lambda *_: calls.append(1))
        trainer.speed_up(model, chosen)
        ran.clear(), calls.clear()
        for count, length in ((4, 8), (3, 7), (2, 5)):
            z_vae, ids = torch.randn(count, 16, side, side), torch.zeros(count, length, dtype=torch.long)
            for is_trained in (True, False):
                with torch.set_grad_enabled(is_trained):
                    z_u = model.encoder(z_vae).z_u
                    model.decoder(z_u), model.captioner(z_u, ids), model.text(ids[:, :1].expand(-1, 8))
        assert len(ran) == 3 * 2 * 4 == len(calls)


def test_a_cache_of_latents_trains_like_the_pictures_it_was_made_from(
    tmp_path, small_data, small_config, folders, curve
):
    settings = {"vae": str(small_data / "vae"), "shards": str(small_data / "scenes/train"), "image_size": 64}
    result = cache.cache(load(CacheConfig, settings), tmp_path)
    assert (result["num_shards"], result["num_samples"], len(result["bad_samples"])) == (4, 95, 1)
    assert cache.cache(load(CacheConfig, settings), tmp_path)["num_samples"] == 0  # all are there
    pictures, latents = folders("pictures", "latents")
    stream = {"sources": [{"shards": str(tmp_path / "train")}], "latents": True}
    trainer.train(small_config(stream={"sources": stream["sources"]}, num_steps=2), pictures)
    trainer.train(small_config(stream=stream, num_steps=2), latents)
    for a, b in zip(curve(pictures).values(), curve(latents).values(), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2)  # bf16 latents


def test_a_second_phase_starts_from_the_towers_of_the_first_at_another_resolution(small_config, folders):
    first, second = folders("first", "second")
    trainer.train(small_config(num_steps=2), first)
    saved = checkpoint.load(first / "checkpoint.pt")["model"]
    towers = {
        "encoder": {"image_size": 4, "embed_dim": 16, **SMALL}, "decoder": {"in_width": 16, **SMALL},
        "text": TEXT, "captioner": {**TEXT, "context_length": 20},
    }  # fmt: skip
    small = small_config(
        openvision3=towers, init=str(first), image_size=32, stream={"image_size": 32}, num_steps=1
    )
    model = trainer.build_model(small)
    for name, value in model.state_dict().items():
        assert name == "encoder.positional_embedding" or torch.equal(value, saved[name]), name
    assert model.encoder.positional_embedding.shape[0] == 5
    assert "psnr" in trainer.train(small, second)
    exported = trainer.build_model(replace(small, init=str(first / "weights"))).state_dict()
    for name, value in model.state_dict().items():
        stored = value if name == "encoder.positional_embedding" else value.half().float()
        assert torch.equal(exported[name], stored), name
    wide = {**towers, "encoder": {**towers["encoder"], "embed_dim": 8}}
    with pytest.raises(ValueError, match="holds other towers"):
        trainer.build_model(small_config(openvision3=wide, init=str(first)))


def test_tensorboard_shows_what_the_log_holds(tmp_path, tensorboard_holds_the_log, small_config):
    trainer.train(small_config(num_steps=2, trackers=["tensorboard"]), tmp_path)
    tensorboard_holds_the_log(tmp_path, [1, 2])


@pytest.mark.parametrize(("changes", "message"), [
    ({"micro_batch": 3}, "multiple of 1 processes x micro_batch 3"),
    ({"trackers": ["trackio"]}, "trackio is not installed"),
    ({"sharding": "fsdp2"}, "needs several processes"),
])  # fmt: skip
def test_what_cannot_run_is_refused_in_one_line(tmp_path, changes, message, small_config):
    if "trackers" in changes and find_spec("trackio"):
        pytest.skip("trackio is installed here")
    with pytest.raises(ValueError, match=message):
        trainer.train(small_config(**changes), tmp_path)
