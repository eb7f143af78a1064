"""How the cost of each kind of work grows: `python bench/growth.py` prints a table and writes
results/bench/growth.json and growth.png.

Rows: exponent/<work>/<of what>: c in seconds = a * x^c, fitted by least squares on the logarithms of measured
points (processor time of one thread); the note has the exponent of the counted FLOPs over the same points;
calculated/...: GPU-hours, disk and memory of the paper's recipes and of preset=small, by the FLOPs of
encoder.training.flops at a stated share of a GPU's peak. Those are calculated; no run has measured them.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from _calculated import calculated_rows
from _table import ROOT, Row, Work, make_row, publish, seconds
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from encoder.data.scenes.render import make_scene, render
from encoder.models.shapes import ViTShape
from encoder.models.vae import load_vae
from encoder.models.vit import ViTEncoder
from llava_bridge.model import build
from rae_bridge.dit import build_dit
from rae_bridge.shapes import DiTConfig

REPEATS = 3
PICTURES = range(6)


@dataclass(frozen=True)
class Growth:
    """One kind of work: `make(x)` gives what is timed at x (`of`: px, tokens or samples)."""

    name: str
    of: str
    points: tuple[int, ...]
    make: Callable[[int], Work]


def learn(model: torch.nn.Module, forward: Callable[[], torch.Tensor]) -> Work:
    """Forward and backward."""

    def work() -> None:
        forward().float().square().mean().backward()
        model.zero_grad()

    return work


def encoder_step(side: int, batch: int = 2) -> Work:
    model = ViTEncoder(ViTShape(image_size=2 * side, width=192, layers=6, embed_dim=192))
    return learn(model, partial(_tokens, model, torch.randn(batch, 16, 2 * side, 2 * side)))


def _tokens(model: ViTEncoder, z_vae: torch.Tensor) -> torch.Tensor:
    return model(z_vae).z_u


def diffusion_step(side: int, batch: int = 4) -> Work:
    sizes = {"hidden_size": (192, 256), "depth": (6, 2), "num_heads": (3, 4)}
    model = build_dit(DiTConfig(**sizes, input_size=side, in_channels=192, num_classes=16))
    inputs = torch.randn(batch, 192, side, side), torch.rand(batch), torch.zeros(batch, dtype=torch.long)
    return learn(model, partial(model, *inputs))


def growths() -> list[Growth]:
    """What is measured; the models are the demo's or as small."""
    vae = load_vae(str(ROOT / "weights/demo/vae"))
    llava, _ = build("blind", None, ROOT / "weights/demo/llama", "sdpa", seed=0)
    words = llava.model.language_model

    def language_step(length: int) -> Work:
        ids = torch.randint(5, 300, (4, length))
        return learn(words, lambda: words(input_ids=ids, use_cache=False).last_hidden_state)

    def draw(size: int) -> Work:
        return lambda: [render(make_scene(0, index, "train"), size) for index in PICTURES]

    def encode(size: int) -> Work:
        return partial(vae.encode, torch.rand(2, 3, size, size))

    return [
        Growth("render", "px", (64, 96, 128), draw),  # beyond 128 px it draws twice as large, not four times
        Growth("render_large", "px", (160, 256, 384, 512), draw),
        Growth("vae_encode", "px", (64, 96, 128, 192), encode),
        Growth("encoder_step", "tokens", (64, 144, 256, 400), lambda n: encoder_step(math.isqrt(n))),
        Growth("encoder_step", "samples", (1, 2, 4, 8), lambda batch: encoder_step(8, batch)),
        Growth("dit_step", "tokens", (64, 144, 256, 400), lambda n: diffusion_step(math.isqrt(n))),
        Growth("dit_step", "samples", (2, 4, 8, 16), lambda batch: diffusion_step(4, batch)),
        Growth("llava_step", "tokens", (64, 128, 256, 512), language_step),
    ]


def fit(points: Mapping[int, float]) -> tuple[float, float]:
    """The exponent c of a * x^c by least squares on logarithms, and its standard error."""
    x = torch.tensor([math.log(each) for each in points], dtype=torch.float64)
    y = torch.tensor([math.log(each) for each in points.values()], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y / (x @ x)).item()
    left = (y - slope * x).square().sum() / (len(x) - 2)
    return slope, math.sqrt(left / (x @ x))


def count(work: Work) -> float:
    """FLOPs of matrix products and convolutions; 0 for what has none.

    Attention is counted by its plain form: torch's counter does not know its kernel for CPUs.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def growth_row(growth: Growth) -> tuple[Row, dict[int, float]]:
    """The fitted exponent, and the measured seconds by point."""
    works = {x: growth.make(x) for x in growth.points}
    named = {str(x): work for x, work in works.items()}
    times = seconds(named, repeats=REPEATS, clock=time.process_time)
    points = {x: times[str(x)] for x in works}
    exponent, error = fit(points)
    flops = {x: count(work) for x, work in works.items()}
    note = f"+- {error:.2f}; " + ", ".join(f"{x} {growth.of}: {1e3 * s:.3g} ms" for x, s in points.items())
    if all(flops.values()):
        note += f"; of the counted FLOPs: {fit(flops)[0]:.2f}"
    name = f"exponent/{growth.name}/{growth.of}"
    return make_row(name, "", exponent, None, f"{note}; no baseline: an exponent"), points


def draw_figure(rows: list[Row], measured: list[tuple[Growth, dict[int, float]]]) -> None:
    """Seconds against each size, with the fitted line, all on logarithmic axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, of in zip(figure.subplots(1, 3), ("px", "tokens", "samples"), strict=True):
        for row, (growth, points) in zip(rows, measured, strict=True):
            if growth.of == of:
                (line,) = axes.loglog(points.keys(), points.values(), "o")
                middle = [math.exp(sum(map(math.log, v)) / len(v)) for v in (points.keys(), points.values())]
                fitted = [middle[1] * (x / middle[0]) ** row.ours for x in points]
                axes.loglog(
                    points.keys(), fitted, color=line.get_color(), label=f"{growth.name}: {row.ours:.2f}"
                )
        axes.set_xlabel({"px": "pixels a side", "tokens": "tokens", "samples": "samples at once"}[of])
        axes.set_ylabel("s (one thread)")
        axes.legend(title="exponent", fontsize=8)
        axes.xaxis.set_minor_formatter(NullFormatter())  # these would overlap
    figure.savefig(ROOT / "results" / "bench" / "growth.png", dpi=110)


def main() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    rows, measured = [], []
    for growth in growths():
        row, points = growth_row(growth)
        rows.append(row)
        measured.append((growth, points))
    publish("growth", [*rows, *calculated_rows()], setting="processor time of one thread, fp32")
    draw_figure(rows, measured)


if __name__ == "__main__":
    sys.exit(main())
