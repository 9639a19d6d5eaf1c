"""Follows a sweep as Ray Tune runs it: writes its events, tells the user, and keeps what a restored run
needs.

It is the only listener that a sweep adds, and it does little at each report: one line into a file. It ends
the sweep at once when a trial shows that none can go well, such as a metric that is never logged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

import ray
from ray import tune

from orchestrator.sweep.hparams_board import write_hparams
from orchestrator.sweep.records import EventFile, Status
from orchestrator.sweep.spare_room import Sign
from orchestrator.sweep.trial import MetricNotLogged


class Display(Protocol):
    """Shows a person how a sweep comes along."""

    def reported(self, name: str, config: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """A trial has reported."""

    def ended(
        self, name: str, config: Mapping[str, Any], status: Status, result: Mapping[str, Any], error: str
    ) -> None:
        """A trial has ended, with its last report and what made it fail."""

    def tick(self) -> None:
        """Time has passed."""

    def close(self) -> None:
        """The sweep is over."""


class Follower(tune.Callback):
    """Ray Tune's callback.

    Args:
        path: The sweep's directory.
        display: Where the user looks.
        scheduler: Whose decisions a restored run needs; None where it has none to keep.
        metric: What trials are compared by.
        mode: ``"min"`` or ``"max"``.
        on_workers: Trials train on workers, so some may be able to use what others free.

    Attributes:
        fatal: What no trial can go well with; None as long as nothing was found.
    """

    def __init__(
        self, path: str, display: Display, scheduler: Any, *, metric: str, mode: str, on_workers: bool = False
    ) -> None:
        self.fatal: MetricNotLogged | None = None
        self._events = EventFile(path)
        self._display = display
        self._scheduler = scheduler
        self._stopped: set[str] = set()  # whose last report was answered with a stop
        self._open: set[str] = set()
        self._sign = Sign(path) if on_workers else None
        self._metric = metric
        self._better = min if mode == "min" else max
        self._best: dict[str, float] = {}  # of the trials that have not ended

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note a start."""
        self._open.add(str(trial))
        self._events.started(str(trial), trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a report."""
        if result.get("done"):
            self._stopped.add(str(trial))
        if self._metric in result and not result.get("diverged"):
            value = float(result[self._metric])
            self._best[str(trial)] = self._better(value, self._best.get(str(trial), value))
        self._events.reported(str(trial), result)
        self._display.reported(str(trial), trial.config, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note how a trial ended that did not fail."""
        result = trial.last_result or {}
        status: Status = "finished"
        if str(trial) in self._stopped or trial.status == "PAUSED":
            status = "diverged" if result.get("diverged") else "stopped"
        self._end(trial, status)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note a failure.

        Raises:
            MetricNotLogged: It will meet all trials.
        """
        error = cause_of(trial)
        self._end(trial, "failed", f"{type(error).__name__}: {_first_line(error)}")
        if isinstance(error, MetricNotLogged):
            self.fatal = error
            raise error

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Let the display breathe, and elastic trials know whether there is room."""
        if self._sign is not None:
            self._sign.update(trials)
        self._display.tick()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Note the trials that the end of the sweep has ended."""
        if self._sign is not None:
            self._sign.take_down()
        for trial in trials:
            if str(trial) in self._open and trial.is_finished():
                self._end(trial, "stopped")

    def get_state(self) -> dict[str, Any] | None:
        """Return what a restored run needs, for the snapshot that Ray Tune makes."""
        state = _kept_state(self._scheduler)
        return None if state is None else {"scheduler": state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Give a restored run's scheduler what it had decided."""
        _put_state(self._scheduler, state["scheduler"])

    def _end(self, trial: Any, status: Status, error: str = "") -> None:
        name = str(trial)
        self._open.discard(name)
        self._stopped.discard(name)
        self._events.ended(name, status, error)
        best, last = self._best.pop(name, None), trial.last_result or {}
        if best is not None and self._metric in last:
            reports = last["training_iteration"]
            write_hparams(trial.path, trial.config, self._metric, last[self._metric], best, reports)
        self._display.ended(name, trial.config, status, trial.last_result or {}, _with_place(error, trial))


def cause_of(trial: Any) -> BaseException:
    """Return what made a trial fail, from the file that Ray Tune has just written."""
    path = trial.pickled_error_file
    if path is None or not os.path.exists(path):
        return RuntimeError("see the result's error")
    with open(path, "rb") as file:
        error = ray.cloudpickle.load(file)
    cause: BaseException = getattr(error, "cause", None) or error
    return cause


def _kept_state(scheduler: Any) -> dict[str, Any] | None:
    """Return what a scheduler has decided, where it goes by trials' identifiers or numbers."""
    from ray.tune.schedulers import AsyncHyperBandScheduler

    if hasattr(scheduler, "save_state"):
        return dict(scheduler.save_state())
    if isinstance(scheduler, AsyncHyperBandScheduler):
        names = ("_brackets", "_trial_info", "_num_stopped", "_counter")
        return {name: getattr(scheduler, name) for name in names if hasattr(scheduler, name)}
    return None


def _put_state(scheduler: Any, state: Mapping[str, Any]) -> None:
    if hasattr(scheduler, "load_state"):
        scheduler.load_state(state)
    else:
        vars(scheduler).update(state)


def _with_place(error: str, trial: Any) -> str:
    return f"{error} (the traceback is in {trial.path}/error.txt)" if error else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
