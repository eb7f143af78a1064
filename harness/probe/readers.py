"""What reads an answer from tokens: of scenes, whose facts are known; of captions, by their words.

Letters: M pictures, D width of their flattened tokens, O options.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from encoder.data.scenes import wording
from encoder.data.scenes.objects import KINDS, article
from encoder.data.scenes.questions import facts
from encoder.data.scenes.scene import Scene
from encoder.metrics.readout import Readout, ReadoutConfig, fit_readout
from harness.probe.answers import PRESENCE, answer_scores, answers_to, topic_of
from harness.probe.scene_facts import NUM_VALUES, Read, facts_of

LINEAR, MLP = "linear", "MLP"
_TINY = 1e-12  # of all answers' scores: nothing is impossible
_WORD = re.compile(r"[^\W_]+")
_MOST_WORDS = 1000


class Reader(Protocol):
    """Answers questions about pictures from their tokens."""

    about: Mapping[str, object]  # which probe was chosen for what, and its score on the validation pictures

    def losses(self, features: Tensor, question: str, options: Sequence[str]) -> list[float]:
        """Minus the log of each option's probability; features D."""


def flat_tokens(tokens: Tensor, grid: tuple[int, int], most: int) -> Tensor:
    """Tokens (B N D) as one row a picture, of at most `most` x `most` places, those of a larger grid
    averaged."""
    h, w = grid
    maps = rearrange(tokens.float(), "b (h w) d -> b d h w", h=h, w=w)
    if max(h, w) > most:
        maps = functional.adaptive_avg_pool2d(maps, (min(h, most), min(w, most)))
    return rearrange(maps, "b d h w -> b (h w d)")


def dimension_of(topic: str) -> str:
    """The column of the tables that a topic belongs to."""
    return "Scenes-POPE" if topic == PRESENCE else wording.DIMENSIONS[wording.QUESTIONS[topic][0]]


@dataclass(frozen=True)
class SceneReader:
    """A readout for each dimension, the one that answers best about the validation pictures."""

    readouts: Mapping[str, Readout]
    chosen: Mapping[str, str]  # dimension -> LINEAR or MLP
    about: Mapping[str, object]

    @staticmethod
    def fit(
        features: Tensor, scenes: Sequence[Scene], configs: Mapping[str, ReadoutConfig], num_validation: int,
        seed: int,
    ) -> SceneReader:  # fmt: skip
        """Fitted to features (M D) and their scenes. The last `num_validation` choose, and are then fitted
        too."""
        known, cut = facts_of(scenes), len(scenes) - num_validation
        tried = {
            name: fit_readout(features[:cut], known[:cut], NUM_VALUES, config, seed)
            for name, config in configs.items()
        }
        held = features[cut:], scenes[cut:]
        right = {name: percent_right(readout, *held) for name, readout in tried.items()}
        dimensions = next(iter(right.values()))
        chosen = {each: max(right, key=lambda name: right[name][each]) for each in dimensions}
        readouts = {
            name: fit_readout(features, known, NUM_VALUES, configs[name], seed)
            for name in configs
            if name in chosen.values()
        }
        about = {"chosen": chosen, "validation_percent": right, "num_train": len(scenes)}
        return SceneReader(readouts, chosen, about)

    def losses(self, features: Tensor, question: str, options: Sequence[str]) -> list[float]:
        """See `Reader`.

        Raises:
            ValueError: no question of Scenes, or an option that is no answer to it.
        """
        readout = self.readouts[self.chosen[dimension_of(topic_of(question))]]
        read = Read.of(readout.probabilities(features[None]))
        scores = _normalised(answer_scores(read, question))[0]
        answers = answers_to(question)
        if unknown := [option for option in options if option not in answers]:
            raise ValueError(f"{question!r}: {unknown[0]!r} is none of {', '.join(answers)}")
        return [-float(scores[answers.index(option)].log()) for option in options]


def _normalised(scores: Tensor) -> Tensor:
    """Probabilities (N O) from scores of which only the ratios count."""
    scores = scores + _TINY
    return scores / scores.sum(dim=1, keepdim=True)


def percent_right(readout: Readout, features: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """How many questions about scenes are answered right, of all possible answers: % by dimension.

    Every question that has one answer is asked of every scene, and of each kind whether it is there.
    """
    read = Read.of(readout.probabilities(features))
    asked: dict[str, list[tuple[int, str]]] = defaultdict(list)  # question -> (row, its answer)
    for row, scene in enumerate(scenes):
        for fact in facts(scene):
            asked[fact.question].append((row, fact.answer))
        shown = {item.kind for item in scene.items}
        for kind in KINDS:
            asked[wording.POPE_QUESTION.format(a_kind=article(kind))].append(
                (row, "yes" if kind in shown else "no")
            )
    right, total = Counter(), Counter()
    for question, pairs in asked.items():
        rows, truths = zip(*pairs, strict=True)
        said = answer_scores(read[list(rows)], question).argmax(dim=1).tolist()
        answers, dimension = answers_to(question), dimension_of(topic_of(question))
        right[dimension] += sum(answers[i] == truth for i, truth in zip(said, truths, strict=True))
        total[dimension] += len(rows)
    return {dimension: 100 * right[dimension] / total[dimension] for dimension in sorted(total)}


def words_of(caption: str) -> frozenset[str]:
    """The different words of a caption, in lower case."""
    return frozenset(_WORD.findall(caption.lower()))


@dataclass(frozen=True)
class CaptionReader:
    """Which words a picture's caption has; a caption is as likely as its words, and as those that it lacks.

    The words are those of two captions or more that not all have, the `_MOST_WORDS` commonest.
    """

    readout: Readout
    vocabulary: tuple[str, ...]
    about: Mapping[str, object]

    @staticmethod
    def fit(
        features: Tensor, captions: Sequence[str], configs: Mapping[str, ReadoutConfig], num_validation: int,
        seed: int,
    ) -> CaptionReader:  # fmt: skip
        """As `SceneReader.fit`; the readout whose words are likelier is chosen.

        Raises:
            ValueError: the captions share no words that tell them apart.
        """
        counts = Counter(word for caption in captions for word in words_of(caption))
        common = [(n, word) for word, n in counts.items() if 2 <= n < len(captions)]
        vocabulary = tuple(word for _, word in sorted(common, key=lambda pair: (-pair[0], pair[1])))
        vocabulary = vocabulary[:_MOST_WORDS]
        if not vocabulary:
            raise ValueError(f"no two of {len(captions)} captions share a word that others lack")
        known = torch.tensor([_has_words(caption, vocabulary) for caption in captions])
        num_values, cut = [2] * len(vocabulary), len(captions) - num_validation
        likely = {}
        for name, config in configs.items():
            readout = fit_readout(features[:cut], known[:cut], num_values, config, seed)
            likely[name] = float(_log_likelihood(readout, features[cut:], known[cut:]).mean())
        chosen = max(likely, key=likely.__getitem__)
        readout = fit_readout(features, known, num_values, configs[chosen], seed)
        about = {"chosen": chosen, "validation_log_likelihood": likely, "num_words": len(vocabulary)}
        return CaptionReader(readout, vocabulary, about | {"num_train": len(captions)})

    def losses(self, features: Tensor, question: str, options: Sequence[str]) -> list[float]:
        """See `Reader`."""
        known = torch.tensor([_has_words(option, self.vocabulary) for option in options])
        rows = features[None].expand(len(options), -1)
        return (-_log_likelihood(self.readout, rows, known)).tolist()


def _has_words(caption: str, vocabulary: Sequence[str]) -> list[int]:
    own = words_of(caption)
    return [int(word in own) for word in vocabulary]


def _log_likelihood(readout: Readout, features: Tensor, known: Tensor) -> Tensor:
    """Of each row's words (N W, 0 or 1): N."""
    chances = torch.stack(readout.probabilities(features), dim=1)  # N W 2
    return chances.gather(2, known[..., None]).squeeze(2).clamp_min(_TINY).log().sum(dim=1)


READERS: dict[str, Callable[..., Reader]] = {"scenes": SceneReader.fit, "captions": CaptionReader.fit}


def configs_of(base: ReadoutConfig, hidden: int) -> dict[str, ReadoutConfig]:
    """The readouts that are tried: one layer, and one with `hidden` units between two."""
    return {LINEAR: dataclasses.replace(base, hidden=0), MLP: dataclasses.replace(base, hidden=hidden)}
