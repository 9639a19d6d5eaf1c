"""Names trials by the order in which they were made: ``trial_00000``, ``trial_00001``, ...

A trial keeps its number when it is retried, paused or restored; nothing depends on the identifiers that a
searcher draws.
"""

from __future__ import annotations

from typing import Any


class Numbering:
    """Gives each trial of a sweep its name, which is its directory's too.

    Args:
        first: The number of the next new trial: those that a restored sweep has are counted already.
    """

    def __init__(self, first: int = 0) -> None:
        self._next = first
        self._names: dict[str, str] = {}

    def __call__(self, trial: Any) -> str:
        """Return the name of a `ray.tune.experiment.Trial`."""
        name = self._names.get(trial.trial_id)
        if name is None:
            name = self._names[trial.trial_id] = f"trial_{self._next:05d}"
            self._next += 1
        return name

    def __deepcopy__(self, memo: dict[int, Any]) -> Numbering:
        """Return this very object: Tune copies a sweep's description for each trial, and there is one row."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave the names behind: each trial's saved state holds a pickle of this."""
        return {"_next": self._next, "_names": {}}
