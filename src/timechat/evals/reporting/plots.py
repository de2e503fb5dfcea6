"""Small drawings as inline SVG: an interval around zero, a bar of change, a chart of lines.

Plain strings with no script, no style of their own and no outside resource: the colours are
classes that the page defines, so a drawing follows light and dark. What is drawn is for `page`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_POINTS = 400
"""More points than this are averaged in runs: a screen has no room for them."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """One series of (x, y); `css` is the class of its colour, `dots` marks the single points."""

    label: str
    points: Points
    css: str
    dots: bool = False


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where data coordinates fall on a chart, in SVG units."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float
    top: float
    width: float
    height: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * self.width, self.top + (1 - up) * self.height


def draw_interval(ci95: tuple[float, float], point: float, extent: float, css: str) -> str:
    """The interval as a bar with its point, on an axis from -extent to +extent with zero marked."""
    width, middle = 180.0, 90.0

    def place(value: float) -> float:
        if extent <= 0 or math.isnan(value):
            return middle
        return middle + (middle - 6) * max(-1.0, min(1.0, value / extent))

    low, high = place(ci95[0]), place(ci95[1])
    return (
        f'<svg class="interval {css}" viewBox="0 0 {width:.0f} 20" role="img" '
        f'aria-label="interval from {ci95[0]:.3g} to {ci95[1]:.3g}">'
        f'<line class="axis" x1="0" y1="10" x2="{width:.0f}" y2="10"/>'
        f'<line class="zero" x1="{middle}" y1="1" x2="{middle}" y2="19"/>'
        f'<rect class="reach" x="{low:.1f}" y="5" width="{max(high - low, 1.5):.1f}" '
        f'height="10" rx="3"/>'
        f'<circle class="dot" cx="{place(point):.1f}" cy="10" r="3"/></svg>'
    )


def draw_bar(value: float, extent: float) -> str:
    """One change as a bar to the right (gain) or left (loss) of the middle."""
    if not math.isfinite(value) or extent <= 0:
        value, extent = 0.0, 1.0
    length = 98 * min(abs(value) / extent, 1.0)
    start = 100 - length if value < 0 else 100
    css = "good" if value > 0 else "bad"
    return (
        f'<svg class="bar {css}" viewBox="0 0 200 14" preserveAspectRatio="none" '
        'aria-hidden="true">'
        f'<rect class="fill" x="{start:.1f}" y="2" width="{length:.1f}" height="10" rx="2"/>'
        '<line class="zero" x1="100" y1="0" x2="100" y2="14"/></svg>'
    )


def draw_chart(
    lines: Sequence[Line], *, label: str, percent: bool = False, across: str = "step"
) -> str:
    """A line chart with axes and a legend; an empty string when there is nothing to draw.

    `across` is what the values of x are.
    """
    drawn = [(line, thin(line.points)) for line in lines]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    y_ticks = choose_ticks(min(ys), max(ys), 5)
    frame = _Frame(
        x=_widen(min(xs), max(xs)),
        y=_widen(min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])),
        left=46,
        top=30,
        width=400,
        height=190,
    )
    parts = [_draw_grid(frame, y_ticks, percent, across)]
    parts += [_draw_line(frame, line, points) for line, points in drawn]
    parts.append(_draw_legend([line for line, _ in drawn]))
    return (
        f'<svg class="chart" viewBox="0 0 460 256" role="img" '
        f'aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
    )


def thin(points: Points) -> list[tuple[float, float]]:
    """The finite points in the order of x, averaged in runs where there are too many."""
    finite = sorted((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
    run = math.ceil(len(finite) / MAX_POINTS)
    if run <= 1:
        return finite
    runs = [finite[i : i + run] for i in range(0, len(finite), run)]
    return [(sum(x for x, _ in r) / len(r), sum(y for _, y in r) / len(r)) for r in runs]


def smooth(points: Points, share: float = 0.05) -> list[tuple[float, float]]:
    """A centred moving mean over `share` of the points (at least three)."""
    values = thin(points)
    half = max(1, round(share * len(values) / 2))
    out: list[tuple[float, float]] = []
    for i, (x, _) in enumerate(values):
        # The window shrinks at both ends alike, so that a slope is not bent there.
        reach = min(half, i, len(values) - 1 - i)
        window = values[i - reach : i + reach + 1]
        out.append((x, sum(y for _, y in window) / len(window)))
    return out


def choose_ticks(low: float, high: float, count: int) -> list[float]:
    """Round values (steps of 1, 2 or 5 times a power of ten) that enclose low to high."""
    low, high = _widen(low, high)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * s for s in (1, 2, 5, 10) if power * s >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _widen(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty, so that one point can be placed in it."""
    if high > low:
        return low, high
    return low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)


def _draw_grid(frame: _Frame, y_ticks: list[float], percent: bool, across: str) -> str:
    parts: list[str] = []
    right, bottom = frame.left + frame.width, frame.top + frame.height
    for tick in y_ticks:
        _, y = frame.place(frame.x[0], tick)
        text = f"{100 * tick:.4g} %" if percent else f"{tick:.4g}"
        parts.append(
            f'<line class="grid" x1="{frame.left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{frame.left - 7}" y="{y + 4:.1f}" '
            f'text-anchor="end">{text}</text>'
        )
    for tick in choose_ticks(*frame.x, 5):
        if not frame.x[0] <= tick <= frame.x[1]:
            continue
        x, _ = frame.place(tick, frame.y[0])
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18:.1f}" '
            f'text-anchor="middle">{tick:.6g}</text>'
        )
    parts.append(
        f'<text class="tick" x="{right}" y="{bottom + 33:.1f}" text-anchor="end">'
        f"{html.escape(across)}</text>"
    )
    return "".join(parts)


def _draw_line(frame: _Frame, line: Line, points: Points) -> str:
    placed = [frame.place(x, y) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    out = f'<polyline class="line {line.css}" points="{path}"/>'
    if line.dots or len(placed) == 1:
        out += "".join(
            f'<circle class="mark {line.css}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
            for x, y in placed
        )
    return out


def _draw_legend(lines: Sequence[Line]) -> str:
    parts: list[str] = []
    x = 46.0
    for line in lines:
        if not line.label:
            continue
        parts.append(
            f'<line class="line {line.css}" x1="{x:.0f}" y1="12" x2="{x + 18:.0f}" y2="12"/>'
            f'<text class="legend" x="{x + 24:.0f}" y="16">{html.escape(line.label)}</text>'
        )
        x += 44 + 7.2 * len(line.label)
    return "".join(parts)
