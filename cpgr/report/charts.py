"""Line charts as SVG text: coloured by the page's style sheet, every series with a dash and a marker of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 3")
KINDS = 6  # distinct series styles, `s0` ... `s5` in the style sheet
_CHARACTER = 6.6  # width of a label's character, about


@dataclass
class Series:
    """A named line through points (x, y); a y of None or NaN is a gap. `style` picks colour, dash and marker."""

    name: str
    points: Sequence[tuple[float, float | None]]
    style: int = 0


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    width: int = 520,
    height: int = 250,
    low: float | None = None,
    high: float | None = None,
    form: Callable[[float], str] = "{:g}".format,
    whole_x: bool = False,
    x_label: str = "",
    labels: bool = True,
) -> str:
    """One chart. `low` and `high` bound the y axis (default: the data's), `form` writes its numbers, `whole_x` ticks
    every whole x and marks the points, `labels` writes each series' name at its last point."""
    lines = [(s, [(x, y) for x, y in s.points if y is not None and math.isfinite(y)]) for s in series]
    lines = [(s, points) for s, points in lines if points]
    if not lines:
        return ""
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    ticks = _ticks(min(ys) if low is None else low, max(ys) if high is None else high)
    bottom, top = ticks[0], ticks[-1]
    left_x, right_x = min(xs), max(xs)
    room = max(len(s.name) for s, _ in lines) * _CHARACTER + 16 if labels else 12
    left, right, head, foot = 46, width - room, 12, height - (38 if x_label else 24)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - left_x) / (right_x - left_x) if right_x > left_x else 0.5
        return left + across * (right - left), foot - (y - bottom) / (top - bottom) * (foot - head)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        y = at(left_x, tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(form(tick))}</text>')
    for tick in _whole(left_x, right_x) if whole_x else _ticks(left_x, right_x, 4):
        if left_x <= tick <= right_x:
            x = at(tick, bottom)[0]
            parts.append(f'<text class="tick" x="{x:.1f}" y="{foot + 16}" text-anchor="middle">{tick:g}</text>')
    if x_label:
        parts.append(f'<text class="tick" x="{(left + right) / 2:.1f}" y="{height - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for s, points in lines:
        parts.append(_line(s, [at(x, y) for x, y in points], points, form, marked=whole_x))
    if labels:
        parts += _end_labels([(s, at(*points[-1])) for s, points in lines], right + 9, head, foot)
    return "".join(parts) + "</svg>"


def legend(series: Sequence[Series], marked: bool) -> str:
    """The series' names with a sample of their lines, as a list."""
    items = []
    for s in series:
        kind = s.style % KINDS
        sample = f'<path class="s{kind} line" d="M1 7H31" stroke-dasharray="{DASHES[kind]}"/>' + (_marker(kind, 16, 7) if marked else "")
        items.append(f'<li><svg viewBox="0 0 32 14" aria-hidden="true">{sample}</svg>{escape(s.name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _line(s: Series, places: list[tuple[float, float]], points, form, marked: bool) -> str:
    kind = s.style % KINDS
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    out = f'<path class="s{kind} line" d="{path}" stroke-dasharray="{DASHES[kind]}"/>'
    if not marked and len(points) > 1:
        return f"<g><title>{escape(s.name)}: {escape(form(points[0][1]))} to {escape(form(points[-1][1]))}</title>{out}</g>"
    for (x, y), (value_x, value_y) in zip(places, points, strict=True):
        out += f"<g><title>{escape(s.name)}, {value_x:g}: {escape(form(value_y))}</title>{_marker(kind, x, y)}</g>"
    return out


def _marker(kind: int, x: float, y: float) -> str:
    """A shape for each kind: circle, square, triangle, diamond, triangle downwards, bar."""
    r = 4.2
    shapes = {
        1: [(-r, -r), (r, -r), (r, r), (-r, r)], 2: [(0, -r * 1.3), (r * 1.2, r), (-r * 1.2, r)],
        3: [(0, -r * 1.4), (r * 1.4, 0), (0, r * 1.4), (-r * 1.4, 0)], 4: [(-r * 1.2, -r), (r * 1.2, -r), (0, r * 1.3)],
        5: [(-r * 1.3, -r * 0.6), (r * 1.3, -r * 0.6), (r * 1.3, r * 0.6), (-r * 1.3, r * 0.6)],
    }  # fmt: skip
    if kind not in shapes:
        return f'<circle class="s{kind} mark" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[kind])
    return f'<polygon class="s{kind} mark" points="{corners}"/>'


def _end_labels(ends, x: float, head: float, foot: float) -> list[str]:
    """Names at the height of the lines' ends, pushed apart where they would overlap."""
    gap, placed = 15.0, []
    for s, (_, y) in sorted(ends, key=lambda end: end[1][1]):
        placed.append([s, max(y, placed[-1][1] + gap) if placed else max(y, head)])
    below = foot
    for label in reversed(placed):
        label[1] = min(label[1], below)
        below = label[1] - gap
    return [f'<text class="s{s.style % KINDS} name" x="{x:.1f}" y="{y + 4:.1f}">{escape(s.name)}</text>' for s, y in placed]


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    if not high > low:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _whole(low: float, high: float) -> list[int]:
    step = max(1, math.ceil((high - low) / 12))
    return list(range(round(low), round(high) + 1, step))
