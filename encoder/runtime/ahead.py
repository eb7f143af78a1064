"""What is needed next is read or made on a thread while the present one is in use."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """The items of an iterator, unchanged and in order, of which a thread prepares up to `count` while the
    one before them is in use. What the iterator raises is raised in its place.

    The thread ends with the iterator, or when this object is given up.
    """

    def __init__(self, items: Iterator[Item], count: int):
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        self._room = threading.Semaphore(count)
        stop = threading.Event()
        work = (items, self._results, self._room, stop)
        threading.Thread(target=_prepare, args=work, daemon=True).start()
        weakref.finalize(self, _give_up, stop, self._room)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item, error = self._results.get()
        if error is not None:
            self._results.put((None, error))  # for whoever asks again
            raise error
        self._room.release()
        return item


def made_ahead(make: Callable[[int], Item], steps: range, count: int = 2) -> ReadAhead[Item]:
    """make(step) for each of `steps` in order, up to `count` of them ahead."""

    def items() -> Iterator[Item]:
        torch.set_flush_denormal(True)  # as the trainers do; it holds for the thread that calls it
        yield from map(make, steps)

    return ReadAhead(items(), count)


def _prepare(
    items: Iterator[Item], results: queue.SimpleQueue, room: threading.Semaphore, stop: threading.Event
) -> None:
    while True:
        room.acquire()
        if stop.is_set():
            return
        try:
            results.put((next(items), None))
        except Exception as error:  # StopIteration too: the reader's to raise
            results.put((None, error))
            return


def _give_up(stop: threading.Event, room: threading.Semaphore) -> None:
    stop.set()
    room.release()
