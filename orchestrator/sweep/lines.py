"""What a sweep says where nobody watches a terminal: one line as each trial ends."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.sweep.records import Status
from orchestrator.sweep.space import value_at


class TrialLines:
    """Prints the configuration and the last value of the metric of each trial that ends.

    Args:
        metric: What trials are compared by.
        names: The paths in a configuration to show.
        total: Trials that there will be; None where that is not known.
    """

    def __init__(self, metric: str, names: Sequence[str], total: int | None = None) -> None:
        self._metric = metric
        self._names = names
        self._total = total
        self._ended = 0

    def reported(self, name: str, config: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Say nothing."""

    def ended(
        self, name: str, config: Mapping[str, Any], status: Status, result: Mapping[str, Any], error: str
    ) -> None:
        """Say how a trial ended."""
        self._ended += 1
        of = "" if self._total is None else f" of {self._total}"
        said = describe_end(self._metric, status, result, error)
        trial = f"Trial {number_of(name)} ({settings(config, self._names)})"
        print(f"{trial}: {said}; {self._ended}{of} ended", file=sys.stderr, flush=True)

    def tick(self) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Say nothing."""


class Silence:
    """Says nothing at all."""

    def reported(self, name: str, config: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Say nothing."""

    def ended(
        self, name: str, config: Mapping[str, Any], status: Status, result: Mapping[str, Any], error: str
    ) -> None:
        """Say nothing."""

    def tick(self) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Say nothing."""


def number_of(name: str) -> int:
    """Return the number in a trial's name.

    >>> number_of("trial_00012")
    12
    """
    return int(name.rpartition("_")[2])


def describe_end(metric: str, status: Status, result: Mapping[str, Any], error: str) -> str:
    """Return how a trial ended.

    >>> describe_end("loss", "stopped", {"loss": 0.51234, "training_iteration": 3}, "")
    'loss 0.5123 after 3 reports, stopped'
    """
    if error:
        return f"failed: {error}"
    value, reports = result.get(metric), result.get("training_iteration", 0)
    if value is None:
        return "no report"
    ended = "" if status == "finished" else f", {status}"
    return f"{metric} {value:.4g} after {reports} report{'s' * (reports != 1)}{ended}"


def settings(config: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the values of a configuration that are worth showing.

    >>> settings({"lr": 0.00123456, "data": {"batch": 32}}, ["lr", "data/batch"])
    'lr=0.001235, data/batch=32'
    """
    return ", ".join(f"{name}={short(value_at(config, name))}" for name in names)


def short(value: Any) -> str:
    """Return a value for people to read."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
