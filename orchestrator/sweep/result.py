"""What a sweep returns: Ray Tune's result of all trials, and the best of them by name.

The best trial is the one with the best value in any of its reports, not counting those that diverged; its
checkpoint is the one of that report.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ray.tune import Result, ResultGrid

from modules.module import LightningModule
from orchestrator.errors import MisconfigurationError, SweepError
from orchestrator.sweep.module_training import ModuleTraining
from orchestrator.sweep.records import TrialRecord
from orchestrator.sweep.trial import CHECKPOINT_NAME

T = TypeVar("T", bound=LightningModule)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestTrial:
    """The winner of a sweep.

    Attributes:
        number: Of the trial, from 0.
        name: Of the trial, and of its directory.
        config: Its configuration, as it was when it ended.
        value: The best value of the sweep's metric.
        report: In which of its reports, from 1.
        metrics: All that was reported with it.
        path: The trial's directory.
        checkpoint: The file of the checkpoint of that report; None where none was kept.
        result: Ray Tune's result of the trial.
    """

    number: int
    name: str
    config: Mapping[str, Any]
    value: float
    report: int
    metrics: Mapping[str, float]
    path: str
    checkpoint: str | None
    result: Result = field(repr=False)


class SweepResult(ResultGrid):
    """Ray Tune's `ResultGrid`, and the best trial.

    Attributes:
        path: The sweep's directory.
        metric: What trials are compared by.
        mode: ``"min"`` or ``"max"``.
    """

    def __init__(
        self,
        analysis: Any,
        *,
        path: str,
        metric: str,
        mode: str,
        records: Sequence[TrialRecord],
        training: object,
    ) -> None:
        super().__init__(analysis)
        self.path = path
        self.metric = metric
        self.mode = mode
        self._records = records
        self._training = training

    @property
    def best_trial(self) -> BestTrial:
        """The trial with the best value of the metric.

        Raises:
            SweepError: No trial has reported a finite value.
        """
        sign = 1 if self.mode == "min" else -1
        candidates = [(record.best(self.metric, self.mode), record) for record in self._records]
        found = min(
            (
                (sign * best[1], record.number, best, record)
                for best, record in candidates
                if best is not None
            ),
            default=None,
            key=lambda item: item[:2],
        )
        if found is None:
            raise SweepError(
                f"There is no best trial: {self.metric} was finite in no report of "
                f"{len(self._records)} trials. "
                f"How each ended stands in {os.path.join(self.path, 'results.csv')}."
            )
        _, number, (report, value), record = found
        result = next(
            result
            for result in (self[index] for index in range(len(self)))
            if os.path.basename(result.path) == record.name
        )
        return BestTrial(
            number=number,
            name=record.name,
            config=result.config or {},
            value=value,
            report=report,
            metrics=record.reports[report],
            path=result.path,
            checkpoint=_checkpoint_of(result, self.metric, value),
            result=result,
        )

    def describe(self) -> str:
        """Return the best trial and where the report lies, in two lines.

        Raises:
            SweepError: As `best_trial`.
        """
        best = self.best_trial
        found = f"{self.metric} {best.value:.4g} in report {best.report}: {dict(best.config)}"
        return f"Best: trial {best.number}, {found}\nReport: {os.path.join(self.path, 'report.html')}"

    def load_best_module(self, module: type[T] | None = None, **arguments: Any) -> T:
        """Return the best trial's module with the weights of its best report.

        Args:
            module: Its class; may be left out where the sweep was given it.
            **arguments: For its constructor, as `load_from_checkpoint` takes them.

        Raises:
            MisconfigurationError: No class is known, or no checkpoint was kept.
            SweepError: There is no best trial.
        """
        best, training = self.best_trial, self._training
        if isinstance(training, ModuleTraining):
            arguments = {**training.split(best.config)["module"], **arguments}
            module = module or training.module  # type: ignore[assignment]
        if module is None:
            raise MisconfigurationError(
                "load_best_module(): the sweep was given a function, so the module's class is not "
                "known. Call "
                "load_best_module(Net)."
            )
        if best.checkpoint is None:
            raise MisconfigurationError(
                f"load_best_module(): {best.name} has kept no checkpoint. Use Sweep(save_checkpoints=True)."
            )
        return module.load_from_checkpoint(best.checkpoint, **arguments)


def _checkpoint_of(result: Result, metric: str, value: float) -> str | None:
    """Return the file of the kept checkpoint whose metric is nearest to a value."""
    kept = [
        (checkpoint, metrics) for checkpoint, metrics in result.best_checkpoints or () if metric in metrics
    ]
    if not kept:
        return None
    checkpoint, _ = min(kept, key=lambda item: abs(item[1][metric] - value))
    return os.path.join(checkpoint.path, CHECKPOINT_NAME)
