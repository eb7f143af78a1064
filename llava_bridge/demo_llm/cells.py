"""What the small Llama learns from: a scene laid out in cells stands where a picture's tokens will stand.

A cell is the sum of the Llama's own embeddings of the words that are true in it, each weighed by how much of
the cell it is true of. So the Llama learns, before it sees a picture, that a place in the sequence is a place
in the world, and a projector has only to write what stands where. It will not write as cleanly: how much the
shares count, which of them are too small to be seen and the noise on top are drawn anew for each scene.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from encoder.data.scenes.layout import Cells
from encoder.runtime.checkpoint import step_generator
from llava_bridge.batches import collate
from llava_bridge.data import DataReport, LlavaDataset
from llava_bridge.prompt import IMAGE, Segment, read_turns, render_plain, render_vicuna_v1, tokenise

# Of a scene's shares, how far they are drawn from a clear cell's at most (`unclear` 1):
POWER = 0.5  # their exponent from 1: between a word in every cell it touches and in its own alone
LEAST_SEEN = (0.02, 0.10)  # of a cell: the share under which a word is left out lies between these
NOISE = 0.45  # deviation, in units of an embedding's entries


@dataclass(frozen=True, slots=True)
class CellTable:
    """Of each scene's N cells the words and how much of the cell each is true of (S N W; 0: no word)."""

    word_ids: Tensor
    shares: Tensor

    @property
    def num_cells(self) -> int:
        return self.shares.shape[1]


@dataclass(frozen=True, slots=True)
class CellLessons:
    """Conversations about scenes laid out in cells: samples whose N placeholders are cells, and the row of
    `table` that each is about. topics: of the questions of each. width: of the embeddings, D. unclear: how
    unclear the cells are at most, 0 to 1."""

    samples: LlavaDataset
    scenes: Tensor
    topics: list[list[str]]
    table: CellTable
    image_id: int
    width: int
    unclear: float

    def batch(self, step: int, batch_size: int, seed: int, pad_id: int) -> dict[str, Tensor]:
        """Samples drawn for a step, of about one length: what `collate` gives, is_text and is_cell (B L),
        word_ids and weights (B N W) and noise (B N D)."""
        generator = step_generator(seed, step, "cells")
        drawn = torch.randint(len(self.samples), (4 * batch_size,), generator=generator)
        drawn = drawn[self.samples.lengths[drawn].argsort()].chunk(4)
        rows = drawn[int(torch.randint(4, (1,), generator=generator))]
        power, least, strength = torch.rand(3, len(rows), 1, 1, generator=generator)
        power = 1 + self.unclear * POWER * (2 * power - 1)
        least = LEAST_SEEN[0] + self.unclear * (LEAST_SEEN[1] - LEAST_SEEN[0]) * least
        noise = torch.randn(len(rows), self.table.num_cells, self.width, generator=generator)
        return self._lay(rows, pad_id, power, least) | {"noise": self.unclear * NOISE * strength * noise}

    def in_order(self, batch_size: int, pad_id: int) -> Iterator[dict[str, Any]]:
        """All samples in clear cells, each batch with its `topics`."""
        for rows in torch.arange(len(self.samples)).split(batch_size):
            topics = [self.topics[row] for row in rows.tolist()]
            clear = self._lay(rows, pad_id, 1.0, LEAST_SEEN[0])
            yield clear | {"noise": torch.zeros(()), "topics": topics}

    def _lay(
        self, rows: Tensor, pad_id: int, power: Tensor | float, least: Tensor | float
    ) -> dict[str, Tensor]:
        batch = collate([self.samples[i] for i in rows.tolist()], None, pad_id)
        is_cell = batch["input_ids"] == self.image_id
        batch |= {"is_cell": is_cell, "is_text": batch["attention_mask"] * ~is_cell}
        scenes = self.scenes[rows]
        shares = self.table.shares[scenes].float()
        weights = torch.where(shares >= least, shares**power, 0.0)
        return batch | {"word_ids": self.table.word_ids[scenes].long(), "weights": weights}


def embed_cells(embedding: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """embedding (V D) and a batch of `CellLessons` -> what the Llama reads (B L D): its words, and at the
    placeholders the cells."""
    words = F.embedding(batch["input_ids"], embedding)
    cells = (F.embedding(batch["word_ids"], embedding) * batch["weights"][..., None]).sum(dim=2)  # B N D
    size = embedding.detach().square().mean().sqrt()  # of an entry
    cells = (cells + size * batch["noise"]).to(words.dtype)
    return words.masked_scatter(batch["is_cell"][..., None], cells)


def read_layouts(paths: Sequence[Path]) -> list[dict]:
    """The rows of layouts.jsonl files (`encoder.data.scenes.conversations.layout_record`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON, or has no topic for each of its questions.
    """
    rows = []
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines()):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path} row {number}: not JSON: {error}; write it again") from None
            if len(row.get("topics", ())) != len(row.get("conversations", ())) // 2:
                raise ValueError(
                    f"{path} row {number}: {len(row.get('topics', ()))} topics for "
                    f"{len(row.get('conversations', ())) // 2} questions; write it again"
                )
            rows.append(row)
    return rows


def tabulate(records: Sequence[Mapping], tokenizer: PreTrainedTokenizerBase) -> CellTable:
    """The cells of layouts.jsonl's records.

    Raises: ValueError for rows without cells, of several grids, or with a word that the tokenizer lacks.
    """
    layouts: list[Cells] = [record.get("cells", []) for record in records]
    grids = {len(cells) for cells in layouts}
    if len(grids) != 1 or 0 in grids:
        raise ValueError(
            f"layouts must all have the same number of cells, got {sorted(grids)}; write them with "
            "num_layouts of encoder.data.scenes.write"
        )
    words = sorted({word for cells in layouts for cell in cells for word in cell})
    known = dict(zip(words, tokenizer.convert_tokens_to_ids(words), strict=True))
    unknown = [word for word, index in known.items() if index == tokenizer.unk_token_id]
    if unknown:
        raise ValueError(f"the tokenizer lacks words of the layouts: {', '.join(unknown[:5])}")
    every_cell = [cell for cells in layouts for cell in cells]
    lengths = np.array([len(cell) for cell in every_cell])
    rows = np.repeat(np.arange(len(every_cell)), lengths)
    columns = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    word_ids = np.zeros((len(every_cell), lengths.max()), np.int16)
    shares = np.zeros(word_ids.shape, np.float16)
    word_ids[rows, columns] = [known[word] for cell in every_cell for word in cell]
    shares[rows, columns] = [share for cell in every_cell for share in cell.values()]
    shape = (len(layouts), grids.pop(), -1)
    return CellTable(*(torch.from_numpy(each).reshape(shape) for each in (word_ids, shares)))


def build_cell_lessons(
    records: Mapping[int, Mapping],
    table: CellTable,
    tokenizer: PreTrainedTokenizerBase,
    width: int,
    unclear: float = 0.0,
) -> CellLessons:
    """Records by their row of `table`. There is no system prompt: it is the same in every text and only draws
    attention.

    Raises: ValueError for questions or answers with words that the tokenizer lacks.
    """
    encoded = tokenise(
        [_render(record, tokenizer) for record in records.values()], tokenizer, table.num_cells
    )
    samples = LlavaDataset(encoded, [None] * len(encoded), DataReport.of_whole(list(records.values())))
    num_unknown = int((samples.input_ids == tokenizer.unk_token_id).sum())
    if num_unknown:
        raise ValueError(
            f"{num_unknown} of the lessons' {len(samples.input_ids)} tokens are not in the vocabulary; add "
            "their words to encoder.data.scenes.wording"
        )
    topics = [record["topics"] for record in records.values()]
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    return CellLessons(samples, torch.tensor(list(records)), topics, table, image_id, width, unclear)


def _render(record: Mapping, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    turns = read_turns(record)
    if turns[0][0] == IMAGE:  # a caption, as stage 1 renders it
        return render_plain(turns, tokenizer)
    return render_vicuna_v1(turns, tokenizer)[1:]
