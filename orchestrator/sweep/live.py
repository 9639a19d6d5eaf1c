"""What a sweep shows on a terminal: a table that is drawn anew as trials report, and a line as each ends.

It is drawn by the driver, between two results of Ray Tune, at most a few times a second; no thread runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.sweep.lines import describe_end, number_of, settings, short
from orchestrator.sweep.records import Status

_EVERY_S = 0.25
_ROWS = 12


class TrialTable:
    """The running trials, and the best so far.

    Args:
        metric: What trials are compared by.
        mode: ``"min"`` or ``"max"``.
        names: The paths in a configuration to show.
        total: Trials that there will be.
        console: Where to draw; standard error when None.
    """

    def __init__(
        self, metric: str, mode: str, names: Sequence[str], total: int, console: Console | None = None
    ) -> None:
        self._metric, self._mode, self._names, self._total = metric, mode, names, total
        self._running: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._best: tuple[float, str, str] | None = None
        self._ended = 0
        self._began = time.monotonic()
        self._drawn = 0.0
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def reported(self, name: str, config: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Take a report in."""
        shown = settings(config, self._names)
        self._running[name] = (shown, result)
        value = result.get(self._metric)
        if value is None or result.get("diverged"):
            return
        sign = 1 if self._mode == "min" else -1
        if self._best is None or sign * value < sign * self._best[0]:
            self._best = (value, name, shown)

    def ended(
        self, name: str, config: Mapping[str, Any], status: Status, result: Mapping[str, Any], error: str
    ) -> None:
        """Print how a trial ended, above the table."""
        self._ended += 1
        self._running.pop(name, None)
        said = describe_end(self._metric, status, result, error)
        self._console.print(
            f"Trial {number_of(name)} ({settings(config, self._names)}): {said}; "
            f"{self._ended} of {self._total} ended",
            markup=False,
            highlight=False,
        )

    def tick(self) -> None:
        """Draw, if it is time."""
        now = time.monotonic()
        if now - self._drawn >= _EVERY_S:
            self._drawn = now
            self._live.update(self.table(), refresh=True)

    def close(self) -> None:
        """Take the table away; the lines stay."""
        self._live.stop()

    def table(self) -> Table:
        """Return what is drawn."""
        best = "" if self._best is None else f", best {self._metric} {short(self._best[0])} ({self._best[2]})"
        elapsed = time.monotonic() - self._began
        table = Table(
            title=f"{self._ended} of {self._total} trials, {elapsed:.0f} s{best}",
            title_justify="left",
            box=None,
        )
        for heading in ("trial", "configuration", "reports", self._metric, "seconds"):
            table.add_column(heading)
        for name, (shown, result) in list(self._running.items())[:_ROWS]:
            table.add_row(
                name.removeprefix("trial_").lstrip("0") or "0",
                shown,
                str(result.get("training_iteration", 0)),
                short(result.get(self._metric, "")),
                f"{result.get('time_total_s', 0.0):.1f}",
            )
        if len(self._running) > _ROWS:
            table.add_row("", f"and {len(self._running) - _ROWS} more")
        return table
