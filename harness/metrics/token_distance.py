"""How far a generator's tokens are from real ones, before any decoder: a Frechet distance that no scale of
the tokens changes. Letters: M pictures, N tokens a picture, D width, F = N D, P directions.
"""

import torch
from torch import Tensor

from encoder.metrics.checks import check_features, check_widths
from encoder.metrics.frechet import Moments, frechet_distance
from encoder.token_store import TokenStore

NUM_DIRECTIONS = 256
_FIT = 2000  # real pictures that the directions are found with
_CHUNK = 512  # pictures in float64 at a time
_LEAST_STD = 1e-9  # of a number, relative to its mean: less is rounding


def relative_token_distance(tokens: Tensor, real: Tensor, *, num_directions: int = NUM_DIRECTIONS) -> float:
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
    check_features(tokens, "generated tokens", least=2)
    check_features(real, "real tokens", least=2)
    check_widths(tokens, real)
    mean, std = _mean_and_deviation(real)
    directions = _leading_directions((real[:_FIT].double() - mean) / std, num_directions)
    ours, theirs = (_moments(each, mean, std, directions) for each in (tokens, real))
    covariance = theirs.covariance().numpy()
    variance = float(covariance.trace())
    if not variance > 0:
        raise ValueError("the real tokens are the same for every picture: no distance is relative to them")
    distance = frechet_distance(
        ours.mean().numpy(), ours.covariance().numpy(), theirs.mean().numpy(), covariance
    )
    return distance / variance


def flat_tokens_of(store: TokenStore, first: int = 0, count: int | None = None) -> Tensor:
    """Tokens of `count` pictures from the `first` on, as rows (M F), as stored."""
    stop = len(store) if count is None else min(first + count, len(store))
    return store.rows(torch.arange(first, stop)).flatten(1)


def _mean_and_deviation(real: Tensor) -> tuple[Tensor, Tensor]:
    """Of each number, F each; a number that never changes is left at its own scale."""
    total, squares = torch.zeros(2, real.shape[1], dtype=torch.float64)
    for rows in real.split(_CHUNK):
        total += rows.double().sum(dim=0)
    mean = total / len(real)
    for rows in real.split(_CHUNK):
        squares += (rows.double() - mean).square().sum(dim=0)
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


def _moments(tokens: Tensor, mean: Tensor, std: Tensor, directions: Tensor) -> Moments:
    moments = Moments.empty(directions.shape[1])
    for rows in tokens.split(_CHUNK):
        moments.update(((rows.double() - mean) / std) @ directions)
    return moments
