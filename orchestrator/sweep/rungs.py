"""Successive halving whose decisions do not depend on how fast trials run, or on how many run at once.

ASHA decides about a trial when it reports, from what other trials happen to have reported by then: on another
cluster, other trials are stopped. Here trials are counted off into waves of a fixed size (the logical
concurrency), in the order of their numbers. At each rung (a number of reports), a wave's trials are decided
together, once all that are still in it stand there, and once all earlier waves have been decided there: a
trial goes on if its value is among the best `1/reduction_factor` of all values of its own and of earlier
waves at this rung. So with trials that repeat (the sweep seeds each from its number), stop points and winner
are the same on any cluster.

A trial that waits for its wave is paused: it gives its place to another, and goes on from a checkpoint. That
is the price beside ASHA, which never waits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from orchestrator.errors import MisconfigurationError

_STATE = ("_values", "_ended", "_decided", "_released")


def rungs_of(grace_period: int, reduction_factor: float, max_t: int) -> list[int]:
    """Return the reports at which trials are decided.

    >>> rungs_of(1, 3, 30)
    [1, 3, 9, 27]
    """
    rungs, reports = [], float(grace_period)
    while round(reports) < max_t:
        rungs.append(round(reports))
        reports *= reduction_factor
    return rungs


def survivors(
    values: Mapping[int, float], wave: Sequence[int], reduction_factor: float, mode: str
) -> set[int]:
    """Return which trials of a wave go on past a rung.

    Args:
        values: At this rung, by the trial's number, of this wave and of all before it.
        wave: The numbers of this wave's trials that stand at the rung.
        reduction_factor: One in so many goes on, at least one in all.
        mode: ``"min"`` or ``"max"``.

    >>> sorted(survivors({0: 0.3, 1: 0.1, 2: 0.2, 3: 0.4}, [2, 3], 2, "min"))
    [2]
    """
    sign = 1.0 if mode == "min" else -1.0
    ranked = sorted(values, key=lambda number: (_rankable(sign * values[number]), number))
    places = max(1, math.floor(len(ranked) / reduction_factor))
    return set(ranked[:places]) & set(wave)


def _rankable(value: float) -> float:
    return math.inf if math.isnan(value) else value


class SynchronousRungs(TrialScheduler):
    """The rule as a scheduler of Ray Tune, for `Sweep(scheduler=...)`.

    Args:
        max_t: Reports after which a trial ends.
        grace_period: Reports before the first decision.
        reduction_factor: At each rung, one in so many goes on; rungs are so many times apart.
        concurrency: Trials in a wave, however many run at once.

    Raises:
        MisconfigurationError: A number cannot be.
    """

    def __init__(
        self, max_t: int = 100, grace_period: int = 1, reduction_factor: float = 3, concurrency: int = 4
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        for name, value in (("max_t", max_t), ("grace_period", grace_period), ("concurrency", concurrency)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise MisconfigurationError(
                    f"SynchronousRungs({name}={value!r}). Use a whole number of at least 1."
                )
        if not reduction_factor > 1:
            raise MisconfigurationError(
                f"SynchronousRungs(reduction_factor={reduction_factor!r}). Use a number above 1."
            )
        self._max_t, self._concurrency, self._factor = max_t, concurrency, reduction_factor
        self._rungs = rungs_of(grace_period, reduction_factor, max_t)
        self._mode, self._name = "min", ""
        self._total = sys.maxsize
        self._limit = sys.maxsize
        self._trials: dict[int, Trial] = {}
        self._values: dict[int, dict[int, float]] = {rung: {} for rung in self._rungs}
        self._ended: set[int] = set()  # for good, so they will come to no further rung
        self._decided: dict[int, int] = dict.fromkeys(self._rungs, 0)  # waves, at each rung
        self._released: set[int] = set()  # decided to go on, and waiting for a place

    def plan(self, total: int, max_concurrent: int | None) -> None:
        """Take how many trials there will be, and how many at most run at a time. Called by the sweep."""
        self._total, self._limit = total, max_concurrent or sys.maxsize

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take what trials are compared by."""
        self._metric, self._mode, self._name = metric, mode or "min", metric or ""
        return True

    def save_state(self) -> dict[str, Any]:
        """Return what has been decided, for a run that goes on later."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `save_state` returned."""
        for name in _STATE:
            setattr(self, name, state[name])

    def may_add(self) -> bool:
        """Return whether another trial may be made now: there is a place that no earlier trial waits for."""
        return self._has_place() and not any(
            trial.status == Trial.PAUSED and number in self._released
            for number, trial in self._trials.items()
        )

    # ---------------------------------------------------------------- what Ray Tune calls

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Take note of the trial."""
        self._trials[_number(trial)] = trial

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Count a failed trial as ended, unless it is tried again."""
        if not trial.should_recover():
            self._end(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decide at a rung; between rungs a trial goes on."""
        rung, number = result["training_iteration"], _number(trial)
        if rung >= self._max_t:
            return str(self.STOP)
        if rung not in self._values:
            return str(self.CONTINUE)
        self._values[rung][number] = float(result[self._name])
        self._released.discard(number)
        if self._is_decided(number, rung):  # it came when its wave had been decided, in a sweep made longer
            known = {other: value for other, value in self._values[rung].items() if other <= number}
            goes_on = bool(survivors(known, [number], self._factor, self._mode))
            return str(self.CONTINUE if goes_on else self.STOP)
        self._decide()
        self._stop_waiting(tune_controller)
        if number in self._ended:
            return str(self.STOP)
        if number in self._released:
            self._released.discard(number)
            return str(self.CONTINUE)
        return str(self.PAUSE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Count the trial as ended."""
        self._end(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Count a trial that was stopped while it waited as ended."""
        self._end(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial with the least number that may run."""
        self._stop_waiting(tune_controller)
        if not self._has_place():
            pending = [number for number, trial in self._trials.items() if trial.status == Trial.PENDING]
            return self._trials[min(pending)] if pending else None
        waiting = [
            number
            for number, trial in self._trials.items()
            if trial.status == Trial.PENDING or (trial.status == Trial.PAUSED and number in self._released)
        ]
        return self._trials[min(waiting)] if waiting else None

    def debug_string(self) -> str:
        """Return one line about what was decided."""
        return f"SynchronousRungs: waves decided at {self._decided}"

    # ---------------------------------------------------------------- the rule

    def _end(self, tune_controller: Any, trial: Trial) -> None:
        number = _number(trial)
        if number not in self._ended:
            self._ended.add(number)
            self._decide()
            self._stop_waiting(tune_controller)

    def _decide(self) -> None:
        """Decide all waves that can be decided now."""
        again = True
        while again:
            again = False
            for rung in self._rungs:
                wave, values = self._next_wave(rung), self._values[rung]
                if not wave or not all(number in values or number in self._ended for number in wave):
                    continue
                known = {number: value for number, value in values.items() if number <= wave[-1]}
                standing = {number for number in wave if number in values and number not in self._ended}
                going = survivors(known, sorted(standing), self._factor, self._mode)
                self._released |= going
                self._ended |= standing - going
                self._decided[rung] += 1
                again = True

    def _next_wave(self, rung: int) -> range:
        """Return the numbers of the first wave that has not been decided at this rung."""
        first = self._decided[rung] * self._concurrency
        return range(first, max(first, min(first + self._concurrency, self._total)))

    def _is_decided(self, number: int, rung: int) -> bool:
        return number // self._concurrency < self._decided[rung]

    def _stop_waiting(self, tune_controller: Any) -> None:
        """Stop the paused trials that were decided against."""
        for number, trial in list(self._trials.items()):
            if trial.status == Trial.PAUSED and number in self._ended:
                tune_controller.stop_trial(trial)

    def _has_place(self) -> bool:
        active = sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in self._trials.values())
        return active < self._limit


def _number(trial: Trial) -> int:
    return int(str(trial).rpartition("_")[2])
