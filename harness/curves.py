"""Figures of trainings: the terms of the objective step by step, and the gradients' cosine layer by layer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from harness.figures import DPI, PALETTE, save

_TERMS = {
    "pixel_l1": "pixel l1",
    "latent_l1": "latent l1",
    "caption": "caption",
    "contrastive": "contrastive",
}
_SMOOTHING = 5  # lines of the log that one point averages


def losses(path: Path, logs: Mapping[str, Sequence[Mapping]], *, title: str) -> Path:
    """A panel per term and a line per variant; `logs` holds each variant's log lines ({"steps", terms}).

    Thin: as logged; thick: the mean of the last few lines.
    """
    figure = Figure(figsize=(9, 5.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).ravel()
    for panel, (term, name) in zip(panels, _TERMS.items(), strict=True):
        for i, (label, log) in enumerate(logs.items()):
            found = [line for line in log if term in line]
            steps, values = [line["steps"] for line in found], [line[term] for line in found]
            colour = PALETTE[i % len(PALETTE)]
            panel.plot(steps, values, color=colour, linewidth=0.5, alpha=0.4)
            panel.plot(steps, _running_mean(values), color=colour, linewidth=1.6, label=label)
        panel.set_title(name, loc="left", fontsize=9)
        panel.grid(color="#e5e5e5")
        panel.set_axisbelow(True)
    for panel in panels[2:]:
        panel.set_xlabel("steps")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return save(figure, path)


def cosines(path: Path, tables: Mapping[str, Path]) -> Path:
    """The cosine between the two branches' gradients per layer, from each variant's synergy.json."""
    figure = Figure(figsize=(7.5, 3.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    layers: list[str] = []
    for i, (label, table) in enumerate(tables.items()):
        rows = [row for row in json.loads(table.read_text())["rows"] if row["cosine"] is not None]
        layers = max(layers, [row["layer"] for row in rows], key=len)
        places = [layers.index(row["layer"]) for row in rows]
        colour = PALETTE[i % len(PALETTE)]
        axes.plot(places, [row["cosine"] for row in rows], "o", color=colour, label=label)
    axes.axhline(0, color="#888888", linestyle="--", linewidth=1)
    axes.set(xticks=range(len(layers)), ylabel="cosine of summed gradients")
    axes.set_xticklabels([layer.replace("_", " ") for layer in layers], rotation=30, ha="right", fontsize=8)
    axes.set_title("Do both branches pull the encoder the same way?", loc="left", fontsize=10)
    axes.grid(axis="y", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False)
    return save(figure, path)


def _running_mean(values: Sequence[float]) -> list[float]:
    windows = (values[max(0, i - _SMOOTHING + 1) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
