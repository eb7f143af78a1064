"""How far a generator's tokens are from real ones, before any decoder: a Frechet distance that no scale of
the tokens changes. Letters: M pictures, N tokens a picture, D width, F = N D, P directions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from encoder.metrics.checks import check_features, check_widths
from encoder.metrics.frechet import Moments, frechet_distance
from encoder.token_store import TokenStore

NUM_DIRECTIONS = 256
_FIT = 2000  # real pictures that the directions are found with, drawn from all: a set may be sorted
_FIT_SEED = 0
_CHUNK = 128  # pictures in float64 at a time
_LEAST_STD = 1e-9  # of a number, relative to its mean: less is rounding


@dataclass(frozen=True, slots=True)
class FlatTokens:
    """Tokens of `num_pictures` pictures of a store from the `first` on, as rows (M F), read as wanted."""

    store: TokenStore
    first: int
    num_pictures: int

    @classmethod
    def of(cls, store: TokenStore, first: int = 0, count: int | None = None) -> "FlatTokens":
        """Those of `count` pictures, or of as many as there are."""
        held = max(0, len(store) - first)
        return cls(store, first, held if count is None else min(count, held))

    def __len__(self) -> int:
        return self.num_pictures

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.store.rows(self.first + rows).flatten(1)


Rows = Tensor | FlatTokens


def relative_token_distance(tokens: Rows, real: Rows, *, num_directions: int = NUM_DIRECTIONS) -> float:
    """The Frechet distance of `tokens` (M F) to `real` ones (R F) over the variance of the real ones.

    Both are standardised by the real ones' mean and deviation, number by number, and projected to the
    `num_directions` leading principal directions of the real ones (all, where there are fewer): a covariance
    over F numbers would be singular with as many pictures as are drawn. 0: the same Gaussian; 1: a generator
    that always gives the mean. Neither the scale nor the offset nor the width of an encoder's tokens counts,
    so rows of different encoders compare.

    Raises:
        ValueError: a row is not finite, the widths differ, there are fewer than two pictures in a set, or the
            real ones are all the same.
    """
    sets = {"generated tokens": tokens, "real tokens": real}
    firsts = [rows[torch.arange(min(2, len(rows)))] for rows in sets.values()]
    for what, first in zip(sets, firsts, strict=True):
        check_features(first, what, least=2)
    check_widths(*firsts)
    mean, std = _mean_and_deviation(real)
    drawn = torch.randperm(len(real), generator=torch.Generator().manual_seed(_FIT_SEED))[:_FIT]
    directions = _leading_directions((real[drawn.sort().values].double() - mean) / std, num_directions)
    ours, theirs = (_moments(rows, what, mean, std, directions) for what, rows in sets.items())
    covariance = _covariance(theirs)
    variance = float(covariance.trace())
    if not variance > 0:
        raise ValueError("the real tokens are the same for every picture: no distance is relative to them")
    distance = frechet_distance(ours.mean().numpy(), _covariance(ours), theirs.mean().numpy(), covariance)
    return distance / variance


def _chunks(rows: Rows, what: str) -> Iterator[Tensor]:
    """The rows a few at a time, in float64; refuses those that are not finite."""
    for indices in torch.arange(len(rows)).split(_CHUNK):
        part = rows[indices]
        check_features(part, what, first=int(indices[0]))
        yield part.double()


def _mean_and_deviation(real: Rows) -> tuple[Tensor, Tensor]:
    """Of each number, F each; a number that never changes is left at its own scale."""
    mean = sum(part.sum(dim=0) for part in _chunks(real, "real tokens")) / len(real)
    squares = sum((part - mean).square().sum(dim=0) for part in _chunks(real, "real tokens"))
    std = (squares / len(real)).sqrt()
    return mean, torch.where(std > _LEAST_STD * mean.abs(), std, 1.0)


def _leading_directions(rows: Tensor, num_directions: int) -> Tensor:
    """Orthonormal principal directions (F P) of rows (M F), by the smaller of the two Gram matrices."""
    rows = rows - rows.mean(dim=0)
    if rows.shape[1] <= num_directions:
        return torch.eye(rows.shape[1], dtype=rows.dtype)
    if len(rows) >= rows.shape[1]:
        return torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -num_directions:]
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    kept = values[-num_directions:] > 1e-9 * values[-1]
    return torch.linalg.qr(rows.T @ vectors[:, -num_directions:][:, kept]).Q


def _covariance(moments: Moments) -> np.ndarray:
    """P P; where a direction never changes, rounding can leave its variance below zero."""
    covariance = moments.covariance()
    covariance.diagonal().clamp_(min=0)
    return covariance.numpy()


def _moments(tokens: Rows, what: str, mean: Tensor, std: Tensor, directions: Tensor) -> Moments:
    moments = Moments.empty(directions.shape[1])
    for part in _chunks(tokens, what):
        moments.update(((part - mean) / std) @ directions)
    return moments
