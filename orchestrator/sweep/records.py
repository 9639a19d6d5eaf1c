"""What happened in a sweep, one line of JSON at a time, and read back as a record of each trial.

``events.jsonl`` in the sweep's directory gets a line when a trial starts (again), reports and ends, so it is
whole up to the last report however the sweep ends, and the driver keeps nothing of it. A line that a crash
cut short is left out on reading; of reports that were made again after a crash, the later one holds.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FILE = "events.jsonl"
Status = Literal["running", "finished", "stopped", "diverged", "failed"]
_ITERATION = "training_iteration"


@dataclass(slots=True, kw_only=True)
class TrialRecord:
    """One trial, as far as it has come.

    Attributes:
        name: Such as ``trial_00003``.
        config: Its configuration, as JSON has it; the last one, where it was changed on the way.
        status: ``finished`` by itself, ``stopped`` by the sweep, ``diverged``, ``failed``, or still
            ``running``.
        error: The first line of what made it fail; else empty.
        began: When it started first, in seconds since 1970.
        resumed: When it started last.
        ended: When it ended, or None.
        reports: By their number from 1: what was reported, with ``time`` and ``time_total_s`` in seconds.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    status: Status = "running"
    error: str = ""
    began: float = 0.0
    resumed: float = 0.0
    ended: float | None = None
    reports: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Its number in the sweep, from 0."""
        return int(self.name.rpartition("_")[2])

    @property
    def seconds(self) -> float:
        """How long it computed, by its last report; without reports, from its last start to its end."""
        if self.reports:
            return float(self.reports[max(self.reports)].get("time_total_s", 0.0))
        return 0.0 if self.ended is None else self.ended - max(self.began, self.resumed)

    def values(self, metric: str) -> list[tuple[int, float]]:
        """Return the values of a metric with the numbers of the reports, in order."""
        return [
            (number, self.reports[number][metric])
            for number in sorted(self.reports)
            if metric in self.reports[number]
        ]

    def best(self, metric: str, mode: str) -> tuple[int, float] | None:
        """Return the number and value of the best finite report, the first of equals; None without one."""
        sign = 1 if mode == "min" else -1
        good = [item for item in self.values(metric) if math.isfinite(item[1])]
        return min(good, key=lambda item: sign * item[1], default=None)


class EventFile:
    """Appends to a sweep's events.

    Args:
        folder: The sweep's directory.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, FILE)

    def started(self, name: str, config: Mapping[str, Any]) -> None:
        """A trial starts, for the first time or again."""
        self._write({"event": "start", "trial": name, "time": time.time(), "config": config})

    def reported(self, name: str, result: Mapping[str, Any]) -> None:
        """A trial has reported; only numbers are kept."""
        values = {key: value for key, value in result.items() if isinstance(value, (int, float))}
        self._write(
            {
                "event": "report",
                "trial": name,
                "time": time.time(),
                "number": result[_ITERATION],
                "values": values,
            }
        )

    def ended(self, name: str, status: Status, error: str = "") -> None:
        """A trial has ended."""
        self._write({"event": "end", "trial": name, "time": time.time(), "status": status, "error": error})

    def _write(self, event: Mapping[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event, default=_as_text) + "\n")


def _as_text(value: Any) -> Any:
    """Return what JSON lacks as a number where it is one, else as text."""
    item = getattr(value, "item", None)
    return item() if callable(item) else getattr(value, "__qualname__", str(value))


def read(folder: str) -> list[TrialRecord]:
    """Return the records of a sweep's trials, in the order of their numbers.

    Args:
        folder: The sweep's directory. Without a file of events there, no trial has started.
    """
    try:
        with open(os.path.join(folder, FILE), encoding="utf-8") as file:
            return replay(file)
    except FileNotFoundError:
        return []


def replay(lines: Iterable[str]) -> list[TrialRecord]:
    """Return what the lines of a file of events tell. Pure."""
    records: dict[str, TrialRecord] = {}
    for line in lines:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        record = records.setdefault(event["trial"], TrialRecord(name=event["trial"], began=event["time"]))
        if event["event"] == "start":
            record.config, record.status, record.error = event["config"], "running", ""
            record.resumed, record.ended = event["time"], None
        elif event["event"] == "report":
            record.reports[event["number"]] = {**event["values"], "time": event["time"]}
        else:
            record.status, record.error, record.ended = event["status"], event["error"], event["time"]
    return sorted(records.values(), key=lambda record: record.number)
