"""Figures of trainings: the terms of the objective step by step, and the gradients' cosine layer by layer."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from harness.tables.figures import DPI, PALETTE, save

_TERMS = {
    "pixel_l1": "pixel l1",
    "latent_l1": "latent l1",
    "caption": "caption",
    "contrastive": "contrastive",
}
_WHOLE = "encoder"  # encoder.synergy's row over all layers
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
    """The cosine between the two branches' gradients, from each variant's synergy.json: over the training
    on the whole encoder (left), and layer by layer, a line a step, the last one solid (right)."""
    figure = Figure(figsize=(4 + 3 * len(tables), 3.6), dpi=DPI, layout="constrained")
    over_time, *panels = figure.subplots(1, 1 + len(tables), sharey=True)
    for i, (label, table) in enumerate(tables.items()):
        points, colour = json.loads(table.read_text())["points"], PALETTE[i % len(PALETTE)]
        steps = [point["step"] for point in points]
        over_time.plot(steps, [_cosines(point)[_WHOLE] for point in points], "o-", color=colour, label=label)
        for age, point in enumerate(reversed(points)):
            layers = {name: value for name, value in _cosines(point).items() if name != _WHOLE}
            alpha, line = (1.0, "-") if not age else (max(0.2, 0.6 - 0.15 * age), ":")
            panels[i].plot(
                list(layers.values()), linestyle=line, marker="o", markersize=3, color=colour, alpha=alpha
            )
        panels[i].set_xticks(range(len(layers)))
        panels[i].set_xticklabels([name.replace("_", " ") for name in layers], rotation=60, fontsize=7)
        panels[i].set_title(f"{label}: by layer", loc="left", fontsize=9)
    over_time.set(xlabel="steps", ylabel="cosine of summed gradients")
    over_time.set_title("Whole encoder", loc="left", fontsize=9)
    over_time.legend(fontsize=8, frameon=False)
    for panel in (over_time, *panels):
        panel.axhline(0, color="#888888", linestyle="--", linewidth=1)
        panel.grid(axis="y", color="#e5e5e5")
        panel.set_axisbelow(True)
    figure.suptitle("Do both branches pull the encoder the same way?", x=0.01, ha="left", fontsize=11)
    return save(figure, path)


def quality_against_cost(path: Path, rows: Sequence[Mapping], keys: Sequence[str], cost: str) -> Path:
    """A panel per key over a cost (log), a line per method: rows named <teacher>/<method>/<steps> that have
    both; the floor as a dashed line."""
    figure = Figure(figsize=(4.6 * len(keys) + 1, 3.8), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False)[0]
    measured = [row for row in rows if row["kind"] == "measured"]
    methods = list(dict.fromkeys(row["encoder"].split("/")[1] for row in measured))
    for panel, key in zip(panels, keys, strict=True):
        for i, method in enumerate(methods):
            metrics = [row["metrics"] for row in measured if row["encoder"].split("/")[1] == method]
            found = sorted(
                (each[cost]["value"], each[key]["value"]) for each in metrics if {cost, key} <= each.keys()
            )
            colour, marker = PALETTE[i % len(PALETTE)], "ovs^D*"[i // len(PALETTE) % 6]
            if found:
                panel.plot(*zip(*found, strict=True), f"{marker}-", color=colour, label=method)
        for row in rows:
            if row["kind"] == "floor" and key in row["metrics"]:
                panel.axhline(row["metrics"][key]["value"], color="#888888", linestyle="--", linewidth=1)
        panel.set(xscale="log", xlabel="forward passes of the teacher, by FLOPs", title=key)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter("{x:g}")
        panel.grid(color="#e5e5e5")
        panel.set_axisbelow(True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return save(figure, path)


def over_training(path: Path, rows: Sequence[Mapping], steps: Mapping[str, int], keys: Sequence[str]) -> Path:
    """A panel per key over the steps of training, a line per encoder; `steps` of the rows that are shown,
    those on the way being named <encoder>, <number> steps. Values in %; chance as a dashed line."""
    figure = Figure(figsize=(3.6 * len(keys) + 1, 3.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False)[0]
    by_name = {row["encoder"]: row for row in rows}
    ends = [name for name in steps if not name.endswith(" steps")]
    for panel, key in zip(panels, keys, strict=True):
        for i, end in enumerate(ends):
            own = [name for name in steps if name == end or name.rpartition(", ")[0] == end]
            found = sorted(
                (steps[name], by_name[name]["metrics"][key]["value"])
                for name in own
                if key in by_name.get(name, {"metrics": {}})["metrics"]
            )
            if found:
                panel.plot(*zip(*found, strict=True), "o-", color=PALETTE[i % len(PALETTE)], label=end)
        chance = by_name.get("chance", {"metrics": {}})["metrics"].get(key)
        if chance is not None:
            panel.axhline(chance["value"], color="#888888", linestyle="--", linewidth=1)
        panel.set(xlabel="steps of training", title=key, ylim=(0, 101))
        panel.grid(color="#e5e5e5")
        panel.set_axisbelow(True)
    panels[0].set_ylabel("right pictures, % (no guidance)")
    panels[0].legend(fontsize=8, frameon=False)
    return save(figure, path)


def _cosines(point: Mapping) -> dict[str, float]:
    """Layer -> cosine (nan where a branch has no gradient) of one entry of synergy.json's points."""
    return {row["layer"]: math.nan if row["cosine"] is None else row["cosine"] for row in point["rows"]}


def _running_mean(values: Sequence[float]) -> list[float]:
    windows = (values[max(0, i - _SMOOTHING + 1) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
