"""One of two processes (gloo) that run benchmarks: `python jobs_process.py RANK PORT` prints a JSON line of
what each case gave. A process of its own, not a fork, which would wait for threads of an earlier training."""

import json
import sys
from datetime import timedelta

import torch

from encoder.runtime.distributed import end_together, process_number, share_out
from llava_bridge.jobs import Job, run_jobs

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


def run_failing(place: str):
    scores = Kept()
    return run_jobs(wanted({"B": place}), scores), dict(scores)


def run_with_scores_of_the_first(rank: int):
    scores = Kept({"A": {"answers": "kept"}} if rank == 0 else {})
    return run_jobs(wanted({}), scores), sorted(scores)


def ask_other_questions(rank: int) -> str:
    try:
        answers(f"questions {rank}")
    except RuntimeError as error:
        return str(error)
    return "nothing was said"


def call_less_often(rank: int) -> str | None:
    fault = None
    try:
        for _ in range(2 - rank):
            answers("A")
    except RuntimeError as error:
        fault = str(error)
    return end_together("A", fault)


def all_cases(rank: int) -> dict:
    return {place: run_failing(place) for place in ("before", "between", "after")} | {
        case.__name__: case(rank)
        for case in (run_with_scores_of_the_first, ask_other_questions, call_less_often)
    }


def main(rank: int, port: str) -> None:
    torch.set_num_threads(1)
    where = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", where, LONGEST_WAIT, world_size=2, rank=rank)
    print(json.dumps(all_cases(rank)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
