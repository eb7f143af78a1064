"""What a training needs next is made while it computes."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Made = TypeVar("Made")


def made_ahead(make: Callable[[int], Made], steps: range, depth: int = 2) -> Iterator[Made]:
    """make(step) for each of `steps` in order, up to `depth` of them ahead, on a thread beside the caller's.

    What `make` raises is raised here, at its step. Closing the iterator ends the thread.
    """
    # a thread has its own treatment of denormal numbers: that of the trainers
    with ThreadPoolExecutor(1, initializer=torch.set_flush_denormal, initargs=(True,)) as worker:
        waiting = deque(worker.submit(make, step) for step in steps[:depth])
        try:
            for step in steps:
                made = waiting.popleft().result()
                if step + depth * steps.step in steps:
                    waiting.append(worker.submit(make, step + depth * steps.step))
                yield made
        finally:
            worker.shutdown(wait=True, cancel_futures=True)
