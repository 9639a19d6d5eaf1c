"""Which profiler ``Trainer(profiler=...)`` means.

A name gives one with its own defaults. What is neither a name nor a profiler is refused before anything
starts.
"""

from __future__ import annotations

from typing import Any

from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.profilers.profiler import PassThroughProfiler, Profiler
from orchestrator.settings import Settings

NAMES = ("simple", "advanced", "pytorch")


def make_profiler(given: Any, settings: Settings) -> Profiler:
    """Return the profiler that the user means; one that does nothing for None.

    Raises:
        MisconfigurationError: There is no such profiler, or the trainer is a bare one.
    """
    if given is None:
        return PassThroughProfiler()
    if settings.barebones:
        raise MisconfigurationError(
            f"Trainer(barebones=True, profiler={given!r}): barebones measures nothing. Leave one of them out."
        )
    if isinstance(given, Profiler):
        return given
    if given == "simple":
        from orchestrator.profilers.simple import SimpleProfiler

        return SimpleProfiler()
    if given == "advanced":
        from orchestrator.profilers.advanced import AdvancedProfiler

        return AdvancedProfiler()
    if given == "pytorch":
        from orchestrator.profilers.pytorch import PyTorchProfiler

        return PyTorchProfiler()
    hint = " XLA is not supported." if given == "xla" else suggest(given, NAMES)
    raise MisconfigurationError(
        f"Trainer(profiler={given!r}) is unknown.{hint} Use one of {', '.join(NAMES)}, or a Profiler."
    )
