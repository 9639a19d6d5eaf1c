"""Times what a run does: how often each action ran, how long, and its share of the whole.

Two readings of the clock an action, so what it shows is nearly what happens without it. On an accelerator
these are times of the host: work that was handed over counts where somebody waits for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from orchestrator.profilers.profiler import Nesting, Profiler


class SimpleProfiler(Profiler):
    """A table of durations.

    Args:
        dirpath: See `Profiler`.
        filename: See `Profiler`.
        extended: Also show counts, totals and shares, rather than means and totals only.
        now_s: Reads the time, in seconds.

    Attributes:
        recorded_durations: Seconds of each run of each action.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        extended: bool = True,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended
        self.recorded_durations: dict[str, list[float]] = {}
        self._now_s = now_s
        self._began: dict[str, float] = {}
        self._nesting = Nesting()
        self._call_began = now_s()
        self._call_ended: float | None = None

    def setup(
        self, stage: str, rank: int | None = None, log_dir: str | os.PathLike[str] | None = None
    ) -> None:
        """Forget the last call's durations; see `Profiler`."""
        super().setup(stage, rank, log_dir)
        self.recorded_durations = {}
        self._call_began, self._call_ended = self._now_s(), None

    def start(self, action_name: str) -> None:
        """Read the clock."""
        self._nesting.start(action_name)
        self._began[action_name] = self._now_s()

    def stop(self, action_name: str) -> None:
        """Read the clock, and keep the difference."""
        now = self._now_s()
        self._nesting.stop(action_name)
        self.recorded_durations.setdefault(action_name, []).append(now - self._began.pop(action_name))

    def teardown(self, stage: str) -> None:
        """Forget actions that were broken off."""
        self._nesting.running.clear()
        self._began.clear()
        self._call_ended = self._now_s()

    def summary(self) -> str:
        """Return the table, the longest total first."""
        if not self.recorded_durations:
            return ""
        whole = (self._now_s() if self._call_ended is None else self._call_ended) - self._call_began
        totals = {name: sum(durations) for name, durations in self.recorded_durations.items()}
        rows = [["Action", "Mean s", "Total s"]]
        if self.extended:
            rows = [["Action", "Mean s", "Calls", "Total s", "Share"]]
        for name, total in sorted(totals.items(), key=lambda item: -item[1]):
            count = len(self.recorded_durations[name])
            mean = f"{total / count:.5g}"
            share = f"{100 * total / whole:.1f} %" if whole > 0 else ""
            cells = [mean, str(count), f"{total:.5g}", share] if self.extended else [mean, f"{total:.5g}"]
            rows.append([name, *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        stage = self._stage or "the run"
        title = f"Profile of {stage}: {whole:.3g} s. An action's time includes those within it."
        return "\n".join([title, lines[0], "-" * len(lines[0]), *lines[1:]])
