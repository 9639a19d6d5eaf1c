"""One page about a sweep that opens anywhere: no server, no network, no other file.

``report.html`` in the sweep's directory shows the curves of all trials, their configurations against their
results, which parameters mattered, who was stopped when, and what early stopping has saved. It is written
when the sweep ends; `write_report` makes it again, also of a sweep that still runs or was broken off. Parts
for which there are no values are left out; why trials failed is told once for each reason.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import get_args

from orchestrator.errors import MisconfigurationError
from orchestrator.report.document import document, legend, section, tiles
from orchestrator.sweep import charts, directory
from orchestrator.sweep.importance import importances
from orchestrator.sweep.lines import short
from orchestrator.sweep.records import Status, TrialRecord, read
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
        section("Why trials failed", _failures(records)),
        section(
            "Curves", charts.curves(records, metric, mode),
            "Every trial's metric over its reports; a dot is where it was ended early. Bluer trials have "
            "better results.",
        ),
        section(
            "Configurations", charts.parallel(records, names, metric, mode),
            "Every line is a trial, from its configuration to its best value.",
        ),
        section(
            "Importance", charts.bars(shares), "Share of the differences in rank that a parameter alone "
            "explains, corrected for chance. Parameters that matter only together are not seen.",
        ),
        section(
            "Who was stopped when",
            legend((status, status) for status in _counts(records)) + charts.timeline(records, metric, mode),
            "Every bar is a trial; the number behind it counts its reports.",
        ),
        section(
            "Trials", _table(records, names, metric, mode) if records else "", "Click on a heading to sort.",
        ),
    ]  # fmt: skip
    return document(f"Sweep {name}", parts, __package__, "report.js", "report.css")


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
    ended = ", ".join(f"{count} {status}" for status, count in _counts(records).items())
    cells = [
        ("trials", str(len(records)), ended),
        (
            "saved by stopping early",
            f"{100 * saved_share(records):.0f} %",
            f"{reports} reports were computed",
        ),
        ("computing time", _in_units(seconds), "all trials together"),
    ]
    if best is not None:
        (report, value), record = best
        config = ", ".join(f"{name}={short(value)}" for name, value in flat(record.config).items())
        cells.insert(0, (f"best {metric}", short(value), f"trial {record.number}, report {report}: {config}"))
    return tiles(cells)


def _in_units(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _counts(records: Sequence[TrialRecord]) -> dict[Status, int]:
    """Return how many trials there are of each status, in the order of the statuses."""
    found = Counter(record.status for record in records)
    return {status: found[status] for status in get_args(Status) if status in found}


def _failures(records: Sequence[TrialRecord]) -> str:
    """Return each error once, with the trials that it ended."""
    trials: dict[str, list[str]] = {}
    for record in records:
        if record.status == "failed":
            trials.setdefault(record.error or "for an unknown reason", []).append(str(record.number))
    return "".join(
        f'<p class="error">{escape(error)}<br>'
        f'<span class="note">Trial{"s" * (len(numbers) > 1)} {", ".join(numbers)}</span></p>'
        for error, numbers in trials.items()
    )


def _table(records: Sequence[TrialRecord], names: Sequence[str], metric: str, mode: str) -> str:
    columns = ["trial", "status", "reports", f"best_{metric}", "best_report", f"last_{metric}", "seconds"]
    columns += [f"config/{name}" for name in names] + ["error"]
    rows = [result_row(record, metric, mode) for record in records]
    columns = [column for column in columns if any(row.get(column) is not None for row in rows)]
    head = "".join(f"<th>{escape(column.removeprefix('config/'))}</th>" for column in columns)
    body = ""
    for row in rows:
        cells = ("" if row.get(column) is None else short(row[column]) for column in columns)
        body += (
            f'<tr data-trial="{row["trial"]}">{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        )
    return f'<div class="trials"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
