"""Where a few-step model goes wrong, time by time: from real x_t straight to latents, before any decoder.

`python -m harness.one_shot <weights folder> --tokens <folder of tokens> [--steps 4] [--out <json>]`
prints, for each time of the shifted grid of `--steps`, how far the latents x_t - t w that the model says from
real pictures' x_t are from real ones, and the same of whole samples drawn along the grid. Stage 2 of
`rae_bridge.distill` matches these one-shot latents; what is wrong at t = 1 is drawn from noise alone.

- distance: `gFD-tokens` (`harness.metrics.token_distance`), 0 the same, 1 always the mean;
- mean: squared error of the mean, over the real ones' variance: how far all pictures are moved together;
- spread: variance over the real ones': under 1 too alike.

Letters: B pictures, D h w latents. A teacher's one shot at t is its mean given x_t, so its spread at t = 1 is
near 0 by nature; a student of TMD draws.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from encoder.runtime.stage import write_json
from harness.metrics.token_distance import relative_token_distance
from rae_bridge.flow import interpolate
from rae_bridge.generate import TrainedFlow, inner_noise_of_samples, noise_of_samples
from rae_bridge.latents import open_latents
from rae_bridge.sample import sample, sample_transitions, time_grid
from rae_bridge.transition import STUDENTS
from rae_bridge.weights_folder import WeightsFolder, check_tokens_alike

SAMPLES = "samples"
_BATCH = 100
_SAID = ("method", "stage", "guidance", "teacher")  # of what flow.json says of a student: no path


@dataclass(frozen=True, slots=True)
class OneShot:
    """What came out at one time, or of whole samples."""

    t: float | str
    distance: float
    mean: float
    spread: float


def compare(t: float | str, latents: Tensor, real: Tensor) -> OneShot:
    """Latents (B D h w) beside normalised real ones of as many pictures or others."""
    ours, theirs = latents.flatten(1).double(), real.flatten(1).double()
    variance = theirs.var(dim=0).sum()
    mean = (ours.mean(dim=0) - theirs.mean(dim=0)).square().sum() / variance
    spread = ours.var(dim=0).sum() / variance
    return OneShot(t, relative_token_distance(ours, theirs), float(mean), float(spread))


@torch.no_grad()
def one_shots(
    flow: TrainedFlow, real: Tensor, y: Tensor, *, num_steps: int, inner_steps: int = 1, seed: int = 0
) -> list[OneShot]:
    """A row for each time of the grid of `num_steps`, then one of whole samples, from normalised real latents
    (B D h w) of classes y (B,)."""
    shape, rows = tuple(real.shape[1:]), range(len(real))
    times, inner_times = (time_grid(num, flow.shift, "zero") for num in (num_steps, inner_steps))

    def drawn(t: float, part: slice) -> Tensor:
        here = rows[part]
        x_t = interpolate(
            real[part], noise_of_samples(seed, here, shape, f"one shot/{t}"), torch.full((len(here),), t)
        )
        at, end = torch.full((len(here),), t), torch.zeros(len(here))
        if flow.model.name in STUDENTS:
            inner = inner_noise_of_samples(flow, seed, here, 1)[0]
            return x_t - t * flow.model.transition(x_t, at, end, y[part], inner, inner_times)
        return x_t - t * flow.model(x_t, at, y[part])

    def sampled(part: slice) -> Tensor:
        here = rows[part]
        noise = noise_of_samples(seed, here, shape)
        settings = {"num_steps": num_steps, "shift": flow.shift}
        if flow.model.name in STUDENTS:
            settings |= {"inner_noise": inner_noise_of_samples(flow, seed, here, num_steps)}
            return sample_transitions(flow.model, noise, y[part], inner_times=inner_times, **settings)
        return sample(flow.model, noise, y[part], **settings)

    parts = [slice(first, first + _BATCH) for first in range(0, len(real), _BATCH)]
    found = [compare(t, torch.cat([drawn(t, part) for part in parts]), real) for t in times[:-1]]
    return [*found, compare(SAMPLES, torch.cat([sampled(part) for part in parts]), real)]


def main(arguments: argparse.Namespace) -> None:
    """Print the table, and write it where that is asked for.

    Raises:
        FileNotFoundError, ValueError: no such folders, tokens of another encoder, or fewer pictures than two.
    """
    for name, least in (("steps", 1), ("inner", 1), ("num", 2)):
        if (given := getattr(arguments, name)) is not None and given < least:
            raise ValueError(f"--{name} {given} must be {least} or more")
    flow, cache = TrainedFlow.load(arguments.model), open_latents(arguments.tokens)
    known = WeightsFolder.read(arguments.model).tokens
    check_tokens_alike("the pictures", cache.origin, f"the model {arguments.model}", known)
    num = min(arguments.num, len(cache.labels))
    chosen = torch.randperm(len(cache.labels), generator=torch.Generator().manual_seed(arguments.seed))[:num]
    real, y = flow.statistics.normalise(cache.latents(chosen, None)), cache.labels[chosen]
    inner = (flow.student or {}).get("inner_steps", 1) if arguments.inner is None else arguments.inner
    found = one_shots(flow, real, y, num_steps=arguments.steps, inner_steps=inner, seed=arguments.seed)
    print(f"{'t':>8} {'distance':>9} {'mean':>7} {'spread':>7}")
    for row in found:
        t = row.t if isinstance(row.t, str) else f"{row.t:.3f}"
        print(f"{t:>8} {row.distance:9.4f} {row.mean:7.4f} {row.spread:7.3f}")
    if arguments.out is not None:
        about = {"num_pictures": num, "steps": arguments.steps, "inner_steps": inner, "seed": arguments.seed}
        student = {key: value for key, value in (flow.student or {}).items() if key in _SAID}
        write_json(arguments.out, {**about, "student": student, "rows": [asdict(row) for row in found]})


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="harness.one_shot", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="weights folder by rae_bridge.train or rae_bridge.distill")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of real pictures' tokens")
    parser.add_argument("--steps", type=int, default=4, help="whose grid")
    parser.add_argument("--inner", type=int, help="calls of a student's head; those it learnt, if left out")
    parser.add_argument("--num", type=int, default=1000, help="pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a .json to write")
    return parser.parse_args(words)


if __name__ == "__main__":
    try:
        main(_arguments(sys.argv[1:]))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
