"""A reader as lmms-eval's model object: it is asked and scored exactly as a language model is.

It sees what the model sees, a question's words and the picture's frozen tokens. Letters: B pictures of a
batch, D width of a picture's flattened tokens.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from torch import Tensor

from harness.probe.readers import Reader
from harness.probe.sight import Sight


class ProbeAnswerer(lmms):
    """lmms-eval's "simple" interface over frozen tokens and a reader of them."""

    def __init__(
        self,
        sight: Sight,
        reader: Reader,
        *,
        batch_size: int = 64,
        report: Callable[[int, int], None] = lambda done, total: None,
    ):
        super().__init__()
        self.sight, self.reader, self.batch_size = sight, reader, batch_size
        self.report = report

    def clean(self) -> None:
        """Keep everything: lmms-eval would delete what it finds after an evaluation."""

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(minus the log of the continuation's probability, whether it is the likeliest), for each request;
        the options of a question come one after the other."""
        rows, features = self._see([(request.args[2], *request.args[3:6]) for request in requests])
        scores: list = [None] * len(requests)
        asked: dict[tuple[int, str], list[int]] = {}
        for number, request in enumerate(requests):
            asked.setdefault((rows[number], request.args[0]), []).append(number)
        for done, ((row, context), numbers) in enumerate(asked.items(), start=1):
            options = [self._target(requests[number]) for number in numbers]
            losses = self.reader.losses(features[row], question_of(context), options)
            for number, loss in zip(numbers, losses, strict=True):
                scores[number] = GenerationResult(text=(loss, loss == min(losses)))
            self.report(done, len(asked))
        return scores

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Yes or no, whichever is likelier."""
        rows, features = self._see([request.args[2:6] for request in requests])
        answers = []
        for row, request in zip(rows, requests, strict=True):
            no, yes = self.reader.losses(features[row], question_of(request.args[0]), ("no", "yes"))
            answers.append("yes" if yes < no else "no")
            self.report(len(answers), len(requests))
        return answers

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered.

        Raises:
            ValueError: always.
        """
        raise ValueError("a probe answers single questions")

    def _target(self, request: Instance) -> str:
        target, (doc_id, task, split) = request.args[1], request.args[3:6]
        text = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
        return text.strip()  # lmms-eval puts a space before it

    def _see(self, places: Sequence[tuple]) -> tuple[list[int], Tensor]:
        """Each request's row in the features (M D) of the different pictures."""
        first: dict[bytes, int] = {}
        by_question: dict[tuple, int] = {}
        pictures, rows = [], []
        for doc_to_visual, doc_id, task, split in places:
            if (task, split, doc_id) not in by_question:
                (picture,) = doc_to_visual(self.task_dict[task][split][doc_id])
                image = np.asarray(picture)
                key = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
                if key not in first:
                    first[key] = len(pictures)
                    pictures.append(image)
                by_question[task, split, doc_id] = first[key]
            rows.append(by_question[task, split, doc_id])
        return rows, self._encode(pictures)

    def _encode(self, pictures: Sequence[np.ndarray]) -> Tensor:
        features: list[Tensor] = [torch.empty(0)] * len(pictures)
        by_shape: dict[tuple, list[int]] = {}
        for number, picture in enumerate(pictures):
            by_shape.setdefault(picture.shape, []).append(number)
        for numbers in by_shape.values():
            for start in range(0, len(numbers), self.batch_size):
                part = numbers[start : start + self.batch_size]
                rows = self.sight.encode(np.stack([pictures[number] for number in part]))
                for number, row in zip(part, rows, strict=True):
                    features[number] = row
        return torch.stack(features)


def question_of(context: str) -> str:
    """The question in a prompt: what comes before the instruction on how to answer."""
    return context.rsplit("\n", 1)[0]
