"""Charts as SVG text: lines over steps for one run or two, and a bar that shows what a whole is made of.

Pure functions of numbers. Colours are classes that the page's style decides; values stand in ``data-``
attributes, from which the page's script shows what is under the pointer. A curve without points draws
nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from orchestrator.report.curves import Curve, thinned
from orchestrator.report.document import legend

_FEW = 20
WIDTH, HEIGHT = 460, 244
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 40


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers from `low` to `high`, about `count` of them.

    >>> ticks(0.0, 1.0)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> ticks(3.0, 3.0)
    [3.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """Return a number in few digits.

    >>> short(0.25), short(12000.0), short(3.0), short(1.5e-7)
    ('0.25', '12k', '3', '1.5e-07')
    """
    if value and abs(value) >= 1e15:
        return f"{value:.2g}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "tick") -> str:
    """Return a label; a `kind` of ``"name"`` says what an axis shows."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def figure(
    title: str, parts: Iterable[str], size: tuple[float, float], caption: str = "", attributes: str = ""
) -> str:
    """Return a chart.

    Args:
        title: What it shows, for those who cannot see it.
        parts: Of its SVG.
        size: Its width and height.
        caption: What stands above it.
        attributes: Further ones, as HTML.
    """
    above = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="chart">{above}<svg viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-label="{escape(title)}" {attributes}>{"".join(parts)}</svg></figure>'
    )


def lines(title: str, curves: Sequence[tuple[str, Curve]], along: str = "step") -> str:
    """Return a chart of one or more curves.

    Args:
        title: What it shows.
        curves: A name and points each; the first is drawn as this run's, the second as the other's.
        along: What the points are counted in.
    """
    drawn = [(name, thinned(curve)) for name, curve in curves if curve]
    if not drawn:
        return ""
    steps = [step for _, curve in drawn for step, _ in curve]
    values = [value for _, curve in drawn for _, value in curve]
    left, right, low, high = min(steps), max(steps), min(values), max(values)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad

    def x(step: float) -> float:
        share = (step - left) / (right - left) if right > left else 0.5
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(_TOP + (high - value) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

    parts = []
    for value in ticks(low, high):
        place = y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{place}" y2="{place}"/>')
        parts.append(text(_LEFT - 6, place + 4, short(value), "end"))
    for value in ticks(left, right, 5):
        if value == int(value):
            parts.append(text(x(value), HEIGHT - 22, short(value), "middle"))
    parts.append(text(WIDTH - _RIGHT, HEIGHT - 6, along, "end", "name"))
    for index, (_, curve) in enumerate(drawn):
        points = " ".join(f"{x(step)},{y(value)}" for step, value in curve)
        if len(curve) > 1:
            parts.append(f'<polyline class="line run{index}" points="{points}"/>')
        if len(curve) <= _FEW:  # else nobody sees where they are
            parts += (
                f'<circle class="dot run{index}" cx="{x(step)}" cy="{y(value)}" r="3"/>'
                for step, value in curve
            )
    data = json.dumps(
        [
            {
                "name": name,
                "points": [[x(step), y(value), step, float(f"{value:.6g}")] for step, value in curve],
            }
            for name, curve in drawn
        ]
    )
    attributes = f'data-along="{escape(along)}" data-curves="{escape(data)}"'
    return figure(
        title, [*parts, '<g class="mark"></g>'], (WIDTH, HEIGHT), caption=title, attributes=attributes
    )


def bar(parts: Mapping[str, float], unit: str = "s") -> str:
    """Return a bar whose parts are as long as their shares, with a legend of all that are not nothing."""
    whole = sum(parts.values())
    if whole <= 0:
        return ""
    drawn, named, left = [], [], 0.0
    for name, value in parts.items():
        width = 100 * value / whole
        told = f"{name}: {short(round(value, 3))} {unit}, {value / whole:.1%}"
        if width >= 0.05:
            drawn.append(
                f'<rect class="kind-{escape(name)}" x="{left:.3f}" width="{width:.3f}" y="0" height="10">'
                f"<title>{escape(told)}</title></rect>"
            )
        if value > 0:
            named.append((f"kind-{name}", told))
        left += width
    svg = f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none">{"".join(drawn)}</svg>'
    return svg + legend(named)
