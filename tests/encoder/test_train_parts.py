"""Parts of a batch (micro-batches, processes) train as the whole; streamed runs survive kill -9."""

import functools
import http.server
import json
import os
import signal
import socket
import tarfile
import threading
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
import torch.multiprocessing as multiprocessing
from accelerate.state import AcceleratorState, GradientState, PartialState

from encoder import cache
from encoder.data.batch import Batch
from encoder.data.options import CacheConfig, ScenesConfig
from encoder.data.scenes import write
from encoder.models.openvision3 import OpenVision3
from encoder.models.shapes import VaeShape
from encoder.models.vae import load_vae
from encoder.runtime import checkpoint
from encoder.runtime.config import load
from encoder.training import step, train_vae, trainer
from encoder.training.options import TrainConfig

SMALL = {"width": 16, "layers": 1, "head_width": 16}
TEXT = {"context_length": 8, **SMALL}
UNUSED = ("num_test", "num_llava_images", "num_text", "num_seed_questions", "num_pope_pairs")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Scenes with one broken picture in 96, four shards; a VAE of random weights; latents of the scenes."""
    root = tmp_path_factory.mktemp("parts")
    scenes = {"image_size": 64, "num_train": 96, "num_val": 16, "shard_size": 24, **dict.fromkeys(UNUSED, 0)}
    (root / "scenes").mkdir()
    write.run(load(ScenesConfig, scenes), root / "scenes")
    torch.manual_seed(0)
    shape = VaeShape(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)
    train_vae.build_codec(shape).save_pretrained(root / "vae")
    break_picture(sorted((root / "scenes/train").glob("*.tar"))[1], number=5)
    return root


def break_picture(shard, number):
    """Overwrite the middle of one picture of a tar file in place."""
    with tarfile.open(shard) as tar:
        member = [each for each in tar.getmembers() if each.name.endswith((".png", ".jpg", ".webp"))][number]
    with shard.open("r+b") as file:
        file.seek(member.offset_data)
        file.write(b"broken bytes " * 8)


def config(root, **changes) -> TrainConfig:
    stream = {"sources": [{"shards": str(root / "scenes/train")}], "image_size": 64, "num_lanes": 4,
              "shuffle_window": 10}  # fmt: skip
    towers = {
        "encoder": {"image_size": 8, "embed_dim": 16, **SMALL}, "decoder": {"in_width": 16, **SMALL},
        "text": TEXT, "captioner": {**TEXT, "context_length": 20},
    }  # fmt: skip
    fixed = {
        "data": str(root / "scenes"), "vae": str(root / "vae"), "stream": stream, "openvision3": towers,
        "num_steps": 6, "batch_size": 8, "optim": {"lr": 2e-3, "warmup_steps": 2}, "eval_limit": 8,
        "log_steps": 1, "checkpoint_steps": 2, "device": "cpu",
    }  # fmt: skip
    changes["stream"] = stream | changes.get("stream", {})
    return load(TrainConfig, {**fixed, **changes})


def batch(rows: slice = slice(None)) -> Batch:
    """Eight samples, captions of unequal length."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 20, (3, 8, 8), generator=generator)
    captions = ids[2].masked_fill(torch.arange(8) >= torch.arange(1, 9).clamp_min(3)[:, None], 0)
    pixels = torch.rand(8, 3, 64, 64, generator=generator)
    z_vae = torch.randn(8, 16, 8, 8, generator=generator)
    return Batch(pixels[rows], z_vae[rows], (ids[0][rows], ids[1][rows]), captions[rows], 0)


@pytest.mark.parametrize("changes", [{}, {"contrastive_chunk": 3}, {"branches": ["reconstruction"]}])
def test_micro_batches_have_the_gradient_of_the_whole_batch_contrastive_loss_included(root, changes):
    chosen = config(root, objective={"tau": 0.0}, **changes)
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


def test_checkpointed_activations_change_no_gradient_and_no_name(root):
    chosen = config(root)
    grads = []
    for changed in (chosen, config(root, activation_checkpointing=True)):
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


def test_every_block_of_a_second_phase_runs_compiled(root, monkeypatch, dynamo_limits):
    """Counted by a backend that runs what it is given; without the reset it was none of the second phase."""
    ran, calls = [], []

    def backend(graph, _inputs):
        return lambda *inputs: ran.append(1) or graph.forward(*inputs)

    true_compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: true_compile(self, backend=backend))
    for side, width in ((8, 16), (4, 32)):
        towers = config(root).openvision3
        sizes = {"width": width, "layers": 1, "head_width": 16}
        shape = replace(
            towers,
            encoder=replace(towers.encoder, image_size=side, **sizes),
            decoder=replace(towers.decoder, in_width=width),
        )
        chosen = replace(config(root), openvision3=shape, compile=True)
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


def in_child(target, *arguments) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    child.start()
    return child


def forget_processes() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def train_and_die(chosen, folder, at) -> None:
    """Train; SIGKILL oneself in step `at` if given."""
    forget_processes()
    torch.set_num_threads(1)
    true_backward = trainer.backward

    def backward(*arguments):
        if arguments[3] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return true_backward(*arguments)

    trainer.backward = backward
    trainer.train(chosen, folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_in_save(at: int) -> None:
    """From now on the checkpoint after `at` steps is half written when this process is killed."""
    true_save = torch.save

    def save(state, file, **how):
        if isinstance(state, dict) and state.get("step") == at:
            file.write(b"half a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        true_save(state, file, **how)

    torch.save = save


def train_rank(chosen, folder, rank, world, port, dies_at=None) -> None:
    forget_processes()
    if dies_at is not None and rank == 0:
        die_in_save(dies_at)
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    trainer.train(chosen, folder)


def folders(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir()
    return [tmp_path / name for name in names]


def curve(folder) -> dict[int, dict]:
    """The last row that the log has of each step, without the speed."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    return {row["steps"]: {k: v for k, v in row.items() if k != "samples_per_second"} for row in rows}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_a_run_on_shards_from_http_killed_twice_equals_an_undisturbed_one_to_the_last_bit(root, tmp_path):
    whole, killed = folders(tmp_path, "whole", "killed")
    handler = functools.partial(Quiet, directory=str(root / "scenes/train"))
    names = sorted(path.name for path in (root / "scenes/train").glob("*.tar"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{{{','.join(names)}}}"
        chosen = config(root, stream={"sources": [{"shards": url}]}, ema_decay=0.9, num_steps=14)
        child = in_child(train_and_die, chosen, whole, None)
        for at in (3, 9):
            one = in_child(train_and_die, chosen, killed, at)
            one.join()
            assert one.exitcode == -signal.SIGKILL
        last = in_child(train_and_die, chosen, killed, None)
        for each in (child, last):
            each.join()
            assert each.exitcode == 0
        server.shutdown()
    assert curve(whole) == curve(killed) and len(curve(whole)) == 14
    assert curve(whole)[14]["bad_samples"] >= 1  # 112 samples of 96
    first, second = (checkpoint.load(folder / "checkpoint.pt") for folder in (whole, killed))
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    assert all(torch.equal(a, b) for a, b in zip(first["averaged"], second["averaged"], strict=True))
    assert first["data"] == second["data"] and len(first["generators"]) == 1
    for number, state in first["optimiser"]["state"].items():
        assert torch.equal(state["exp_avg_sq"], second["optimiser"]["state"][number]["exp_avg_sq"])


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_train_as_one_with_two_micro_batches(root, tmp_path, sharding):
    one, two = folders(tmp_path, "one", "two")
    port = free_port()
    chosen = config(root, sharding=sharding, activation_checkpointing=sharding == "fsdp2")
    ranks = [in_child(train_rank, chosen, two, rank, 2, port) for rank in range(2)]
    in_child(train_and_die, config(root, micro_batch=4), one, None).join()
    for each in ranks:
        each.join()
        assert each.exitcode == 0
    rows = zip(curve(one).values(), curve(two).values(), strict=True)
    for alone, together in rows:
        for name in ("loss", "contrastive", "caption", "latent_l1", "pixel_l1", "grad_norm"):
            assert together[name] == pytest.approx(alone[name], rel=1e-4), (name, alone["steps"])
    states = [checkpoint.load(folder / "checkpoint.pt") for folder in (one, two)]
    assert states[0]["data"] == states[1]["data"] and len(states[1]["generators"]) == 2
    for name, value in states[0]["model"].items():  # Adam divides tiny gradients by themselves
        torch.testing.assert_close(states[1]["model"][name], value, atol=1e-3, rtol=1e-2, msg=name)


def test_four_processes_killed_three_times_in_a_save_end_as_undisturbed_ones(root, tmp_path):
    whole, killed = folders(tmp_path, "whole", "killed")
    chosen = config(root, ema_decay=0.9, num_steps=8, log_steps=1, keep_checkpoints=2)

    def launch(folder, dies_at=None) -> list[int]:
        """Four ranks; the others are killed once the first is, as a launcher does."""
        port = free_port()
        ranks = [in_child(train_rank, chosen, folder, rank, 4, port, dies_at) for rank in range(4)]
        ranks[0].join()
        for each in ranks[1:]:
            if ranks[0].exitcode != 0:
                each.kill()
            each.join()
        return [each.exitcode for each in ranks]

    assert launch(whole) == [0, 0, 0, 0]
    for at in (2, 4, 8):
        assert launch(killed, dies_at=at)[0] == -signal.SIGKILL
        left = checkpoint.newest(killed / "checkpoint.pt")
        assert (left and checkpoint.load(left)["step"]) == (at - 2 or None)
    assert launch(killed) == [0, 0, 0, 0]
    assert curve(whole) == curve(killed) and len(curve(whole)) == 8
    first, second = (checkpoint.load(folder / "checkpoint.pt") for folder in (whole, killed))
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    assert all(torch.equal(a, b) for a, b in zip(first["averaged"], second["averaged"], strict=True))
    assert first["data"] == second["data"] and len(first["generators"]) == 4
    for number, state in first["optimiser"]["state"].items():
        assert torch.equal(state["exp_avg_sq"], second["optimiser"]["state"][number]["exp_avg_sq"])


def test_a_cache_of_latents_trains_like_the_pictures_it_was_made_from(root, tmp_path):
    settings = {"vae": str(root / "vae"), "shards": str(root / "scenes/train"), "image_size": 64}
    result = cache.cache(load(CacheConfig, settings), tmp_path)
    assert (result["num_shards"], result["num_samples"], len(result["bad_samples"])) == (4, 95, 1)
    assert cache.cache(load(CacheConfig, settings), tmp_path)["num_samples"] == 0  # all are there
    pictures, latents = folders(tmp_path, "pictures", "latents")
    stream = {"sources": [{"shards": str(tmp_path / "train")}], "latents": True}
    trainer.train(config(root, stream={"sources": stream["sources"]}, num_steps=2), pictures)
    trainer.train(config(root, stream=stream, num_steps=2), latents)
    for a, b in zip(curve(pictures).values(), curve(latents).values(), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2)  # bf16 latents


def test_a_second_phase_starts_from_the_towers_of_the_first_at_another_resolution(root, tmp_path):
    first, second = folders(tmp_path, "first", "second")
    trainer.train(config(root, num_steps=2), first)
    saved = checkpoint.load(first / "checkpoint.pt")["model"]
    towers = {
        "encoder": {"image_size": 4, "embed_dim": 16, **SMALL}, "decoder": {"in_width": 16, **SMALL},
        "text": TEXT, "captioner": {**TEXT, "context_length": 20},
    }  # fmt: skip
    small = config(
        root, openvision3=towers, init=str(first), image_size=32, stream={"image_size": 32}, num_steps=1
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
        trainer.build_model(config(root, openvision3=wide, init=str(first)))


def test_tensorboard_shows_what_the_log_holds(root, tmp_path, tensorboard_holds_the_log):
    trainer.train(config(root, num_steps=2, trackers=["tensorboard"]), tmp_path)
    tensorboard_holds_the_log(tmp_path, [1, 2])


@pytest.mark.parametrize(("changes", "message"), [
    ({"micro_batch": 3}, "multiple of 1 processes x micro_batch 3"),
    ({"trackers": ["trackio"]}, "trackio is not installed"),
    ({"sharding": "fsdp2"}, "needs several processes"),
])  # fmt: skip
def test_what_cannot_run_is_refused_in_one_line(root, tmp_path, changes, message):
    if "trackers" in changes and find_spec("trackio"):
        pytest.skip("trackio is installed here")
    with pytest.raises(ValueError, match=message):
        trainer.train(config(root, **changes), tmp_path)
