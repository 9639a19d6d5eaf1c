"""What a sweep says while it runs: one line as each trial ends."""

from __future__ import annotations

import os
import sys
from typing import Any

import ray
from ray import tune


class TrialLines(tune.Callback):
    """Prints the configuration and the last value of the metric of each trial that ends.

    Args:
        metric: What trials are compared by.
        names: The configuration's keys to show.
    """

    def __init__(self, metric: str, names: list[str]) -> None:
        self._metric = metric
        self._names = names
        self._ended = 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say how a trial ended."""
        result = trial.last_result or {}
        value, reports = result.get(self._metric), result.get("training_iteration", 0)
        found = (
            "no report"
            if value is None
            else f"{self._metric} {value:.4g} after {reports} report{'s' * (reports != 1)}"
        )
        self._say(trial, found)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial failed, and why."""
        self._say(trial, f"failed: {_cause(trial)} (the traceback is in {trial.path}/error.txt)")

    def _say(self, trial: Any, how: str) -> None:
        self._ended += 1
        shown = ", ".join(
            f"{name}={_short(trial.config[name])}" for name in self._names if name in trial.config
        )
        print(f"Trial {self._ended} ({shown}): {how}", file=sys.stderr, flush=True)


def _cause(trial: Any) -> str:
    """Return the first line of what made a trial fail, from the file that Ray Tune has just written."""
    path = trial.pickled_error_file
    if path is None or not os.path.exists(path):
        return "see the result's error"
    with open(path, "rb") as file:
        error = ray.cloudpickle.load(file)
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0]}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
