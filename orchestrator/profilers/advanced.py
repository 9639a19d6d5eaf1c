"""Counts and times the functions that run within each action, with Python's own ``cProfile``.

Every call costs something, so proportions within Python code are exaggerated. One action is measured at a
time: while one runs within another, the outer one pauses, and each function is counted where it ran.
"""

from __future__ import annotations

import cProfile
import io
import os
import pstats
from typing import Any, cast

from orchestrator.errors import MisconfigurationError
from orchestrator.profilers.profiler import Nesting, Profiler


class AdvancedProfiler(Profiler):
    """A table of functions for each action.

    Args:
        dirpath: See `Profiler`.
        filename: See `Profiler`.
        line_count_restriction: How much of each table to show: a number of lines, or a share of them (float).
        dump_stats: Also write each action's statistics into a file for `pstats`,
            ``{stage}-{filename}-{action}.prof``.

    Attributes:
        profiled_functions: For each action, its statistics in the form of `pstats`.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        number = isinstance(line_count_restriction, (int, float))
        if not number or isinstance(line_count_restriction, bool) or line_count_restriction <= 0:
            raise MisconfigurationError(
                f"AdvancedProfiler(line_count_restriction={line_count_restriction!r}). Use a number of "
                "lines, or a share up to 1.0."
            )
        self.line_count_restriction = line_count_restriction
        self.dump_stats = dump_stats
        self.profiled_functions: dict[str, dict[Any, Any]] = {}
        self._profiles: dict[str, cProfile.Profile] = {}
        self._nesting = Nesting()

    def setup(
        self, stage: str, rank: int | None = None, log_dir: str | os.PathLike[str] | None = None
    ) -> None:
        """Forget the last call's functions; see `Profiler`."""
        super().setup(stage, rank, log_dir)
        self.profiled_functions = {}
        self._profiles = {}

    def start(self, action_name: str) -> None:
        """Pause the outer action, and measure this one."""
        outer = self._innermost()
        self._nesting.start(action_name)
        if outer is not None:
            outer.disable()
        self._profiles.setdefault(action_name, cProfile.Profile()).enable()

    def stop(self, action_name: str) -> None:
        """End the action, and go on with the outer one."""
        profile = self._profiles.get(action_name)
        if profile is not None and action_name in self._nesting.running:
            profile.disable()
        self._nesting.stop(action_name)
        outer = self._innermost()
        if outer is not None:
            outer.enable()

    def teardown(self, stage: str) -> None:
        """End what is running, and keep the statistics as plain values."""
        innermost = self._innermost()
        if innermost is not None:
            innermost.disable()
        self._nesting.running.clear()
        for name, profile in self._profiles.items():
            self.profiled_functions[name] = vars(pstats.Stats(profile))["stats"]
        self._profiles = {}
        if self.dump_stats:
            for name in self.profiled_functions:
                safe = "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in name)
                path = self.path_for(".prof", safe)
                path.parent.mkdir(parents=True, exist_ok=True)
                self.stats_of(name).dump_stats(str(path))

    def stats_of(self, action_name: str) -> pstats.Stats:
        """Return an action's statistics, after a call of the trainer, for `pstats`.

        Raises:
            KeyError: There was no such action.
        """
        return self._read(action_name, io.StringIO())

    def _read(self, action_name: str, stream: io.StringIO) -> pstats.Stats:
        kept = cast(cProfile.Profile, _Kept(self.profiled_functions[action_name]))
        return pstats.Stats(kept, stream=stream)

    def summary(self) -> str:
        """Return the tables, each with the longest times first."""
        parts = []
        for name in self.profiled_functions:
            text = io.StringIO()
            self._read(name, text).sort_stats("cumulative").print_stats(self.line_count_restriction)
            parts.append(f"Profile of {name}\n{text.getvalue().strip()}")
        return "\n\n".join(parts)

    def _innermost(self) -> cProfile.Profile | None:
        running = self._nesting.running
        return self._profiles[running[-1]] if running else None


class _Kept:
    """Statistics as plain values, in the form in which `pstats.Stats` takes a profile's."""

    def __init__(self, stats: dict[Any, Any]) -> None:
        self.stats = stats

    def create_stats(self) -> None:
        """Do nothing: they are there."""
