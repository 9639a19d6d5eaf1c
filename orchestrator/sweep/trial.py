"""The trial that this process runs, as the Trainer sees it.

A sweep sets the current trial before it calls the user's training function. The Trainer then reports after
each validation (else after each training epoch) and obeys: when the sweep ends the trial, all ranks leave
``fit`` by `TrialStopped` at the same step. Outside of a sweep there is no current trial, and this module is
not even imported.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.spec import GroupSpec
from modules.module import LightningModule
from orchestrator.callbacks.callback import Callback
from orchestrator.checkpoint import writer
from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.sweep.stopped import TrialStopped

CHECKPOINT_NAME = "checkpoint.ckpt"

_current: Trial | None = None


def current() -> Trial | None:
    """Return the trial that this process runs, or None."""
    return _current


def set_current(trial: Trial | None) -> None:
    """Say which trial this process runs from now on."""
    global _current
    _current = trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a trial tells the sweep.

    Attributes:
        metrics: By name.
        content: The checkpoint that belongs to them, or None.
    """

    metrics: dict[str, float]
    content: dict[str, Any] | None


@dataclass(slots=True, kw_only=True)
class Trial:
    """One trial, in the process that Ray Tune started for it.

    Attributes:
        metric: What the sweep compares.
        directory: The trial's directory; logs go there unless the user says otherwise.
        num_workers: Workers that the trial has reserved besides this process; 0 when it trains in this
            process.
        resources_per_worker: What each of them has reserved.
        placement_group: Where they are reserved, or None.
        saves: Add a checkpoint to each report.
        ended: The sweep has ended the trial.
    """

    metric: str
    directory: str
    num_workers: int
    resources_per_worker: dict[str, float]
    placement_group: Any
    saves: bool
    ended: bool = False

    def reporter(self) -> TrialReporter:
        """Return the callback that reports."""
        return TrialReporter(self.metric, self.saves)

    def group_spec(self, num_workers: int, **options: Any) -> GroupSpec:
        """Return the spec of a group in what the trial has reserved.

        Raises:
            MisconfigurationError: The trial has not reserved as many workers.
        """
        if num_workers != self.num_workers:
            raise MisconfigurationError(
                f"The Trainer asks for {num_workers} workers, and its trial has reserved {self.num_workers}. "
                f"Use Sweep(resources_per_trial=ScalingConfig(num_workers={num_workers}))."
            )
        return GroupSpec.create(
            num_workers,
            resources_per_worker=self.resources_per_worker,
            placement_group=self.placement_group,
            **options,
        )

    def answer(self, question: object) -> bool:
        """Pass a `Report` on to Ray Tune; return whether the trial goes on."""
        from ray import tune

        assert isinstance(question, Report)
        try:
            if question.content is None:
                tune.report(question.metrics)
            else:
                with tempfile.TemporaryDirectory(prefix="orchestrator-trial-") as folder:
                    writer.write(question.content, os.path.join(folder, CHECKPOINT_NAME))
                    tune.report(question.metrics, checkpoint=tune.Checkpoint.from_directory(folder))
        except SystemExit:  # how Ray Tune ends a trial that its scheduler has given up
            self.ended = True
        return not self.ended


class TrialReporter(Callback):
    """Reports to the sweep after each validation, or after each training epoch when there is no validation.

    Rank 0 reports and waits for the decision; the other ranks learn it from rank 0, so all stop at the same
    step.

    Args:
        metric: What the sweep compares; it must be among the metrics that were logged.
        saves: Add a checkpoint to each report.
    """

    watches_metrics = True

    def __init__(self, metric: str, saves: bool) -> None:
        self.metric = metric
        self.saves = saves

    def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Report after a validation in fit."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._report(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Report after an epoch of a fit that does not validate."""
        if not trainer.num_val_batches:
            self._report(trainer)

    def _report(self, trainer: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        _check_metric(self.metric, metrics)
        content = trainer.dump_checkpoint() if self.saves else None
        place, goes_on = trainer.engine.place, True
        if trainer.is_global_zero:
            counters = {"epoch": trainer.current_epoch, "global_step": trainer.global_step}
            goes_on = bool(place.ask(Report(metrics={**counters, **metrics}, content=content)))
        if not trainer.strategy.broadcast(goes_on):
            raise TrialStopped(f"The sweep ended this trial at step {trainer.global_step}.")
        if not math.isfinite(metrics[self.metric]):
            raise TrialStopped(
                f"{self.metric} is {metrics[self.metric]} at step {trainer.global_step}: the trial ends."
            )


def _check_metric(name: str, metrics: Mapping[str, float]) -> None:
    if name not in metrics:
        raise MisconfigurationError(
            f"Sweep(metric={name!r}): the trial has not logged it.{suggest(name, metrics)} It has logged "
            f"{sorted(metrics)}. "
            "Call self.log with that name in validation, or name another metric."
        )
