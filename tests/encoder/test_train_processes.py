"""Several processes train as one with micro-batches; streamed runs survive kill -9."""

import functools
import http.server
import os
import signal
import socket
import threading

import pytest
import torch
import torch.multiprocessing as multiprocessing
from accelerate.state import AcceleratorState, GradientState, PartialState

from encoder.runtime import checkpoint
from encoder.training import trainer


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


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_a_run_on_shards_from_http_killed_twice_equals_an_undisturbed_one_to_the_last_bit(
    small_data, small_config, folders, curve
):
    whole, killed = folders("whole", "killed")
    handler = functools.partial(Quiet, directory=str(small_data / "scenes/train"))
    names = sorted(path.name for path in (small_data / "scenes/train").glob("*.tar"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{{{','.join(names)}}}"
        chosen = small_config(stream={"sources": [{"shards": url}]}, ema_decay=0.9, num_steps=14)
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
def test_two_processes_train_as_one_with_two_micro_batches(sharding, small_config, folders, curve):
    one, two = folders("one", "two")
    port = free_port()
    chosen = small_config(sharding=sharding, activation_checkpointing=sharding == "fsdp2")
    ranks = [in_child(train_rank, chosen, two, rank, 2, port) for rank in range(2)]
    in_child(train_and_die, small_config(micro_batch=4), one, None).join()
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


def test_four_processes_killed_three_times_in_a_save_end_as_undisturbed_ones(small_config, folders, curve):
    whole, killed = folders("whole", "killed")
    chosen = small_config(ema_decay=0.9, num_steps=8, log_steps=1, keep_checkpoints=2)

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
