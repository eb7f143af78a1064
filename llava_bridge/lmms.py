"""A LLaVA model as lmms-eval's model object: batched greedy generation with left padding and a key-value
cache.

Each distinct picture is encoded and projected once and handed over as `mm_encoder_outputs`, since
benchmarks ask several questions of one picture.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from encoder.data.pictures import as_rgb
from encoder.runtime.distributed import num_processes, share_out
from llava_bridge.config import Template
from llava_bridge.kept_answers import KeptAnswers, digest, weights_state
from llava_bridge.labels import IGNORE, Encoded, Segment, tokenise
from llava_bridge.prompt import answer_text, question_prompt, stop_ids

DEFAULT_UNTIL = ("\n\n",)  # lmms-eval's own default


class PictureCache:
    """Projected tokens of pictures by content, the least recently used dropped beyond `limit_bytes`."""

    def __init__(self, model: LlavaForConditionalGeneration, image_processor, limit_bytes: int):
        self.model = model
        self.image_processor = image_processor
        self.limit_bytes = limit_bytes
        self.num_bytes = 0
        self.num_encoded = 0
        self.num_tokens: Counter[int] = (
            Counter()
        )  # a picture's tokens -> how often a question had one of so many
        self.features: OrderedDict[bytes, Tensor] = OrderedDict()

    @torch.inference_mode()
    def lookup(self, pictures: Sequence[Image]) -> list[Tensor]:
        """Image features (N D_llm) of each picture; those not seen before are encoded in one batch."""
        keys = [digest(picture) for picture in pictures]
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self.features}
        if new:
            seen = self.image_processor(list(new.values()), return_tensors="pt").to(self.model.device)
            pixels = seen["pixel_values"]
            if pixels.is_floating_point():
                seen["pixel_values"] = pixels.to(self.model.dtype)
            encoded = self.model.get_image_features(**seen, return_dict=True).pooler_output
            self.features.update(zip(new, encoded, strict=True))
            self.num_encoded += len(new)
            self.num_bytes += sum(feature.nbytes for feature in encoded)
        found = [self.features[key] for key in keys]
        self.num_tokens.update(map(len, found))
        for key in keys:
            self.features.move_to_end(key)
        while self.num_bytes > self.limit_bytes and len(self.features) > 1:
            self.num_bytes -= self.features.popitem(last=False)[1].nbytes
        return found


class LlavaLmms(lmms):
    """lmms-eval's "simple" interface over a LLaVA model and its processor.

    Processes of one launch share a call's batches in turns and all get all answers, so each of them scores
    the whole benchmark as one alone does; batches are the same whatever their number.

    answers: a folder that keeps the answers so far, and from which they are taken; None: none is kept.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        *,
        batch_size: int = 16,
        max_new_tokens: int = 128,
        template: Template = "vicuna_v1",
        cache_bytes: int = 2 << 30,
        answers: Path | None = None,
        report: Callable[[int, int], None] = lambda done, total: None,
    ):
        super().__init__()
        self.model = model.eval()
        self.tokenizer = processor.tokenizer
        self.pictures = PictureCache(model, processor.image_processor, cache_bytes)
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.template = template
        self.stop_ids = stop_ids(template, processor.tokenizer)
        self.report = report
        self.kept = answers and KeptAnswers(answers, _about(model), self.pictures.num_tokens)

    def clean(self) -> None:
        """Keep the model: lmms-eval deletes it after each evaluation, which would forbid a second one."""

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers, in the order of the requests."""

        def answer(rows: Sequence[int], options: tuple[int, tuple[str, ...]]) -> list[str]:
            visuals = [self._visuals(*requests[row].args[2:6]) for row in rows]
            prompts = [
                self._prompt(requests[row].args[0], len(seen))
                for row, seen in zip(rows, visuals, strict=True)
            ]
            return [_cut(text, options[1]) for text in self._generate(prompts, visuals, options[0])]

        options = [_generation_options(each.args[1], self.max_new_tokens) for each in requests]
        return self._share(requests, options, answer)

    def answer(self, question: str, pictures: Sequence[Image]) -> str:
        """The greedy answer to one question about pictures (or none)."""
        (text,) = self._generate(
            [self._prompt(question, len(pictures))], [list(pictures)], self.max_new_tokens
        )
        return text.strip()

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(mean loss of the continuation's tokens, whether greedy decoding gives them), for each request.

        lmms-eval 0.7.3 takes the smallest value as the choice, so a loss, and turns bare tuples into
        strings, so wrapped.
        """

        def score(rows: Sequence[int], _: None) -> list[tuple[float, bool]]:
            encoded, visuals = [], []
            for row in rows:
                context, target, doc_to_visual, doc_id, task, split = requests[row].args
                target = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
                visuals.append(self._visuals(doc_to_visual, doc_id, task, split))
                prompt = self._prompt(context, len(visuals[-1]))
                answer = answer_text(str(target), self.template)
                encoded.append(([Segment(prompt, False), Segment(answer, True)], visuals[-1]))
            return self._score(encoded)

        scores = self._share(requests, [None] * len(requests), score)
        return [GenerationResult(text=each) for each in scores]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered: each question here stands alone.

        Raises:
            ValueError: always, naming the task.
        """
        raise ValueError(
            f"task {requests[0].args[5]} asks in several rounds, which this model object does not do"
        )

    def _share(
        self, requests: Sequence[Instance], options: Sequence, answer: Callable[[list[int], Any], list]
    ) -> list:
        """Every request's answer in order: `answer(rows, options)` of each batch, by one of the processes.

        Raises:
            Exception: whatever `answer` raises; of a batch of several processes, a RuntimeError in all.
        """
        batches, done = list(self._batches(requests, options)), 0

        def run(number: int) -> list:
            nonlocal done
            given = answer(*batches[number])
            done = min(done + len(given) * num_processes(), len(requests))
            self.report(done, len(requests))
            return given

        asked = f"{len(requests)} questions of {requests[0].args[4]}" if requests else "no questions"
        parts = share_out(run, len(batches), asked)
        found = {row: each for (rows, _), part in zip(batches, parts, strict=True)
                 for row, each in zip(rows, part, strict=True)}  # fmt: skip
        return [found[row] for row in range(len(requests))]

    def _batches(self, requests: Sequence[Instance], options: Sequence) -> Iterator[tuple[list[int], object]]:
        """Rows of requests with equal options, the longest first (a batch too large for memory fails at
        once)."""
        for wanted in dict.fromkeys(options):
            rows = [row for row in range(len(requests)) if options[row] == wanted]
            rows.sort(key=lambda row: -len(requests[row].args[0]))
            for start in range(0, len(rows), self.batch_size):
                yield rows[start : start + self.batch_size], wanted

    def _prompt(self, question: str, num_images: int) -> str:
        return question_prompt(question, num_images, self.template, self.tokenizer)

    def _visuals(self, doc_to_visual: Callable, doc_id: int, task: str, split: str) -> list[Image]:
        return [as_rgb(picture) for picture in doc_to_visual(self.task_dict[task][split][doc_id])]

    def _tokenise(
        self, segments: Sequence[Sequence[Segment]], features: Sequence[Sequence[Tensor]]
    ) -> list[Encoded]:
        counts = [[len(feature) for feature in row] or 0 for row in features]
        return tokenise(segments, self.tokenizer, counts, adds_bos=self.template != "chat")

    def _inputs(self, samples: Sequence[Encoded], features: Sequence[Sequence[Tensor]]) -> dict:
        rows = [torch.from_numpy(sample.input_ids).long() for sample in samples]
        pad = self.tokenizer.pad_token_id
        inputs = {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left"),
            "attention_mask": pad_sequence(
                [torch.ones_like(row) for row in rows], batch_first=True, padding_side="left"
            ),
        }
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        flat = [feature for row in features for feature in row]
        if flat:
            inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=flat)}
        return inputs

    def _features(self, visuals: Sequence[Sequence[Image]]) -> list[list[Tensor]]:
        flat = self.pictures.lookup([picture for row in visuals for picture in row])
        return [[flat.pop(0) for _ in row] for row in visuals]

    def _generate(
        self, prompts: Sequence[str], visuals: Sequence[Sequence[Image]], max_new_tokens: int
    ) -> list[str]:
        asked = ["generate", list(prompts), max_new_tokens]
        return self._ask(asked, visuals, lambda: self._write(prompts, visuals, max_new_tokens))

    def _ask(self, asked: list, visuals: Sequence[Sequence[Image]], answer: Callable[[], list]) -> list:
        return self.kept.ask(asked, visuals, answer) if self.kept is not None else answer()

    @torch.inference_mode()
    def _write(
        self, prompts: Sequence[str], visuals: Sequence[Sequence[Image]], max_new_tokens: int
    ) -> list[str]:
        features = self._features(visuals)
        samples = self._tokenise([[Segment(prompt, False)] for prompt in prompts], features)
        inputs = self._inputs(samples, features)
        output = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=self.stop_ids or None,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new_ids = output[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(new_ids, skip_special_tokens=True)

    def _score(self, batch: Sequence[tuple[list[Segment], list[Image]]]) -> list[tuple[float, bool]]:
        asked = ["score", [[[each.text, each.is_answer] for each in segments] for segments, _ in batch]]
        visuals = [seen for _, seen in batch]
        return [tuple(each) for each in self._ask(asked, visuals, lambda: self._losses(batch))]

    @torch.inference_mode()
    def _losses(self, batch: Sequence[tuple[list[Segment], list[Image]]]) -> list[tuple[float, bool]]:
        features = self._features([visuals for _, visuals in batch])
        samples = self._tokenise([segments for segments, _ in batch], features)
        starts = [int(np.argmax(sample.labels != IGNORE)) for sample in samples]
        answers = [
            torch.from_numpy(s.input_ids[i:]).long().to(self.model.device)
            for s, i in zip(samples, starts, strict=True)
        ]
        logits = self._answer_logits(samples, features, starts, answers)
        scores = []
        for targets, row in zip(answers, logits, strict=True):
            kept = row[: len(targets)]
            loss = torch.nn.functional.cross_entropy(kept, targets).item()
            scores.append((loss, bool((kept.argmax(-1) == targets).all())))
        return scores

    def _answer_logits(
        self,
        samples: Sequence[Encoded],
        features: Sequence[Sequence[Tensor]],
        starts: Sequence[int],
        answers: Sequence[Tensor],
    ) -> Tensor:
        """Logits (B L V, fp32) of the answers' tokens; a sample's answer begins at its entry of `starts`.

        What stands before the answer, a question and its pictures, is run once for all answers to it.
        """
        contexts = [
            (s.input_ids[:i].tobytes(), *map(id, seen))
            for s, i, seen in zip(samples, starts, features, strict=True)
        ]
        firsts = {context: row for row, context in reversed([*enumerate(contexts)])}
        rows = sorted(firsts.values())
        asked = [Encoded(samples[i].input_ids[: starts[i]], samples[i].labels[: starts[i]]) for i in rows]
        inputs = self._inputs(asked, [features[i] for i in rows])
        asked_mask = inputs["attention_mask"]
        before = self.model(**inputs, position_ids=_positions(asked_mask), use_cache=True, logits_to_keep=1)
        place = {row: i for i, row in enumerate(rows)}
        which = torch.tensor([place[firsts[context]] for context in contexts], device=asked_mask.device)
        logits = before.logits[which]  # B 1 V
        said = pad_sequence(list(answers), batch_first=True)[:, :-1]
        if said.shape[1]:
            cache = before.past_key_values
            cache.batch_select_indices(which)
            mask = pad_sequence([torch.ones_like(answer) for answer in answers], batch_first=True)[:, :-1]
            mask = torch.cat([asked_mask[which], mask], 1)
            positions = _positions(mask)[:, asked_mask.shape[1] :]
            after = self.model(
                input_ids=said, attention_mask=mask, position_ids=positions, past_key_values=cache
            )
            logits = torch.cat([logits, after.logits], 1)
        return logits.float()


def _about(model: LlavaForConditionalGeneration) -> list:
    """All of a model that decides its answers: its place, its files of weights, how it runs, its canvases."""
    config = model.config
    canvases = getattr(config, "image_grid_pinpoints", None)
    weights = weights_state(Path(config.name_or_path)) if config.name_or_path else []
    return [config.name_or_path, weights, str(model.dtype), config._attn_implementation, canvases]


def _positions(attention_mask: Tensor) -> Tensor:
    """Positions (B L) that count the tokens of a row, not its padding."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def _generation_options(options: dict, max_new_tokens: int) -> tuple[int, tuple[str, ...]]:
    """(max_new_tokens, stop strings) of a task's generation_kwargs; the rest (image_aspect_ratio, top_p
    ...) is not generate's.

    Raises:
        ValueError: the task wants sampling or beams; answers here are greedy.
    """
    if (options.get("do_sample") and options.get("temperature", 1.0) > 0) or options.get("num_beams", 1) != 1:
        raise ValueError(f"this model object answers greedily; the task asks for {options}")
    until = options.get("until", DEFAULT_UNTIL)
    return options.get("max_new_tokens", max_new_tokens), (until,) if isinstance(until, str) else tuple(until)


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop)[0] if stop else text
    return text.strip()
