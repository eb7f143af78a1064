"""What the small Llama is trained on, step by step: lessons, rows of the corpus, scenes in cells."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from encoder.runtime.config import ROOT
from llava_bridge.batches import collate
from llava_bridge.config import TrainLlmConfig
from llava_bridge.data import DataReport, LlavaDataset, read_records, training_order
from llava_bridge.demo_llm.cells import CellLessons, build_cell_lessons, read_layouts
from llava_bridge.demo_llm.lessons import ask_for_words, build_lessons, draw_lessons
from llava_bridge.prompt import IGNORE, encode_conversations

LENGTH_STEP = 128  # tokens


@dataclass(frozen=True, slots=True)
class Course:
    """What is trained on; the last rows of the corpus and of the layouts are held out."""

    corpus: LlavaDataset
    num_train: int  # rows
    order: list[int]  # of these, batch after batch
    lessons: LlavaDataset | None  # None without num_lesson_steps
    cells: CellLessons | None  # None without num_cell_steps
    config: TrainLlmConfig

    @property
    def num_steps(self) -> int:
        return self.config.num_lesson_steps + self.config.num_steps + self.config.num_cell_steps

    def reads_corpus(self, step: int) -> bool:
        """Whether the step's batch is of the few lengths of `round_up_length`."""
        return 0 <= step - self.config.num_lesson_steps < self.config.num_steps

    def batch(self, step: int, pad_id: int) -> dict[str, Tensor]:
        """The padded rows of a step: input_ids, labels, attention_mask and is_text (B L; 1 where a word
        stands); of scenes in cells also what `CellLessons.batch` gives."""
        config = self.config
        if self.reads_corpus(step):
            start = (step - config.num_lesson_steps) * config.batch_size
            rows = self.order[start : start + config.batch_size]
            batch = round_up_length(collate([self.corpus[i] for i in rows], None, pad_id), pad_id)
        elif step < config.num_lesson_steps:
            rows = draw_lessons(
                len(self.lessons), step, config.num_lesson_steps, config.lesson_batch_size, config.seed
            )
            batch = collate([self.lessons[i] for i in rows], None, pad_id)
        else:
            return self.cells.batch(step, config.cell_batch_size, config.seed, pad_id)
        return batch | {"is_text": batch["attention_mask"]}

    def held_out(self, pad_id: int) -> dict[str, Iterator[dict[str, Tensor]]]:
        """Batches of what is not trained on, by what their scores' names begin with: text, and cells where
        there are any."""
        rows, size = range(self.num_train, len(self.corpus)), self.config.batch_size
        starts = rows[::size]
        text = (
            collate([self.corpus[i] for i in range(start, min(start + size, rows.stop))], None, pad_id)
            for start in starts
        )
        cells = {"cells_": self.cells.held_out(size, pad_id)} if self.cells is not None else {}
        return {"": text, **cells}


def plan_course(config: TrainLlmConfig, tokenizer: PreTrainedTokenizerBase) -> Course:
    """The corpus, the lessons and the scenes in cells, tokenised, in the order that the seed gives.

    Raises: ValueError if no row is left to train on, or a layout does not fit the model.
    """
    corpus = read_corpus(config, tokenizer)
    num_train = _left_to_train(len(corpus), config.num_held_out, "corpus")
    order = training_order(corpus.lengths[:num_train], config.batch_size, config.num_steps, config.seed)
    lessons, cells = None, None
    if config.num_lesson_steps:
        records = read_records([ROOT / path for path in config.corpus])[:num_train]
        lessons = build_lessons(records, tokenizer, config.seed)
    if config.num_cell_steps:
        layouts = read_layouts([ROOT / path for path in config.layouts])
        _left_to_train(len(layouts), config.num_held_out, "layouts")
        cells = build_cell_lessons(layouts, tokenizer, config.num_held_out, config.shape.width)
        longest = int(cells.samples.lengths.max())
        if longest > config.shape.max_length:
            raise ValueError(
                f"the longest of the layouts has {longest} tokens, its cells among them, and "
                f"shape.max_length is {config.shape.max_length}; raise it, or write them with a smaller "
                "layout_grid"
            )
    return Course(corpus, num_train, order, lessons, cells, config)


def _left_to_train(num_rows: int, num_held_out: int, what: str) -> int:
    if num_held_out >= num_rows:
        raise ValueError(
            f"num_held_out {num_held_out} leaves none of the {what}'s {num_rows} rows to train on"
        )
    return num_rows - num_held_out


def read_corpus(config: TrainLlmConfig, tokenizer: PreTrainedTokenizerBase) -> LlavaDataset:
    """Every row of the corpus, tokenised in its own template: conversations in `vicuna_v1`, bare text in
    `plain`."""
    records = read_records([ROOT / path for path in config.corpus])
    draw = random.Random(config.seed)
    records = [ask_for_words(row) if draw.random() < config.free_answer_fraction else row for row in records]
    encoded: list = [None] * len(records)
    for template, is_text in (("vicuna_v1", False), ("plain", True)):
        rows = [i for i, record in enumerate(records) if ("text" in record) == is_text]
        samples = encode_conversations(
            [records[i] for i in rows], template, tokenizer, 0, config.shape.max_length
        )
        for i, sample in zip(rows, samples, strict=True):
            encoded[i] = sample
    report = DataReport.of_whole(records)
    dataset = LlavaDataset(encoded, [None] * len(records), report)
    num_unknown = int((dataset.input_ids == tokenizer.unk_token_id).sum())
    if num_unknown:
        raise ValueError(
            f"{num_unknown} of the corpus's {len(dataset.input_ids)} tokens are not in the vocabulary; "
            "add their words to encoder.data.scenes.wording"
        )
    return dataset


def round_up_length(batch: dict[str, Tensor], pad_id: int) -> dict[str, Tensor]:
    """The batch with its length rounded up to a multiple of `LENGTH_STEP`: few shapes, each compiled once."""
    short = -batch["input_ids"].shape[1] % LENGTH_STEP
    fill = {"input_ids": pad_id, "labels": IGNORE, "attention_mask": 0}
    return {name: F.pad(tensor, (0, short), value=fill[name]) for name, tensor in batch.items()}
