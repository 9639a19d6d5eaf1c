"""Charts of a sweep as SVG, drawn without any library. Pure: records in, text out.

Colours are CSS variables, so that a page can have a light and a dark form. Each mark of a trial carries its
number as ``data-trial``, by which the page's script lights up the same trial in all charts.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.sweep.importance import rank
from orchestrator.sweep.lines import short
from orchestrator.sweep.records import TrialRecord
from orchestrator.sweep.tables import flat

WIDTH = 920
_MANY = 160  # points of one curve
_LOG_SPAN = 50.0
# From the worst to the best trial: viridis, whose order is seen in grey and by colour-blind eyes too.
_RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Brings values to places on an axis.

    Attributes:
        low: Least value shown.
        high: Greatest value shown.
        start: Where `low` is, in pixels.
        end: Where `high` is.
        log: Goes by the logarithm.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return where a value is; what lies outside is put onto the border."""
        value = min(max(value, self.low), self.high)
        low, high, at = (self._bend(item) for item in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (0.5 if high == low else (at - low) / (high - low))

    def ticks(self) -> list[float]:
        """Return round values to write beside the axis."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            powers = [10.0**power for power in range(first, last + 1)]
            return powers if len(powers) > 1 else [self.low, self.high]
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        step = 10 ** math.floor(math.log10(span / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
        first = math.ceil(self.low / step - 1e-9)
        return [step * n for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _bend(self, value: float) -> float:
        return math.log(value) if self.log else value


def scale_for(values: Sequence[float], start: float, end: float) -> Scale:
    """Return a scale that shows all values; by the logarithm where they span powers of ten."""
    low, high = min(values), max(values)
    return Scale(low=low, high=high, start=start, end=end, log=low > 0 and high / low >= _LOG_SPAN)


def shades(records: Sequence[TrialRecord], metric: str, mode: str) -> dict[int, str]:
    """Return a colour for each trial that has a best value: by rank, the best brightest."""
    best = {record.number: found[1] for record in records if (found := record.best(metric, mode)) is not None}
    sign = -1 if mode == "min" else 1
    places = rank([sign * value for value in best.values()])
    last = max(1, len(best) - 1)
    return {number: _colour(place / last) for number, place in zip(best, places, strict=True)}


def curves(records: Sequence[TrialRecord], metric: str, mode: str) -> str:
    """Return the metric of each trial over its reports; a dot where the sweep stopped it."""
    height, left, bottom = 380, 60, 36
    lines = {record.number: _finite(record, metric) for record in records}
    values = sorted(value for line in lines.values() for _, value in line)
    if not values:
        return _nothing("No trial has reported a finite value.")
    # A few wild values must not squeeze the rest into one line.
    spare = round(0.03 * len(values))
    shown = values[: len(values) - spare] if mode == "min" else values[spare:]
    last = max((line[-1][0] for line in lines.values() if line), default=1)
    x = Scale(low=1, high=max(2, last), start=left, end=WIDTH - 16)
    y = scale_for(shown, height - bottom, 12)
    colour = shades(records, metric, mode)
    parts = [_axis_x(x, height - bottom, "report"), _axis_y(y, left, WIDTH - 16)]
    for record in sorted(records, key=lambda record: _place(record, metric, mode), reverse=True):
        line = lines[record.number]
        if not line:
            continue
        thinned = line[:: max(1, len(line) // _MANY)]
        points = thinned if thinned[-1] == line[-1] else [*thinned, line[-1]]
        path = " ".join(f"{x(number):.1f},{y(value):.1f}" for number, value in points)
        stroke = colour[record.number]
        label = _label(record, metric, mode)
        parts.append(
            f'<g class="trial" data-trial="{record.number}"><title>{label}</title>'
            f'<polyline points="{path}" stroke="{stroke}"/>'
        )
        if record.status in ("stopped", "diverged", "failed") or len(line) == 1:
            number, value = line[-1]
            parts.append(f'<circle cx="{x(number):.1f}" cy="{y(value):.1f}" r="3.2" fill="{stroke}"/>')
        parts.append("</g>")
    return _svg(height, parts, f"{metric} of each trial over its reports")


def parallel(records: Sequence[TrialRecord], names: Sequence[str], metric: str, mode: str) -> str:
    """Return a line for each trial through its configuration to its best value (parallel coordinates).

    Args:
        records: Of all trials.
        names: The parameters that differ, as `flat` names them.
        metric: What trials are compared by.
        mode: ``"min"`` or ``"max"``.
    """
    height, top, bottom = 360, 40, 28
    rows = [
        ({**flat(record.config), metric: best[1]}, record)
        for record in records
        if (best := record.best(metric, mode)) is not None
    ]
    axes = [*names, metric]
    if not rows or len(axes) < 2:
        return _nothing("There is nothing to compare: no parameter differs between trials.")
    gap = (WIDTH - 160) / (len(axes) - 1)
    at = {name: 80 + index * gap for index, name in enumerate(axes)}
    place: dict[str, Callable[[Any], float]] = {}
    parts: list[str] = []
    for name in axes:
        column = [row.get(name) for row, _ in rows]
        place[name], ticks = _column_scale(column, height - bottom, top)
        middle = f"{at[name]:.1f}"
        parts.append(f'<line class="axis" x1="{middle}" x2="{middle}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(f'<text class="name" x="{at[name]:.1f}" y="{top - 18}">{html.escape(name)}</text>')
        parts += [
            f'<text class="tick" x="{at[name] + 5:.1f}" y="{position + 4:.1f}">{html.escape(text)}</text>'
            for position, text in ticks
        ]
    colour = shades(records, metric, mode)
    lines = []
    for row, record in sorted(rows, key=lambda item: _place(item[1], metric, mode), reverse=True):
        path = " ".join(f"{at[name]:.1f},{place[name](row.get(name)):.1f}" for name in axes)
        lines.append(
            f'<g class="trial" data-trial="{record.number}"><title>{_label(record, metric, mode)}</title>'
            f'<polyline points="{path}" stroke="{colour[record.number]}"/></g>'
        )
    return _svg(height, [*lines, *parts], "Configurations and results")


def bars(shares: Mapping[str, float]) -> str:
    """Return a bar for the importance of each parameter."""
    if not shares:
        return _nothing("No parameter differs between enough trials to tell.")
    height = 14 + 30 * len(shares)
    x = Scale(low=0, high=1, start=220, end=WIDTH - 80)
    parts = []
    for index, (name, share) in enumerate(shares.items()):
        top = 8 + 30 * index
        parts.append(f'<text class="label" x="208" y="{top + 15}">{html.escape(name)}</text>')
        parts.append(f'<rect class="track" x="220" y="{top}" width="{x(1) - x(0):.1f}" height="20" rx="3"/>')
        parts.append(
            f'<rect class="bar" x="220" y="{top}" width="{max(1, x(share) - x(0)):.1f}" height="20" rx="3"/>'
        )
        parts.append(f'<text class="value" x="{x(1) + 8:.1f}" y="{top + 15}">{share:.2f}</text>')
    return _svg(height, parts, "Importance of each parameter")


def timeline(records: Sequence[TrialRecord], metric: str, mode: str) -> str:
    """Return a bar for each trial, from its start to its end, coloured by how it ended."""
    if not records:
        return _nothing("No trial has started.")
    row = 16 if len(records) <= 60 else max(3, 960 // len(records))
    height = row * len(records) + 44
    begin = min(record.began for record in records)
    end = max(record.ended or record.began for record in records)
    x = Scale(low=0, high=max(end - begin, 1e-3), start=60, end=WIDTH - 90)
    parts = [_axis_x(x, height - 30, "seconds")]
    for index, record in enumerate(records):
        left, right = x(record.began - begin), x((record.ended or end) - begin)
        top = 6 + row * index
        label = _label(record, metric, mode)
        parts.append(
            f'<g class="trial" data-trial="{record.number}"><title>{label}</title>'
            f'<rect class="{record.status}" x="{left:.1f}" y="{top}" width="{max(1.5, right - left):.1f}" '
            f'height="{max(2, row - 4)}" rx="2"/></g>'
        )
        if row >= 12:
            parts.append(f'<text class="label" x="52" y="{top + row - 5}">{record.number}</text>')
            parts.append(
                f'<text class="value" x="{right + 6:.1f}" y="{top + row - 5}">{len(record.reports)}</text>'
            )
    return _svg(height, parts, "When each trial ran, and how it ended")


def _column_scale(
    column: Sequence[Any], bottom: float, top: float
) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Return where values of one parameter are on its axis, and what is written beside it."""
    numbers = [value for value in column if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if numbers and len(numbers) == len(column) and all(map(math.isfinite, numbers)):
        scale = scale_for(numbers, bottom, top)
        return scale, [(scale(value), short(float(f"{value:.3g}"))) for value in scale.ticks()]
    kinds = sorted({str(value) for value in column})
    step = (bottom - top) / max(1, len(kinds) - 1)
    spots = {kind: bottom - index * step for index, kind in enumerate(kinds)}
    return lambda value: spots[str(value)], [(spots[kind], kind[:18]) for kind in kinds]


def _finite(record: TrialRecord, metric: str) -> list[tuple[int, float]]:
    return [(number, value) for number, value in record.values(metric) if math.isfinite(value)]


def _place(record: TrialRecord, metric: str, mode: str) -> float:
    best = record.best(metric, mode)
    return math.inf if best is None else best[1] * (1 if mode == "min" else -1)


def _label(record: TrialRecord, metric: str, mode: str) -> str:
    best = record.best(metric, mode)
    found = "no finite value" if best is None else f"best {metric} {short(best[1])} in report {best[0]}"
    config = ", ".join(f"{name}={short(value)}" for name, value in flat(record.config).items())
    ended = f"{record.status} after {len(record.reports)}"
    return html.escape(f"trial {record.number}: {found}, {ended}\n{config}")


def _colour(share: float) -> str:
    position = share * (len(_RAMP) - 1)
    index = min(int(position), len(_RAMP) - 2)
    mixed = (
        round(low + (high - low) * (position - index))
        for low, high in zip(_RAMP[index], _RAMP[index + 1], strict=True)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _axis_x(scale: Scale, y: float, name: str) -> str:
    ticks = [tick for tick in scale.ticks() if name != "report" or float(tick).is_integer()]
    marks = "".join(
        f'<text class="tick middle" x="{scale(tick):.1f}" y="{y + 16:.1f}">{_round(tick)}</text>'
        for tick in ticks
    )
    line = f'<line class="axis" x1="{scale.start}" x2="{scale.end}" y1="{y}" y2="{y}"/>'
    return f'{line}{marks}<text class="name end" x="{scale.end}" y="{y + 30:.1f}">{name}</text>'


def _axis_y(scale: Scale, left: float, right: float) -> str:
    return "".join(
        f'<line class="grid" x1="{left}" x2="{right}" y1="{scale(tick):.1f}" y2="{scale(tick):.1f}"/>'
        f'<text class="label" x="{left - 6}" y="{scale(tick) + 4:.1f}">{_round(tick)}</text>'
        for tick in scale.ticks()
    )


def _round(value: float) -> str:
    return short(float(f"{value:.4g}"))


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _nothing(why: str) -> str:
    return f'<p class="nothing">{html.escape(why)}</p>'
