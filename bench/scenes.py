"""How fast Scenes draws, on one core: `python bench/scenes.py` prints a table and writes
results/bench/scenes.json.

The baseline draws the same scenes with matplotlib, as one would by hand: a figure, a gradient behind, a
patch for each shape, antialiased at the picture's own size. The shapes are recorded beforehand; the land's
gradients are left out.
"""

import time
from collections.abc import Callable, Sequence
from unittest import mock

import numpy as np
from _table import Row, make_row, publish, seconds
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D
from PIL import ImageDraw

from encoder.data.scenes import places
from encoder.data.scenes.parquet import png
from encoder.data.scenes.questions import seed_questions
from encoder.data.scenes.render import make_scene, render
from encoder.data.scenes.text import org_caption, re_caption

NUM_PICTURES = {64: 100, 256: 50}
REPEATS = 3
SKY = np.linspace((108, 184, 240), (226, 240, 240), 16).astype(np.uint8)[:, None, :]


class Recorder:
    """Stands in for ImageDraw and keeps (outline, fill, line colour, line width) of every shape."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self.draw, self.shapes = draw, []

    def polygon(self, xy: Sequence, fill: tuple | int) -> None:
        if isinstance(fill, tuple):  # a number is a mask of the backdrop, which is not asked of the baseline
            self.shapes.append((Outline([*xy, xy[0]]), fill, None, 0))
        self.draw.polygon(xy, fill=fill)

    def ellipse(
        self, box: Sequence[float], fill: tuple, outline: tuple | None = None, width: int = 0
    ) -> None:
        x0, y0, x1, y1 = box
        turned = Affine2D().scale((x1 - x0) / 2, (y1 - y0) / 2).translate((x0 + x1) / 2, (y0 + y1) / 2)
        self.shapes.append((turned.transform_path(Outline.unit_circle()), fill, outline, width))
        self.draw.ellipse(box, fill=fill, outline=outline, width=width or 1)

    def line(self, xy: Sequence, fill: tuple, width: int, joint: str | None = None) -> None:
        self.shapes.append((Outline(xy), None, fill, width))
        self.draw.line(xy, fill=fill, width=width, joint=joint)


def shapes_of(index: int, size: int) -> list[tuple]:
    """The shapes that the renderer draws for a scene, in pixels of its enlarged canvas."""
    recorders = []

    def record(image, mode: str | None = None):
        recorders.append(Recorder(ImageDraw.ImageDraw(image, mode)))
        return recorders[-1]

    with mock.patch.object(places.ImageDraw, "Draw", record):
        render(make_scene(0, index, "train"), size)
    return recorders[0].shapes


def draw_recorded(index: int, shapes: list[list[tuple]], size: int, factor: int) -> np.ndarray:
    make_scene(0, index, "train")  # its layout would have to be made too
    figure = Figure(figsize=(size / 72, size / 72), dpi=72)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size * factor), ylim=(size * factor, 0))
    axes.set_axis_off()
    axes.imshow(SKY, extent=(0, size * factor, size * factor, 0), interpolation="bilinear")
    for outline, fill, line, width in shapes[index]:
        edge = tuple(c / 255 for c in line) if line else "none"
        face = tuple(c / 255 for c in fill) if fill else "none"
        axes.add_patch(PathPatch(outline, facecolor=face, edgecolor=edge, linewidth=width / factor))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def rates(count: int, **works: Callable[[int], object]) -> dict[str, float]:
    """Calls a second of processor time of each work, called with 0 to count - 1; all take turns."""

    def all_of(work: Callable[[int], object]) -> Callable[[], None]:
        def run() -> None:
            for index in range(count):
                work(index)

        return run

    passes = {name: all_of(work) for name, work in works.items()}
    times = seconds(passes, repeats=REPEATS, warmup=0, clock=time.process_time)
    return {name: count / value for name, value in times.items()}


def rows() -> list[Row]:
    table = []
    for size, count in NUM_PICTURES.items():
        scenes = [make_scene(0, index, "train") for index in range(count)]
        shapes = [shapes_of(index, size) for index in range(count)]
        factor = 4 if size <= 128 else 2
        measured = rates(
            count,
            ours=lambda i, size=size: render(make_scene(0, i, "train"), size),
            by_hand=lambda i, shapes=shapes, size=size, factor=factor: draw_recorded(i, shapes, size, factor),
            written=lambda i, scenes=scenes, size=size: png(scenes[i], size),
        )
        note = "baseline: the same shapes as matplotlib patches, antialiased at the picture's size"
        table.append(make_row(f"render/{size}", "pictures/s", measured["ours"], measured["by_hand"], note))
        note = "no baseline: a sum of two steps"
        table.append(make_row(f"render+png/{size}", "pictures/s", measured["written"], None, note))
    texts = rates(len(scenes), ours=lambda i: (org_caption(scenes[i]), re_caption(scenes[i])))
    note = "no baseline: no other program knows these truths"
    table.append(make_row("captions", "scenes/s", texts["ours"], None, note))
    start = time.process_time()
    rate = len(seed_questions(0, 100)) / (time.process_time() - start)
    note = "no baseline: twin groups are this project's own"
    table.append(make_row("seed_questions", "questions/s", rate, None, note))
    return table


if __name__ == "__main__":
    publish("scenes", rows(), setting="processor time of one core")
