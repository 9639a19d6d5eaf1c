"""Puts the page of a run together, beside another run if there is one.

All text of a run is escaped. Nothing is loaded from elsewhere: style and script stand in the page. A run that
has no events or no curves gets a page without those parts; a folder without ``run.json`` is refused by
`orchestrator.run_files.read_run`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from orchestrator.goodput import KINDS, describe
from orchestrator.progress import duration
from orchestrator.rank_logs import FOLDER, read_ends
from orchestrator.report import charts
from orchestrator.report.curves import Curve, read_curves
from orchestrator.report.document import document, legend, section, tiles
from orchestrator.run_facts import differences
from orchestrator.run_files import read_events, read_run

MOST_EVENTS = 300
"""Events that are listed: the first and the last half of so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the files of one run tell.

    Attributes:
        folder: Where they lie.
        name: What to call it.
        content: Of ``run.json``.
        events: Of ``events.jsonl``.
        curves: By name.
        printed: The end of what each rank has printed.
    """

    folder: Path
    name: str
    content: dict[str, Any]
    events: list[dict[str, Any]]
    curves: dict[str, Curve]
    printed: dict[int, str]

    @classmethod
    def read(cls, folder: Path) -> Told:
        """Read the run in `folder`.

        Raises:
            MisconfigurationError: It is no folder of a run, or one of a later version.
        """
        content = read_run(folder)
        name = str(content.get("name") or folder.name)
        return cls(
            folder=folder.absolute(),
            name=name,
            content=content,
            events=read_events(folder),
            curves=read_curves(folder),
            printed=read_ends(folder),
        )

    @property
    def last_fit(self) -> dict[str, Any]:
        """The last call of fit, or else the last call; empty without calls."""
        calls: list[dict[str, Any]] = self.content["calls"]
        fits = [call for call in calls if call.get("fn") == "fit"]
        return (fits or calls or [{}])[-1]

    def throughput(self) -> Curve:
        """Return samples a second of each epoch, by step."""
        points: Curve = []
        before_s = 0.0
        for event in self.events:
            if event["event"] == "train":
                before_s = 0.0
            if event["event"] == "epoch":
                taken_s = float(event.get("train_s", 0.0)) - before_s
                before_s += taken_s
                if taken_s > 0:
                    samples = int(event.get("samples", 0)) - int(event.get("samples_before", 0))
                    points.append((int(event["step"]), samples / taken_s))
        return points


def make_page(run: Told, other: Told | None = None) -> str:
    """Return the page as HTML."""
    if other is not None:
        run, other = _named_apart(run, other)
    runs = [run] if other is None else [run, other]
    title = " and ".join(item.name for item in runs)
    of = "" if other is None else f" ({run.name})"
    named = [f"<h3>{escape(item.name)}</h3>" if other is not None else "" for item in runs]
    parts = [
        legend((f"run{index}", item.name) for index, item in enumerate(runs)) if other is not None else "",
        *(name + _tiles(item) for name, item in zip(named, runs, strict=True)),
        section("Differences", _differences(run, other)) if other is not None else "",
        section("Curves", _curves(runs)),
        section("Where the time went", "".join(_goodput(item, len(runs) > 1) for item in runs)),
        section("Throughput", _throughput(runs)),
        section(f"Events{of}", _events(run)),
        section(f"What the ranks printed{of}", _printed(run)),
        section(f"Run{of}", _facts(run)),
    ]
    return document(title, parts, __package__, "page.js")


def _named_apart(run: Told, other: Told) -> tuple[Told, Told]:
    """Return both under as much of their folders' paths as tells them apart, if that is needed."""
    one, two = run.folder.parts, other.folder.parts
    for count in range(1, max(len(one), len(two)) + 1):
        if run.name != other.name:
            break
        if one[-count:] != two[-count:]:
            run = replace(run, name="/".join(one[-count:]))
            other = replace(other, name="/".join(two[-count:]))
    return run, other


def _tiles(run: Told) -> str:
    call = run.last_fit
    seconds = call.get("goodput") or {}
    whole, trained = sum(seconds.values()), sum(seconds.get(kind, 0.0) for kind in ("compute",))
    points = run.throughput()
    began = call.get("started")
    cells = {
        "outcome": call.get("outcome", ""),
        "began": "" if began is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(began)),
        "took": duration(whole) if whole else "",
        "goodput": f"{trained / whole:.0%}" if whole else "",
        "epochs": call.get("epochs", ""),
        "steps": call.get("steps", ""),
        "samples / s": charts.short(points[-1][1]) if points else "",
        "processes": call.get("world_size", ""),
    }
    error = call.get("error")
    told = f'<p class="error">{escape(str(error))}</p>' if error else ""
    if call.get("where"):
        told += (
            f"<details><summary>Where it failed</summary><pre>{escape(str(call['where']))}</pre></details>"
        )
    return tiles((name, str(value), "") for name, value in cells.items()) + told


def _curves(runs: Sequence[Told]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.curves)
    found = [charts.lines(name, [(run.name, run.curves.get(name, [])) for run in runs]) for name in names]
    return f'<div class="charts">{"".join(found)}</div>' if found else ""


def _throughput(runs: Sequence[Told]) -> str:
    chart = charts.lines("samples a second, by epoch", [(run.name, run.throughput()) for run in runs])
    return f'<div class="charts">{chart}</div>' if chart else ""


def _goodput(run: Told, named: bool) -> str:
    seconds = run.last_fit.get("goodput")
    if not seconds:
        return ""
    title = f"<h3>{escape(run.name)}</h3>" if named else ""
    return (
        f"{title}<p>{escape(describe(seconds))}</p>"
        f"{charts.bar({kind: float(seconds.get(kind, 0.0)) for kind in KINDS})}"
    )


def _events(run: Told) -> str:
    events, half = run.events, MOST_EVENTS // 2
    left_out = len(events) - 2 * half
    shown: list[dict[str, Any] | None] = [*events]
    if left_out > 0:
        shown = [*events[:half], None, *events[-half:]]
    began = float(events[0].get("at", 0.0)) if events else 0.0
    rows = []
    for event in shown:
        if event is None:
            rows.append(f'<tr><td colspan="5">... {left_out} events ...</td></tr>')
            continue
        told = {
            name: value
            for name, value in event.items()
            if name not in _PLACES and value not in (None, {}, "")
        }
        told = {name: value for name, value in told.items() if name not in _PLAIN}
        plain = ", ".join(str(event[name]) for name in _PLAIN if event.get(name))
        words = ", ".join(part for part in (plain, _words(told)) if part)
        call = "" if event.get("fn", "fit") == "fit" else f"{event['fn']}: "
        after = duration(float(event.get("at", began)) - began)
        rows.append(
            f'<tr class="event-{escape(str(event["event"]))}"><td>{after}</td>'
            f"<td>{escape(call + str(event['event']))}</td><td>{escape(str(event.get('epoch', '')))}</td>"
            f"<td>{escape(str(event.get('step', '')))}</td><td>{escape(words)}</td></tr>"
        )
    head = "<tr><th>after</th><th>event</th><th>epoch</th><th>step</th><th></th></tr>"
    return f'<div class="wide"><table class="events">{head}{"".join(rows)}</table></div>' if rows else ""


_PLACES = frozenset({"event", "at", "fn", "epoch", "step", "train_s", "samples_before"})
_PLAIN = ("plan", "text", "outcome", "path", "slow")  # they speak for themselves


def _words(value: Any) -> str:
    """Return plain values as words.

    >>> _words({"metrics": {"loss": 0.51239, "acc": 1.0}, "samples": 64})
    'loss 0.5124, acc 1, samples 64'
    """
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(item) for item in value) or "none"
    if not isinstance(value, Mapping):
        return charts.short(value) if isinstance(value, float) else str(value)
    parts = [
        _words(item) if isinstance(item, Mapping) else f"{name} {_words(item)}"
        for name, item in value.items()
    ]
    return ", ".join(part for part in parts if part)


def _printed(run: Told) -> str:
    """Return the end of each rank's log, folded; the whole lies beside the page."""
    return "".join(
        f"<details><summary>Rank {rank}: the end of {FOLDER}/rank{rank}.log</summary>"
        f"<pre>{escape(text)}</pre></details>"
        for rank, text in run.printed.items()
    )


def _facts(run: Told) -> str:
    tables = [
        _table(title, run.content.get(name) or {})
        for title, name in (
            ("Hyperparameters", "hyperparameters"),
            ("Trainer", "arguments"),
            ("Environment", "environment"),
            ("Code", "code"),
        )
    ]
    calls = [
        {name: value for name, value in call.items() if name not in ("goodput", "where")}
        for call in run.content["calls"]
    ]
    whole = f"<details><summary>Calls</summary><pre>{escape(json.dumps(calls, indent=2))}</pre></details>"
    return f'<div class="facts">{"".join(tables)}</div>{whole}'


def _table(title: str, values: Mapping[str, Any]) -> str:
    flat = differences({}, values)
    if not flat:
        return ""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(_words(value))}</td></tr>"
        for name, (_, value) in flat.items()
    )
    return f"<div><h3>{title}</h3><table>{rows}</table></div>"


def _differences(run: Told, other: Told) -> str:
    named = ("hyperparameters", "arguments", "environment", "code")
    found = differences(
        {name: run.content.get(name, {}) for name in named},
        {name: other.content.get(name, {}) for name in named},
    )
    ends = {name: (values[0], values[1]) for name, values in differences(_ends(run), _ends(other)).items()}
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(_words(one))}</td><td>{escape(_words(two))}</td></tr>"
        for name, (one, two) in {**found, **ends}.items()
    )
    head = f"<tr><th></th><th>{escape(run.name)}</th><th>{escape(other.name)}</th></tr>"
    return f'<div class="wide"><table>{head}{rows}</table></div>' if rows else "<p>None.</p>"


def _ends(run: Told) -> dict[str, Any]:
    """Return what came of a run, by what it is called in the table of differences."""
    call = run.last_fit
    return {
        "outcome": call.get("outcome"),
        "steps": call.get("steps"),
        "metrics": call.get("metrics", {}),
        "seconds": {kind: round(value, 3) for kind, value in (call.get("goodput") or {}).items()},
    }
