"""Figures: reconstructions and samples side by side, scores per question kind. Pictures are shown as they
are, never chosen."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

matplotlib.use("Agg")

DPI = 150
_GAP_PX = 2
PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe and Ito: told apart by all
_CONTROL = "#888888"
_IN_A_LINE = 3  # names of a legend


def reconstructions(path: Path, sets: Mapping[str, np.ndarray], num_pictures: int = 12) -> Path:
    """One row per set (originals first), the same evenly spaced pictures in each; sets hold N H W 3 uint8."""
    num = len(next(iter(sets.values())))
    chosen = np.linspace(0, num - 1, min(num_pictures, num)).astype(int)
    figure = Figure(figsize=(0.9 * len(chosen) + 1.2, 0.95 * len(sets)), dpi=DPI)
    for i, (name, pictures) in enumerate(sets.items()):
        axes = figure.add_axes((0.12, 1 - (i + 1) / len(sets), 0.88, 1 / len(sets)))
        _show(axes, _tile(pictures[chosen][None]))
        figure.text(0.11, 1 - (i + 0.5) / len(sets), name, ha="right", va="center", fontsize=9)
    return save(figure, path)


def samples(
    path: Path,
    sets: Mapping[str, tuple[np.ndarray, np.ndarray]],
    class_names: Mapping[int, str],
    per_class: int = 6,
) -> Path:
    """One block per set (pictures N H W 3 uint8, labels N), one row per class: the first pictures of each
    class."""
    num_classes = len(class_names)
    figure = Figure(figsize=(0.45 * per_class * len(sets) + 1.6, 0.45 * num_classes + 0.5), dpi=DPI)
    left, top = 0.12, 1 - 0.35 / figure.get_figheight()
    width = (1 - left) / len(sets)
    for i, (name, (pictures, labels)) in enumerate(sets.items()):
        size = pictures.shape[1:]
        grid = np.full((num_classes, per_class, *size), 255, dtype=np.uint8)
        for row, label in enumerate(class_names):
            found = pictures[labels == label][:per_class]
            grid[row, : len(found)] = found
        axes = figure.add_axes((left + i * width, 0.0, 0.97 * width, top))
        _show(axes, _tile(grid), aspect="auto")
        axes.set_title(name, fontsize=10)
    for row, name in enumerate(class_names.values()):
        figure.text(
            left - 0.01, top * (1 - (row + 0.5) / num_classes), name, ha="right", va="center", fontsize=8
        )
    return save(figure, path)


def prompts(
    path: Path,
    texts: Mapping[int, str],
    sets: Mapping[str, tuple[np.ndarray, np.ndarray]],
    per_prompt: int = 2,
) -> Path:
    """One block per set (pictures N H W 3 uint8, numbers of their prompts N), one row per prompt: its first
    pictures. texts: number -> prompt, of those that are shown."""
    figure = Figure(figsize=(0.5 * per_prompt * len(sets) + 2.4, 0.5 * len(texts) + 0.6), dpi=DPI)
    left, top = 2.4 / figure.get_figwidth(), 1 - 0.5 / figure.get_figheight()
    width = (1 - left) / len(sets)
    for i, (name, (pictures, numbers)) in enumerate(sets.items()):
        grid = np.full((len(texts), per_prompt, *pictures.shape[1:]), 255, dtype=np.uint8)
        for row, number in enumerate(texts):
            found = pictures[np.asarray(numbers) == number][:per_prompt]
            grid[row, : len(found)] = found
        axes = figure.add_axes((left + i * width, 0.0, 0.97 * width, top))
        _show(axes, _tile(grid), aspect="auto")
        axes.set_title(name.replace(", ", ",\n"), fontsize=6)
    for row, text in enumerate(texts.values()):
        middle = top * (1 - (row + 0.5) / len(texts))
        figure.text(left - 0.01, middle, text, ha="right", va="center", fontsize=7)
    return save(figure, path)


def dots(path: Path, rows: Sequence[Mapping], keys: Sequence[str], *, chance: float, title: str) -> Path:
    """One line per key, a dot per leaderboard row with its standard error, and chance as a dashed line; what
    a probe reads is a circle beside its encoder's dot. Values in %."""
    measured = [row["encoder"] for row in rows if row["kind"] == "measured"]
    owners = [row["encoder"].removesuffix(", probe") for row in rows]
    places = list(dict.fromkeys(owners))
    band = max(0.42, 0.12 * len(places))  # inches of a key's line
    figure = Figure(figsize=(7.5, band * len(keys) + 1.3), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for owner, row in zip(owners, rows, strict=True):
        offset = min(0.18, 0.8 / len(places)) * (places.index(owner) - (len(places) - 1) / 2)
        found = [(j, row["metrics"][key]) for j, key in enumerate(keys) if key in row["metrics"]]
        is_measured = owner in measured
        axes.errorbar(
            [metric["value"] for _, metric in found],
            [j + offset for j, _ in found],
            xerr=[metric["stderr"] or 0.0 for _, metric in found],
            fmt="o" if is_measured else "x",
            markersize=5,
            markerfacecolor="white" if row["kind"] == "probe" else None,
            color=PALETTE[measured.index(owner) % len(PALETTE)] if is_measured else _CONTROL,
            elinewidth=1,
            capsize=2,
            label=row["encoder"],
        )
    axes.axvline(chance, color=_CONTROL, linestyle="--", linewidth=1)
    axes.text(chance, -0.75, " chance", color=_CONTROL, fontsize=8, va="center")
    axes.set(
        yticks=range(len(keys)),
        yticklabels=[key.split("/", 1)[-1] for key in keys],
        xlim=(0, 101.5),
        ylim=(len(keys) - 0.4, -1.0),
        xlabel="correct answers, % (± one standard error)",
    )
    lines = -(-len(rows) // _IN_A_LINE)
    axes.set_title(title, loc="left", fontsize=10, pad=6 + 14 * lines)  # above the legend
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)
    columns = min(len(rows), _IN_A_LINE)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, fontsize=8, frameon=False)
    return save(figure, path)


def _tile(grid: np.ndarray) -> np.ndarray:
    """Pictures in rows and columns (R C H W 3) as one picture with white gaps."""
    padded = np.pad(grid, ((0, 0), (0, 0), (0, _GAP_PX), (0, _GAP_PX), (0, 0)), constant_values=255)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in padded], axis=0)


def _show(axes: Axes, picture: np.ndarray, aspect: str = "equal") -> None:
    axes.imshow(picture, interpolation="nearest", aspect=aspect)
    axes.axis("off")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure on white; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")
    with Image.open(path) as drawn:  # matplotlib writes four channels; three are a seventh less
        drawn.convert("RGB").save(path, optimize=True, dpi=drawn.info["dpi"])
    return path
