"""Where a trainer's next batch comes from: samples in memory, or lanes of a stream; and the place in them.

A step's batch is cut into equal micro-batches; each process computes a run of them. What a micro-batch holds
does not depend on how many processes there are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from encoder.data.account import BadSample, append_bad
from encoder.data.batch import Batch, TrainingSet, cut_padding, sentences
from encoder.data.captions import choose_texts
from encoder.data.options import CaptionKeys, StreamConfig
from encoder.data.stream import Lane, Row, find_stream_shards
from encoder.data.tokenizer import Tokenizer
from encoder.runtime import checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatches:
    """Those of one process: of the `num_micro_batches` of each step's batch, `count` from number `first` on.
    Each has pixels for `num_pixels` of its rows."""

    batch_size: int
    num_micro_batches: int
    first: int
    count: int
    num_pixels: int
    with_sentence: bool

    @property
    def rows(self) -> int:
        """Rows of a micro-batch."""
        return self.batch_size // self.num_micro_batches


class Feed(Protocol):
    """One process's micro-batches, step by step, and where in the data it stands."""

    def micro_batches(self, step: int) -> list[Batch]: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class MemoryFeed:
    """Micro-batches that (seed, step) draw from a set in memory: the step alone says where it stands."""

    def __init__(self, samples: TrainingSet, own: MicroBatches, seed: int):
        self.samples, self.own, self.seed = samples, own, seed

    def micro_batches(self, step: int) -> list[Batch]:
        own = self.own
        indices = checkpoint.batch_indices(self.seed, step, own.batch_size, len(self.samples))
        return [
            self.samples.batch(
                indices,
                checkpoint.step_generator(self.seed, step, "sentence"),
                num_pixels=own.num_pixels,
                with_sentence=own.with_sentence,
                rows=slice(number * own.rows, (number + 1) * own.rows),
            )
            for number in range(own.first, own.first + own.count)
        ]

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


class _LaneReader(IterableDataset):
    """What one reading process yields a step: rows of its lanes as arrays, and their lanes' states."""

    def __init__(self, config: StreamConfig, lanes: list[int], rows: int, encode: _Encode, seed: int):
        self.config, self.lanes, self.rows, self.encode, self.seed = config, lanes, rows, encode, seed
        self.shards = find_stream_shards(config)
        self.states: dict[str, Any] = {}

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Any], list[BadSample]]]:
        worker = get_worker_info()
        own = self.lanes
        if worker is not None:
            num_lanes = len(own) // worker.num_workers
            own = own[worker.id * num_lanes : (worker.id + 1) * num_lanes]
        lanes = [Lane(number, self.config, self.shards, self.seed) for number in own]
        for lane in lanes:
            if str(lane.lane) in self.states:
                lane.load_state(self.states[str(lane.lane)])
        readers = [iter(lane) for lane in lanes]
        while True:
            rows = [next(reader) for reader in readers for _ in range(self.rows)]
            states = {str(lane.lane): lane.state() for lane in lanes}
            bad = [each for lane in lanes for each in lane.bad]
            for lane in lanes:
                lane.bad.clear()
            yield self.encode(rows), states, bad


class _Encode:
    """Rows to tensors: pictures, latents, and the ids of their texts. Runs where the rows are read."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_length: int,
        caption_length: int | None,
        sentence: bool,
        captions: CaptionKeys,
    ):
        self.tokenizer, self.text_length = tokenizer, text_length
        self.caption_length, self.sentence, self.captions = caption_length, sentence, captions

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        texts = [choose_texts(row.record, self.captions) for row in rows]
        alt_texts, captions = [each.alt for each in texts], [each.dense for each in texts]
        tensors = {
            "images": torch.from_numpy(np.stack([row.pixels for row in rows])),
            "alt_ids": self.tokenizer.contrastive_ids(alt_texts, self.text_length),
        }
        if self.sentence:
            chosen = []
            for row, caption, alt in zip(rows, captions, alt_texts, strict=True):
                choices = sentences(caption, alt)
                chosen.append(choices[int(row.draw * len(choices))])
            tensors["sentence_ids"] = self.tokenizer.contrastive_ids(chosen, self.text_length)
        if self.caption_length is not None:
            tensors["caption_ids"] = self.tokenizer.caption_ids(captions, self.caption_length)
        if rows[0].z_vae is not None:
            tensors["z_vae"] = torch.stack([row.z_vae for row in rows])
        return tensors


class StreamFeed:
    """Micro-batches that lanes of a stream give, in order; decoding runs in worker processes if asked.

    bad_file: takes the names of what is skipped (see `Account`); after a restart some may stand there twice.

    Raises: ValueError if lanes, processes, workers and rows do not divide.
    """

    def __init__(
        self,
        config: StreamConfig,
        own: MicroBatches,
        tokenizer: Tokenizer,
        *,
        text_length: int,
        caption_length: int | None,
        seed: int,
        keep_all_pixels: bool,
        bad_file: Path | None = None,
    ):
        num_ranks = own.num_micro_batches // own.count
        if own.batch_size % config.num_lanes or config.num_lanes % num_ranks:
            raise ValueError(
                f"stream.num_lanes {config.num_lanes} must divide batch_size {own.batch_size} and be a "
                f"multiple of the {num_ranks} processes"
            )
        num_lanes = config.num_lanes // num_ranks
        if config.num_workers and num_lanes % config.num_workers:
            raise ValueError(
                f"stream.num_workers {config.num_workers} must divide the {num_lanes} lanes of a process"
            )
        self.config, self.own, self.pad_id = config, own, tokenizer.pad
        self.keep_all_pixels = keep_all_pixels
        first = own.first // own.count * num_lanes
        encode = _Encode(tokenizer, text_length, caption_length, own.with_sentence, config.captions)
        rows = own.batch_size // config.num_lanes
        self.reader = _LaneReader(config, list(range(first, first + num_lanes)), rows, encode, seed)
        self.bad_file = bad_file
        self._iterator: Iterator | None = None

    def micro_batches(self, step: int) -> list[Batch]:
        """The next step's micro-batches."""
        if self._iterator is None:
            workers = self.config.num_workers
            loader = DataLoader(self.reader, batch_size=None, num_workers=workers, collate_fn=_as_it_is)
            self._iterator = iter(loader)
        reads = [_next_read(self._iterator) for _ in range(max(1, self.config.num_workers))]
        for _, states, bad in reads:
            self.reader.states |= states
            if bad and self.bad_file is not None:
                append_bad(self.bad_file, bad)
        tensors = {name: torch.cat([tensors[name] for tensors, _, _ in reads]) for name in reads[0][0]}
        return [
            self._batch({name: value[start : start + self.own.rows] for name, value in tensors.items()})
            for start in range(0, self.own.rows * self.own.count, self.own.rows)
        ]

    def _batch(self, tensors: dict[str, Tensor]) -> Batch:
        images = tensors["images"]
        captions = tensors.get("caption_ids", torch.empty(len(images), 0, dtype=torch.long))
        passes = [tensors[name] for name in ("alt_ids", "sentence_ids") if name in tensors]
        return Batch(
            pixels=images if self.keep_all_pixels else images[: self.own.num_pixels],
            z_vae=tensors.get("z_vae"),
            text_ids=tuple(passes),
            caption_ids=cut_padding(captions, self.pad_id) if captions.shape[1] else captions,
            pad_id=self.pad_id,
        )

    def state(self) -> dict[str, Any]:
        """The lanes' places after the micro-batches given last, as JSON (checkpoints hold plain values)."""
        return {lane: json.dumps(state) for lane, state in self.reader.states.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from the places in `state`; other processes' lanes in it are left to them."""
        own = {str(lane) for lane in self.reader.lanes}
        self.reader.states = {lane: json.loads(text) for lane, text in state.items() if lane in own}
        self._iterator = None


def num_bad(state: dict[str, Any]) -> int:
    """How many samples the lanes in a state have skipped since the run began."""
    return sum(json.loads(text)["account"]["num_bad"] for text in state.values())


_KILLED = (
    "a reading process was killed (out of memory?); lower stream.num_workers, or start again: the run goes "
    "on from its last checkpoint"
)


def _as_it_is(value: Any) -> Any:
    return value


def _next_read(readers: Iterator[Any]) -> Any:
    """What the readers give next.

    Raises: ValueError, OSError: what a reading process could not do, in its own words, which torch hides
    behind a traceback; or that it was killed with a batch half handed over.
    """
    try:
        return next(readers)
    except (ValueError, OSError, EOFError) as error:
        words = str(error).strip().splitlines()
        if len(words) >= 2:
            raise type(error)(words[-1].partition(": ")[2] or words[-1]) from None
        if isinstance(error, (EOFError, ConnectionError)) and hasattr(readers, "_workers"):
            with suppress(RuntimeError):
                time.sleep(1)  # torch's own word of it, raised by a signal handler: here, not later
            raise OSError(_KILLED) from None
        raise


@contextmanager
def killed_readers_named() -> Iterator[None]:
    """Around a training: torch says that a reading process is gone wherever the training just was.

    Raises: OSError in place of torch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise OSError(_KILLED) from None
