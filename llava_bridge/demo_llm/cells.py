"""The small Llama's last lessons: a scene laid out in cells stands where a picture's tokens will stand.

A cell is the sum of the Llama's own embeddings of the words that are true in it, each weighed by how much of
the cell it is true of. So the Llama learns, before it sees a picture, that a place in the sequence is a place
in the world, and a projector has only to write what stands where. It will not write as cleanly: how much the
shares count, which of them are too small to be seen and the noise on top are drawn anew for each scene.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from encoder.data.scenes.layout import Cells
from encoder.runtime.checkpoint import step_generator
from llava_bridge.batches import collate
from llava_bridge.data import DataReport, LlavaDataset
from llava_bridge.prompt import IMAGE, Segment, read_turns, render_plain, render_vicuna_v1, tokenise

POWER = (0.5, 1.5)  # of the shares: what is between a word in every cell it touches and in its own alone
LEAST_SEEN = (0.02, 0.10)  # of a cell: the share under which a word is left out lies between these
NOISE = 0.45  # its largest deviation, in units of an embedding's entries


@dataclass(frozen=True, slots=True)
class CellLessons:
    """Conversations about scenes laid out in cells: samples whose N placeholders are cells, word_ids and
    shares (S N W): of each scene's cells the words and how much of the cell each is true of (0: no word). The
    last `num_held_out` are not drawn. width: of the embeddings, D."""

    samples: LlavaDataset
    word_ids: Tensor
    shares: Tensor
    image_id: int
    num_held_out: int
    width: int

    def batch(self, step: int, batch_size: int, seed: int, pad_id: int) -> dict[str, Tensor]:
        """Scenes drawn for a step, of about one length: what `collate` gives, is_text and is_cell (B L),
        word_ids and weights (B N W) and noise (B N D)."""
        generator = step_generator(seed, step, "cells")
        drawn = torch.randint(len(self.samples) - self.num_held_out, (4 * batch_size,), generator=generator)
        drawn = drawn[self.samples.lengths[drawn].argsort()].chunk(4)
        rows = drawn[int(torch.randint(4, (1,), generator=generator))]
        power, least, strength = torch.rand(3, len(rows), 1, 1, generator=generator)
        power = POWER[0] + (POWER[1] - POWER[0]) * power
        least = LEAST_SEEN[0] + (LEAST_SEEN[1] - LEAST_SEEN[0]) * least
        noise = torch.randn(*self.shares[rows].shape[:2], self.width, generator=generator)
        return self._lay(rows, pad_id, power, least) | {"noise": NOISE * strength * noise}

    def held_out(self, batch_size: int, pad_id: int) -> Iterator[dict[str, Tensor]]:
        """The scenes that are not drawn, in order, in clear cells."""
        first = len(self.samples) - self.num_held_out
        for rows in torch.arange(first, len(self.samples)).split(batch_size):
            yield self._lay(rows, pad_id, sum(POWER) / 2, sum(LEAST_SEEN) / 2) | {"noise": torch.zeros(())}

    def _lay(
        self, rows: Tensor, pad_id: int, power: Tensor | float, least: Tensor | float
    ) -> dict[str, Tensor]:
        batch = collate([self.samples[i] for i in rows.tolist()], None, pad_id)
        is_cell = batch["input_ids"] == self.image_id
        batch |= {"is_cell": is_cell, "is_text": batch["attention_mask"] * ~is_cell}
        shares = self.shares[rows].float()
        weights = torch.where(shares >= least, shares**power, 0.0)
        return batch | {"word_ids": self.word_ids[rows].long(), "weights": weights}


def embed_cells(embedding: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """embedding (V D) and a batch of `CellLessons` -> what the Llama reads (B L D): its words, and at the
    placeholders the cells."""
    words = F.embedding(batch["input_ids"], embedding)
    cells = (F.embedding(batch["word_ids"], embedding) * batch["weights"][..., None]).sum(dim=2)  # B N D
    size = embedding.detach().square().mean().sqrt()  # of an entry
    cells = (cells + size * batch["noise"]).to(words.dtype)
    return words.masked_scatter(batch["is_cell"][..., None], cells)


def read_layouts(paths: Sequence[Path]) -> list[dict]:
    """The rows of layouts.jsonl files.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON.
    """
    rows = []
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines()):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path} row {number}: not JSON: {error}; write it again") from None
    return rows


def build_cell_lessons(
    records: Sequence[Mapping], tokenizer: PreTrainedTokenizerBase, num_held_out: int, width: int
) -> CellLessons:
    """Records of layouts.jsonl (`encoder.data.scenes.conversations.layout_record`). There is no system
    prompt, as in `lessons`.

    Raises: ValueError for rows without cells, of several grids, or with a word that the tokenizer lacks.
    """
    grids = {len(record.get("cells", ())) for record in records}
    if len(grids) != 1 or 0 in grids:
        raise ValueError(
            f"layouts must all have the same number of cells, got {sorted(grids)}; write them with "
            "num_layouts of encoder.data.scenes.write"
        )
    word_ids, shares = _tabulate([record["cells"] for record in records], tokenizer)
    rendered = [_render(record, tokenizer) for record in records]
    encoded = tokenise(rendered, tokenizer, grids.pop())
    samples = LlavaDataset(encoded, [None] * len(encoded), DataReport.of_whole(records))
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    return CellLessons(samples, word_ids, shares, image_id, num_held_out, width)


def _render(record: Mapping, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    turns = read_turns(record)
    if turns[0][0] == IMAGE:  # a caption, as stage 1 renders it
        return render_plain(turns, tokenizer)
    return render_vicuna_v1(turns, tokenizer)[1:]


def _tabulate(layouts: Sequence[Cells], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    words = sorted({word for cells in layouts for cell in cells for word in cell})
    known = dict(zip(words, tokenizer.convert_tokens_to_ids(words), strict=True))
    unknown = [word for word, index in known.items() if index == tokenizer.unk_token_id]
    if unknown:
        raise ValueError(f"the tokenizer lacks words of the layouts: {', '.join(unknown[:5])}")
    most = max(len(cell) for cells in layouts for cell in cells)
    shape = (len(layouts), len(layouts[0]), most)
    word_ids, shares = torch.zeros(shape, dtype=torch.int16), torch.zeros(shape, dtype=torch.float16)
    for i, cells in enumerate(layouts):
        for j, cell in enumerate(cells):
            word_ids[i, j, : len(cell)] = torch.tensor([known[word] for word in cell], dtype=torch.int16)
            shares[i, j, : len(cell)] = torch.tensor(list(cell.values()))
    return word_ids, shares
