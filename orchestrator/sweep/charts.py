"""Charts of a sweep as SVG, drawn without any library. Pure: records in, text out.

Colours are the style's, so that a page can have a light and a dark form. Each mark of a trial carries its
number as ``data-trial``, by which the page's script lights up the same trial in all charts, and how good it
is as ``--better``. Without values to draw, a chart is empty text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from orchestrator.report.charts import figure, text, ticks
from orchestrator.report.charts import short as short_number
from orchestrator.sweep.importance import rank
from orchestrator.sweep.lines import short
from orchestrator.sweep.records import TrialRecord
from orchestrator.sweep.tables import flat

WIDTH = 920
_MANY = 160  # points of one curve
_LOG_SPAN = 50.0


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
        return ticks(self.low, self.high, 5)

    def _bend(self, value: float) -> float:
        return math.log(value) if self.log else value


def scale_for(values: Sequence[float], start: float, end: float) -> Scale:
    """Return a scale that shows all values; by the logarithm where they span powers of ten."""
    low, high = min(values), max(values)
    return Scale(low=low, high=high, start=start, end=end, log=low > 0 and high / low >= _LOG_SPAN)


def shades(records: Sequence[TrialRecord], metric: str, mode: str) -> dict[int, float]:
    """Return how good each trial with a best value is, by rank: from 0, the worst, to 1, the best."""
    best = {record.number: found[1] for record in records if (found := record.best(metric, mode)) is not None}
    sign = -1 if mode == "min" else 1
    places = rank([sign * value for value in best.values()])
    last = len(best) - 1
    return {number: place / last if last else 1.0 for number, place in zip(best, places, strict=True)}


def curves(records: Sequence[TrialRecord], metric: str, mode: str) -> str:
    """Return the metric of each trial over its reports; a dot where the sweep stopped it."""
    height, left, bottom = 380, 60, 40
    lines = {record.number: _finite(record, metric) for record in records}
    values = sorted(value for line in lines.values() for _, value in line)
    if not values:
        return ""
    # A few wild values must not squeeze the rest into one line.
    spare = round(0.03 * len(values))
    shown = values[: len(values) - spare] if mode == "min" else values[spare:]
    last = max((line[-1][0] for line in lines.values() if line), default=1)
    x = Scale(low=1, high=max(2, last), start=left, end=WIDTH - 16)
    y = scale_for(shown, height - bottom, 12)
    shade = shades(records, metric, mode)
    parts = [_axis_x(x, height - bottom, "report"), _axis_y(y, left, WIDTH - 16)]
    for record in sorted(records, key=lambda record: _place(record, metric, mode), reverse=True):
        line = lines[record.number]
        if not line:
            continue
        thinned = line[:: max(1, len(line) // _MANY)]
        points = thinned if thinned[-1] == line[-1] else [*thinned, line[-1]]
        path = " ".join(f"{x(number):.1f},{y(value):.1f}" for number, value in points)
        drawn = f'<polyline class="line" points="{path}"/>'
        if record.status in ("stopped", "diverged", "failed") or len(line) == 1:
            number, value = line[-1]
            drawn += f'<circle cx="{x(number):.1f}" cy="{y(value):.1f}" r="3.2"/>'
        parts.append(_mark(record, metric, mode, drawn, shade[record.number]))
    return figure(f"{metric} of each trial over its reports", parts, (WIDTH, height), _axis(metric, y.log))


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
        return ""
    gap = (WIDTH - 160) / (len(axes) - 1)
    at = {name: 80 + index * gap for index, name in enumerate(axes)}
    place: dict[str, Callable[[Any], float]] = {}
    parts: list[str] = []
    for name in axes:
        place[name], written, log = _column_scale([row.get(name) for row, _ in rows], height - bottom, top)
        middle = f"{at[name]:.1f}"
        parts.append(f'<line class="axis" x1="{middle}" x2="{middle}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(text(at[name], top - 18, _axis(name, log), "middle", "name"))
        parts += [text(at[name] + 5, position + 4, words) for position, words in written]
    shade = shades(records, metric, mode)
    lines = []
    for row, record in sorted(rows, key=lambda item: _place(item[1], metric, mode), reverse=True):
        path = " ".join(f"{at[name]:.1f},{place[name](row.get(name)):.1f}" for name in axes)
        drawn = f'<polyline class="line" points="{path}"/>'
        lines.append(_mark(record, metric, mode, drawn, shade[record.number]))
    return figure("Configurations and results", [*lines, *parts], (WIDTH, height))


def bars(shares: Mapping[str, float]) -> str:
    """Return a bar for the importance of each parameter."""
    if not shares:
        return ""
    height = 14 + 30 * len(shares)
    x = Scale(low=0, high=1, start=220, end=WIDTH - 80)
    parts = []
    for index, (name, share) in enumerate(shares.items()):
        top = 8 + 30 * index
        parts.append(text(208, top + 15, name, "end"))
        for kind, width in (("track", x(1) - x(0)), ("share", max(1, x(share) - x(0)))):
            parts.append(f'<rect class="{kind}" x="220" y="{top}" width="{width:.1f}" height="20" rx="3"/>')
        parts.append(text(x(1) + 8, top + 15, f"{share:.2f}"))
    return figure("Importance of each parameter", parts, (WIDTH, height))


def timeline(records: Sequence[TrialRecord], metric: str, mode: str) -> str:
    """Return a bar for each trial, from its start to its end, coloured by how it ended."""
    if not records:
        return ""
    row = 16 if len(records) <= 60 else max(3, 960 // len(records))
    height = row * len(records) + 54
    begin = min(record.began for record in records)
    end = max(record.ended or record.began for record in records)
    x = Scale(low=0, high=max(end - begin, 1e-3), start=60, end=WIDTH - 90)
    parts = [_axis_x(x, height - 40, "seconds")]
    for index, record in enumerate(records):
        left, right = x(record.began - begin), x((record.ended or end) - begin)
        top = 6 + row * index
        drawn = (
            f'<rect class="{record.status}" x="{left:.1f}" y="{top}" width="{max(1.5, right - left):.1f}" '
            f'height="{max(2, row - 4)}" rx="2"/>'
        )
        parts.append(_mark(record, metric, mode, drawn))
        if row >= 12:
            parts.append(text(52, top + row - 5, str(record.number), "end"))
            parts.append(text(right + 6, top + row - 5, str(len(record.reports))))
    return figure("When each trial ran, and how it ended", parts, (WIDTH, height))


def _column_scale(
    column: Sequence[Any], bottom: float, top: float
) -> tuple[Callable[[Any], float], list[tuple[float, str]], bool]:
    """Return where values of one parameter are, what is written beside them, and whether by the logarithm."""
    numbers = [value for value in column if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if numbers and len(numbers) == len(column) and all(map(math.isfinite, numbers)):
        scale = scale_for(numbers, bottom, top)
        return scale, [(scale(value), short_number(value)) for value in scale.ticks()], scale.log
    kinds = sorted({str(value) for value in column})
    step = (bottom - top) / max(1, len(kinds) - 1)
    spots = {kind: bottom - index * step for index, kind in enumerate(kinds)}
    return lambda value: spots[str(value)], [(spots[kind], kind[:18]) for kind in kinds], False


def _finite(record: TrialRecord, metric: str) -> list[tuple[int, float]]:
    return [(number, value) for number, value in record.values(metric) if math.isfinite(value)]


def _place(record: TrialRecord, metric: str, mode: str) -> float:
    best = record.best(metric, mode)
    return math.inf if best is None else best[1] * (1 if mode == "min" else -1)


def _mark(record: TrialRecord, metric: str, mode: str, drawn: str, shade: float = 0.0) -> str:
    """Return what is drawn of a trial, with what it says under the pointer."""
    best = record.best(metric, mode)
    found = "no finite value" if best is None else f"best {metric} {short(best[1])} in report {best[0]}"
    config = ", ".join(f"{name}={short(value)}" for name, value in flat(record.config).items())
    told = f"trial {record.number}: {found}, {record.status} after {len(record.reports)}\n{config}"
    return (
        f'<g class="trial" data-trial="{record.number}" style="--better: {shade:.0%}">'
        f"<title>{escape(told)}</title>{drawn}</g>"
    )


def _axis(name: str, log: bool) -> str:
    return f"{name} (log)" if log else name


def _axis_x(scale: Scale, y: float, name: str) -> str:
    marks = "".join(
        text(scale(tick), y + 18, short_number(tick), "middle")
        for tick in scale.ticks()
        if name != "report" or float(tick).is_integer()
    )
    line = f'<line class="axis" x1="{scale.start}" x2="{scale.end}" y1="{y}" y2="{y}"/>'
    return f"{line}{marks}{text(scale.end, y + 34, name, 'end', 'name')}"


def _axis_y(scale: Scale, left: float, right: float) -> str:
    return "".join(
        f'<line class="grid" x1="{left}" x2="{right}" y1="{scale(tick):.1f}" y2="{scale(tick):.1f}"/>'
        + text(left - 6, scale(tick) + 4, short_number(tick), "end")
        for tick in scale.ticks()
    )
