"""One page about a sweep that opens anywhere: no server, no network, no other file.

``report.html`` in the sweep's directory shows the curves of all trials, their configurations against their
results, which parameters mattered, who was stopped when, and what early stopping has saved. It is written
when the sweep ends; `write_report` makes it again, also of a sweep that still runs or was broken off.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from typing import Any

from orchestrator.errors import MisconfigurationError
from orchestrator.sweep import charts, directory
from orchestrator.sweep.importance import importances
from orchestrator.sweep.lines import short
from orchestrator.sweep.records import TrialRecord, read
from orchestrator.sweep.tables import flat, result_row

FILE = "report.html"


def write_report(folder: str | os.PathLike[str], target: str | os.PathLike[str] | None = None) -> str:
    """Write the page of a sweep and return its path.

    Args:
        folder: The sweep's directory.
        target: The page; ``report.html`` there when None.

    Raises:
        MisconfigurationError: It is no sweep's.
    """
    path = os.fspath(folder)
    try:
        with open(os.path.join(path, directory.FILE), encoding="utf-8") as file:
            about = json.load(file)
    except FileNotFoundError:
        raise MisconfigurationError(
            f"{path} is no sweep's directory: it has no {directory.FILE}. Name the directory of a sweep."
        ) from None
    page = render(os.path.basename(os.path.abspath(path)), about["metric"], about["mode"], read(path))
    target = os.path.join(path, FILE) if target is None else os.fspath(target)
    with open(f"{target}.tmp", "w", encoding="utf-8") as file:
        file.write(page)
    os.replace(f"{target}.tmp", target)
    return target


def render(name: str, metric: str, mode: str, records: Sequence[TrialRecord]) -> str:
    """Return the page. Pure.

    Args:
        name: Of the sweep.
        metric: What trials are compared by.
        mode: ``"min"`` or ``"max"``.
        records: Of all trials.
    """
    names = differing(records)
    judged = [(flat(record.config), best[1]) for record in records if (best := record.best(metric, mode))]
    shares = importances([{n: config.get(n) for n in names} for config, _ in judged], [v for _, v in judged])
    parts = [
        _summary(metric, mode, records),
        _section(
            "Curves", "Every trial's metric over its reports; a dot is where it was ended early. "
            "Brighter trials have better results.", charts.curves(records, metric, mode),
        ),
        _section(
            "Configurations", "Every line is a trial, from its configuration to its best value.",
            charts.parallel(records, names, metric, mode),
        ),
        _section(
            "Importance", "Share of the differences in rank that a parameter alone explains, corrected for "
            "chance. Parameters that matter only together are not seen.", charts.bars(shares),
        ),
        _section(
            "Who was stopped when", "Every bar is a trial; the number behind it counts its reports.",
            _legend(records) + charts.timeline(records, metric, mode),
        ),
        _section("Trials", "Click on a heading to sort.", _table(records, names, metric, mode)),
    ]  # fmt: skip
    return _PAGE.format(
        title=html.escape(f"Sweep {name}"), body="\n".join(parts), style=_STYLE, script=_SCRIPT
    )


def differing(records: Sequence[TrialRecord]) -> list[str]:
    """Return the parameters whose values differ between trials."""
    seen: dict[str, set[str]] = {}
    for record in records:
        for name, value in flat(record.config).items():
            seen.setdefault(name, set()).add(str(value))
    return [name for name, values in seen.items() if len(values) > 1]


def saved_share(records: Sequence[TrialRecord]) -> float:
    """Return the share of reports that stopping has saved, against all trials going as far as the longest.

    >>> saved_share([TrialRecord(name="trial_0", status="finished", reports={n: {} for n in range(4)}),
    ...              TrialRecord(name="trial_1", status="stopped", reports={0: {}})])
    0.375
    """
    longest = max((len(record.reports) for record in records), default=0)
    whole = longest * len(records)
    ended_early = [record for record in records if record.status in ("stopped", "diverged")]
    return sum(longest - len(record.reports) for record in ended_early) / whole if whole else 0.0


def _summary(metric: str, mode: str, records: Sequence[TrialRecord]) -> str:
    best = min(
        ((found, record) for record in records if (found := record.best(metric, mode)) is not None),
        key=lambda item: item[0][1] * (1 if mode == "min" else -1),
        default=None,
    )
    reports = sum(len(record.reports) for record in records)
    seconds = sum(record.seconds for record in records)
    counts = {status: sum(record.status == status for record in records) for status in _STATUSES}
    ended = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    tiles = [
        ("trials", str(len(records)), ended),
        (
            "saved by stopping early",
            f"{100 * saved_share(records):.0f} %",
            f"{reports} reports were computed",
        ),
        ("computing time", _duration(seconds), "all trials together"),
    ]
    if best is not None:
        (report, value), record = best
        config = ", ".join(f"{name}={short(value)}" for name, value in flat(record.config).items())
        tiles.insert(0, (f"best {metric}", short(value), f"trial {record.number}, report {report}: {config}"))
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><span>{html.escape(name)}</span><strong>{html.escape(value)}</strong>'
        f"<small>{html.escape(note)}</small></div>"
        for name, value, note in tiles
    ) + "</div>"  # fmt: skip


def _legend(records: Sequence[TrialRecord]) -> str:
    present = [status for status in _STATUSES if any(record.status == status for record in records)]
    return '<p class="legend">' + "".join(f'<i class="{status}"></i>{status} ' for status in present) + "</p>"


def _table(records: Sequence[TrialRecord], names: Sequence[str], metric: str, mode: str) -> str:
    columns = ["trial", "status", "reports", f"best_{metric}", "best_report", f"last_{metric}", "seconds"]
    columns += [f"config/{name}" for name in names] + ["error"]
    rows = [result_row(record, metric, mode) for record in records]
    columns = [column for column in columns if any(row.get(column) is not None for row in rows)]
    head = "".join(f"<th>{html.escape(column.removeprefix('config/'))}</th>" for column in columns)
    body = "".join(
        f'<tr data-trial="{row["trial"]}">'
        + "".join(f"<td>{html.escape(_cell(row.get(column)))}</td>" for column in columns)
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    return "" if value is None else short(value)


def _section(title: str, note: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(note)}</p>{content}</section>"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


_STATUSES = ("finished", "stopped", "diverged", "failed", "running")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,
initial-scale=1"> <title>{title}</title><style>{style}</style></head>
<body><main><h1>{title}</h1>
{body}
</main><script>{script}</script></body></html>
"""
_STYLE = """
:root { --ink: #1c2430; --soft: #5d6878; --line: #d9dee6; --back: #f5f6f8; --card: #fff; --accent: #2a6f97;
  --finished: #2a6f97; --stopped: #b9c2cf; --diverged: #e08e2b; --failed: #c2413b; --running: #6aa84f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #353d49; --back:
  #14181e; --card: #1d232c; --accent: #6fb1d8; --finished: #6fb1d8; --stopped: #566172; } }
* { box-sizing: border-box } body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1000px; margin: 0 auto; padding: 24px 16px 64px } h1 { font-size: 26px; margin: 8px 0 16px }
h2 { font-size: 18px; margin: 0 } section, .tile { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px } section { padding: 18px 20px; margin-top: 18px } section > p { color: var(--soft);
  margin: 2px 0 12px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px }
.tile { padding: 14px 16px; display: flex; flex-direction: column } .tile span, .tile small { color:
var(--soft) } .tile strong { font-size: 26px; font-weight: 600 } .tile small { overflow-wrap: anywhere }
svg { width: 100%; height: auto; display: block }
svg text { fill: var(--soft); font-size: 12px; paint-order: stroke;
  stroke: var(--card); stroke-width: 3px }
svg text.name { fill: var(--ink); text-anchor: middle; font-weight: 600 } svg text.end, svg text.label {
text-anchor: end } svg text.middle { text-anchor: middle } svg polyline { fill: none; stroke-width: 1.6;
  stroke-opacity: .75; stroke-linejoin: round } .axis { stroke: var(--soft) } .grid { stroke: var(--line) }
  .track { fill: var(--line); opacity: .5 }
.bar { fill: var(--accent) } rect.finished { fill: var(--finished) } rect.stopped { fill: var(--stopped) }
rect.diverged { fill: var(--diverged) } rect.failed { fill: var(--failed) } rect.running { fill:
var(--running) } svg.lit .trial:not(.on) { opacity: .12 } .trial.on polyline { stroke-width: 3.2;
stroke-opacity: 1 } .legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin:
0 5px 0 12px } i.finished { background: var(--finished) } i.stopped { background: var(--stopped) } i.diverged
{ background: var(--diverged) } i.failed { background: var(--failed) } i.running { background: var(--running)
} .wide { overflow-x: auto; max-height: 560px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { cursor: pointer; position: sticky; top: 0; background: var(--card); text-align: left; user-select: none }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap }
tr.on { background: var(--line) }
"""
_SCRIPT = """
const light = trial => {
  document.querySelectorAll('svg').forEach(s => s.classList.toggle('lit', trial !== null));
  document.querySelectorAll('[data-trial]').forEach(e => e.classList.toggle('on', e.dataset.trial === trial));
};
document.addEventListener('mouseover', event => {
  const found = event.target.closest('[data-trial]'); light(found ? found.dataset.trial : null);
});
document.querySelectorAll('th').forEach((head, column) => head.addEventListener('click', () => {
  const body = head.closest('table').tBodies[0], up = head.dataset.up !== '1';
  const key = row => { const text = row.cells[column].textContent; const number = parseFloat(text);
    return text === '' ? [2, 0] : isNaN(number) ? [1, text] : [0, number]; };
  const sorted = [...body.rows].sort((a, b) => { const [i, x] = key(a), [j, y] = key(b);
    return i !== j ? i - j : (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); });
  head.dataset.up = up ? '1' : '0'; body.append(...sorted);
}));
"""
