"""Benchmarks over two processes (gloo), of which one fails where the others are not looking."""

import os
import socket
from datetime import timedelta

import pytest
import torch
import torch.multiprocessing as multiprocessing

from encoder.runtime.distributed import end_together, process_number, share_out
from llava_bridge.jobs import Job, run_jobs

WORLD = 2
LONGEST_WAIT = timedelta(seconds=60)  # a process that waits in vain fails here


class Kept(dict):
    """Scores in memory."""

    def add(self, name, metrics, rows):
        self[name] = metrics


def answers(work: str):
    values = share_out(lambda number: f"{work} {number}", 4, work)
    return {"answers": values}, []


def wanted(fails: dict[str, str]) -> list[Job]:
    """Three benchmarks of two calls each; fails: {benchmark: before, between or after these} in process 1."""

    def run(name: str):
        def fail(place: str):
            if process_number() == 1 and fails.get(name) == place:
                raise OSError(f"no data of {name}")

        fail("before")
        answers(f"{name}, first")
        fail("between")
        found = answers(name)
        fail("after")
        return found

    return [Job(name, (f"{name}/score",), lambda name=name: run(name)) for name in ("A", "B", "C")]


def one_rank(rank: int, port: int, case, results) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD, timeout=LONGEST_WAIT)
    results.put((rank, case(rank)))
    torch.distributed.destroy_process_group()


def on_two(case) -> list:
    """What `case(rank)` gives in each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=one_rank, args=(rank, port, case, results)) for rank in range(WORLD)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return [got for _, got in sorted(results.get() for _ in workers)]


@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_what_fails_in_one_process_fails_in_all_and_costs_the_others_nothing(place):
    def case(rank: int):
        scores = Kept()
        return run_jobs(wanted({"B": place}), scores), dict(scores)

    first, second = on_two(case)
    assert first == second
    not_run, scores = first
    assert [*not_run] == ["B/score"] and "OSError: no data of B" in not_run["B/score"]
    assert scores == {name: {"answers": [f"{name} {i}" for i in range(4)]} for name in ("A", "C")}


def test_what_is_scored_is_the_first_processs_word():
    def case(rank: int):
        scores = Kept({"A": {"answers": "kept"}} if rank == 0 else {})
        return run_jobs(wanted({}), scores), sorted(scores)

    assert on_two(case) == [({}, ["A", "B", "C"]), ({}, ["B", "C"])]


def test_answers_to_other_questions_are_not_taken_for_ones_own():
    def case(rank: int):
        try:
            return answers(f"questions {rank}")
        except RuntimeError as error:
            return str(error)

    for said in on_two(case):
        assert said == (
            "the processes went apart: process 0 is in 'questions 0', process 1 is in 'questions 1'"
        )


def test_a_process_that_calls_less_often_is_found_out():
    def case(rank: int):
        fault = None
        try:
            for _ in range(2 - rank):
                answers("A")
        except RuntimeError as error:
            fault = str(error)
        return end_together("A", fault)

    first, second = on_two(case)
    assert first == second == "the processes went apart: process 0 is in 'A', process 1 has ended 'A'"


def test_one_process_ends_as_it_did():
    scores = Kept()
    assert run_jobs(wanted({}), scores) == {} and sorted(scores) == ["A", "B", "C"]
    assert end_together("A", None) is None and end_together("A", "why") == "why"
