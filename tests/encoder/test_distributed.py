"""Two processes (gloo) compute what one does: values and gradients of the global contrastive loss."""

import os

import pytest
import torch
import torch.multiprocessing as multiprocessing

from encoder.models import losses
from encoder.runtime import distributed

WORLD, ROWS, WIDTH = 2, 6, 5


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(WORLD * ROWS, WIDTH, generator=generator) for _ in range(2))
    return image, text, torch.tensor(9.0)


def one_rank(rank: int, port: int, results) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    image, text, scale = inputs()
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    for chunk_size in (None, 4):
        leaves = [value.clone().requires_grad_() for value in (image[own], text[own], scale)]
        loss = losses.contrastive(
            *leaves,
            chunk_size=chunk_size,
            all_image_features=distributed.gather_rows(leaves[0]),
            all_text_features=distributed.gather_rows(leaves[1]),
        )
        loss.backward()
        results.put((rank, chunk_size, loss.item(), [value.grad.tolist() for value in leaves]))
    total = distributed.sum_over_processes(torch.tensor(float(rank + 1)))
    results.put((rank, "sum", total.item(), distributed.num_processes()))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(free_port):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=one_rank, args=(rank, free_port, results)) for rank in range(WORLD)]
    for worker in workers:
        worker.start()
    got = [results.get() for _ in range(3 * WORLD)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return got


@pytest.fixture(scope="module")
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_the_mean_over_ranks_is_the_global_loss_with_its_gradients(two_ranks, chunk_size):
    leaves = [value.clone().requires_grad_() for value in inputs()]
    wanted = losses.contrastive(*leaves)  # of all rows in one process
    wanted.backward()
    got = sorted(each for each in two_ranks if each[1] == chunk_size)
    assert sum(loss for _, _, loss, _ in got) / WORLD == pytest.approx(wanted.item(), rel=1e-6)
    for place in (0, 1):  # features: each rank holds its rows' gradients, DDP would divide by the ranks
        gathered = torch.cat([torch.tensor(grads[place]) for _, _, _, grads in got]) / WORLD
        torch.testing.assert_close(gathered, leaves[place].grad, atol=1e-6, rtol=1e-5)
    scale = sum(grads[2] for _, _, _, grads in got) / WORLD
    assert scale == pytest.approx(leaves[2].grad.item(), rel=1e-4)


def test_sums_and_counts_see_every_rank(two_ranks):
    assert [each[2:] for each in two_ranks if each[1] == "sum"] == [(3.0, 2), (3.0, 2)]


def test_one_process_gathers_itself():
    rows = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather_rows(rows) is rows and distributed.num_processes() == 1


@pytest.mark.parametrize("chunk_size", [None, 1, 5, 100])
def test_candidates_given_apart_change_neither_value_nor_gradient(chunk_size):
    together = [value.clone().double().requires_grad_() for value in inputs()]
    apart = [value.clone().double().requires_grad_() for value in inputs()]
    image, text, _ = apart
    losses.contrastive(*together).backward()
    losses.contrastive(
        *apart, chunk_size=chunk_size, all_image_features=image, all_text_features=text
    ).backward()
    for value, reference in zip(apart, together, strict=True):  # the loss itself works in float32
        torch.testing.assert_close(value.grad, reference.grad, atol=1e-6, rtol=1e-4)


def test_a_caption_counted_by_all_parts_is_the_mean_of_the_parts():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 7, generator=generator)
    targets = torch.randint(0, 7, (4, 3), generator=generator)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    parts = [losses.caption(logits[i::2], targets[i::2], mask[i::2], mask.sum() / 2) for i in range(2)]
    torch.testing.assert_close(torch.stack(parts).mean(), losses.caption(logits, targets, mask))
