"""What a DiT's loss is worth: `python bench/linear_denoiser.py TRAINING...` prints a table and writes
results/bench/linear_denoiser.json; without a folder, as in `make bench`, it says that it is not run.

TRAINING is a folder by `rae_bridge.train`, on kept tokens, the same for all. The baseline at a time t is
the best denoiser that is linear in x_t, of normalised tokens as one vector of all positions: it knows their
covariance and nothing else; what it samples is a Gaussian. In eigenvalues e of the covariance and
s = t / (1 - t) its error in the latents is the mean of e s^2 / (e + s^2); the velocity's is that over t^2.
A model above it has not learnt what two moments say.

Source: Wiener 1949. Deviation: the covariance is of the training's tokens, the DiT's losses of held-out ones.
"""

import json
import sys
from pathlib import Path

import torch
from _table import ROOT, Row, make_row, publish
from torch import Tensor

from encoder.runtime.config import load
from encoder.runtime.resume import DONE, STAGE_CONFIG
from rae_bridge.class_losses import TIMES
from rae_bridge.config import TrainDiTConfig
from rae_bridge.latents import CachedLatents, open_latents

MOST_NUMBERS = 8192  # of a picture's tokens: their covariance is held and decomposed
CHUNK = 4000  # pictures


def eigenvalues(latents: CachedLatents) -> Tensor:
    """Of the covariance (D h w by D h w) of the normalised latents.

    Raises:
        ValueError: a picture has more numbers than a covariance is made for.
    """
    size = latents.width * latents.side**2
    if size > MOST_NUMBERS:
        raise ValueError(f"{size} numbers a picture, {MOST_NUMBERS} at most: their covariance is too large")
    statistics, num = latents.statistics(), len(latents.labels)
    second = torch.zeros(size, size)
    for rows in torch.arange(num).split(CHUNK):
        flat = statistics.normalise(latents.latents(rows)).flatten(1)
        second += flat.T @ flat
    return torch.linalg.eigvalsh(second / num).clamp_min(0)


def linear_loss(eigenvalues: Tensor, t: float) -> float:
    """Mean squared error of the velocity at time t in (0, 1), a number."""
    noise = (t / (1 - t)) ** 2
    return float((eigenvalues * noise / (eigenvalues + noise)).mean()) / t**2


def rows(trainings: list[Path]) -> list[Row]:
    """The loss told the true class, at each time, beside the linear denoiser's.

    Raises:
        FileNotFoundError: a training has not ended, or its tokens are not there.
        ValueError: they are not of the same kept tokens, or these are too large.
    """
    tokens = {load(TrainDiTConfig, folder / STAGE_CONFIG).tokens for folder in trainings}
    ended = [json.loads((folder / DONE).read_text())["result"]["class_losses"] for folder in trainings]
    if len(tokens) > 1 or None in tokens:
        raise ValueError(
            f"all must be trained on the same kept tokens; these are on {sorted(map(str, tokens))}"
        )
    of = eigenvalues(open_latents(ROOT / tokens.pop()))
    linear = {t: linear_loss(of, t) for t in TIMES}
    return [
        make_row(
            f"{folder.name}/t={t:g}",
            "squared error",
            losses[f"{t:g}"]["true"],
            linear[t],
            described(folder),
            higher_is_better=False,
        )
        for folder, losses in zip(trainings, ended, strict=True)
        for t in TIMES
    ]


def described(training: Path) -> str:
    """What a training was, in a line."""
    config = load(TrainDiTConfig, training / STAGE_CONFIG)
    return (
        f"{config.num_steps} steps x {config.batch_size}, shift {config.shift}, widths "
        f"{config.size.hidden_size}, depths {config.size.depth}, seed {config.seed}; held-out tokens told "
        "the true class; baseline: the best denoiser that is linear in x_t"
    )


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(print("not run: name folders of trainings, such as runs/rae_train/*"))
    try:
        publish("linear_denoiser", rows([Path(each) for each in sys.argv[1:]]))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
