"""Understanding against generation: a dot per encoder, the Pareto front through those that no other beats in
both, drawn as SVG. Up and to the right is better, whichever way a measure counts.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.report.markup import Markup, element

LEGEND = (
    "Each dot is a frozen encoder; up and to the right is better. The line is the Pareto front: whoever is "
    "on it is beaten by no other in both. Bars are one standard error; dashed lines are control rows."
)
WIDTH, HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 28, 52
_NUM_COLOURS = 6
_LETTER = 13.0  # width of one, about, on a phone


@dataclass(frozen=True, kw_only=True)
class Point:
    """An encoder with its two numbers: leaderboard metrics."""

    name: str
    x: Mapping
    y: Mapping


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a control row reaches on one axis."""

    name: str
    metric: Mapping


def scatter(
    points: Sequence[Point], x_key: str, y_key: str, *, x_lines: Sequence[Line], y_lines: Sequence[Line]
) -> Markup:
    """The picture; `x_lines` and `y_lines` are control rows, drawn as dashed lines."""
    x_metrics = [*(point.x for point in points), *(line.metric for line in x_lines)]
    y_metrics = [*(point.y for point in points), *(line.metric for line in y_lines)]
    x_axis = _Axis(x_metrics, _LEFT, WIDTH - _RIGHT)
    y_axis = _Axis(y_metrics, HEIGHT - _BOTTOM, _TOP)
    best = front(points)
    described = "; ".join(f"{p.name}: {p.x['value']:.4g}, {p.y['value']:.4g}" for p in points)
    summary = f"{x_key} and {y_key} of each encoder. {described}. On the front: "
    summary += ", ".join(point.name for point in best)
    return element(
        "svg",
        element("title", f"{x_key} against {y_key}"),
        element("desc", summary),
        *_frame(x_axis, y_axis, x_key, y_key),
        *_controls(x_axis, y_axis, x_lines, y_lines),
        _front_line(best, x_axis, y_axis),
        *itertools.chain.from_iterable(_dot(i, p, x_axis, y_axis) for i, p in enumerate(points)),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="scatter",
    )


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in one measure without losing in the other, from left to right."""
    goodness = {point.name: (_good(point.x), _good(point.y)) for point in points}
    kept = [
        point
        for point in points
        if not any(_beats(goodness[other.name], goodness[point.name]) for other in points)
    ]
    return sorted(kept, key=lambda point: goodness[point.name])


def _beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a != b and a[0] >= b[0] and a[1] >= b[1]


def _good(metric: Mapping) -> float:
    return metric["value"] if metric["higher_is_better"] else -metric["value"]


class _Axis:
    """A linear scale from values to places, better values nearer `end`."""

    def __init__(self, metrics: Sequence[Mapping], start: float, end: float) -> None:
        lows = [metric["value"] - (metric["stderr"] or 0.0) for metric in metrics]
        highs = [metric["value"] + (metric["stderr"] or 0.0) for metric in metrics]
        low, high = min(lows), max(highs)
        margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        self.low, self.high = low - margin, high + margin
        self.is_higher_better = bool(metrics[0]["higher_is_better"])
        self.unit = metrics[0]["unit"]
        self.start, self.end = (start, end) if self.is_higher_better else (end, start)

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Four to eight round values within the axis."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]

    def label(self, key: str) -> str:
        words = f"{key}, {self.unit}" if self.unit else key
        return f"{words} ({'higher' if self.is_higher_better else 'lower'} is better)"


def _frame(x_axis: _Axis, y_axis: _Axis, x_key: str, y_key: str) -> Iterator[Markup]:
    bottom, left = HEIGHT - _BOTTOM, _LEFT
    for value in x_axis.ticks():
        x = x_axis.place(value)
        yield element("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="grid")
        yield element("text", f"{value:.4g}", x=x, y=bottom + 18, class_="tick middle")
    for value in y_axis.ticks():
        y = y_axis.place(value)
        yield element("line", x1=left, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid")
        yield element("text", f"{value:.4g}", x=left - 8, y=y + 4, class_="tick end")
    yield element("text", f"{x_axis.label(x_key)} →", x=WIDTH - _RIGHT, y=HEIGHT - 10, class_="axis end")
    yield element("text", f"↑ {y_axis.label(y_key)}", x=8, y=16, class_="axis")


def _controls(
    x_axis: _Axis, y_axis: _Axis, x_lines: Sequence[Line], y_lines: Sequence[Line]
) -> Iterator[Markup]:
    for line in x_lines:
        x = x_axis.place(line.metric["value"])
        yield element("line", x1=x, x2=x, y1=_TOP, y2=HEIGHT - _BOTTOM, class_="control")
        yield element("text", line.name, x=x + 6, y=HEIGHT - _BOTTOM - 8, class_="tick")
    for line in y_lines:
        y = y_axis.place(line.metric["value"])
        yield element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="control")
        yield element("text", line.name, x=WIDTH - _RIGHT - 4, y=y - 6, class_="tick end")


def _front_line(best: Sequence[Point], x_axis: _Axis, y_axis: _Axis) -> Markup | None:
    """Steps: what is reached on one axis without giving up what was reached on the other."""
    places = [(x_axis.place(point.x["value"]), y_axis.place(point.y["value"])) for point in best]
    words = [f"M {_LEFT} {places[0][1]} H {places[0][0]}"]
    words += [f"V {y} H {x}" for x, y in places[1:]]
    words.append(f"V {HEIGHT - _BOTTOM}")
    return element("path", d=" ".join(words), class_="front")


def _dot(i: int, point: Point, x_axis: _Axis, y_axis: _Axis) -> Iterator[Markup]:
    x, y = x_axis.place(point.x["value"]), y_axis.place(point.y["value"])
    colour = f"colour{i % _NUM_COLOURS}"
    if error := point.x["stderr"]:
        ends = [x_axis.place(point.x["value"] + sign * error) for sign in (-1, 1)]
        yield element("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_=f"error {colour}")
    if error := point.y["stderr"]:
        ends = [y_axis.place(point.y["value"] + sign * error) for sign in (-1, 1)]
        yield element("line", x1=x, x2=x, y1=ends[0], y2=ends[1], class_=f"error {colour}")
    numbers = element("title", f"{point.name}: {point.x['value']:.4g}, {point.y['value']:.4g}")
    yield element("circle", numbers, cx=x, cy=y, r=6, class_=colour)
    fits = x + 12 + _LETTER * len(point.name) < WIDTH
    place = {"x": x + 11, "class_": "label"} if fits else {"x": x - 11, "class_": "label end"}
    yield element("text", point.name, y=y - 9, **place)
