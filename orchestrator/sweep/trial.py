"""The trial that this process runs, as the Trainer sees it.

A sweep sets the current trial before it calls the user's training function. The Trainer then reports after
each validation (else after each training epoch) and obeys: when the sweep ends the trial, all ranks leave
``fit`` by `TrialStopped` at the same step; when it wants a checkpoint, all ranks make one together. Outside
of a sweep there is no current trial, and this module is not even imported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.recovery import RecoveryPolicy
from cluster.spec import GroupSpec
from modules.module import LightningModule
from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.sweep.dialogue import GO_ON, SAVE, STOP, Report, Saved
from orchestrator.sweep.retuning import GroupOptions, retune
from orchestrator.sweep.stopped import TrialStopped

CHECKPOINT_NAME = "checkpoint.ckpt"

_current: Trial | None = None


class MetricNotLogged(MisconfigurationError):
    """The metric that a sweep compares is not among those that a trial has logged: no trial can go well."""


def current() -> Trial | None:
    """Return the trial that this process runs, or None."""
    return _current


def set_current(trial: Trial | None) -> None:
    """Say which trial this process runs from now on."""
    global _current
    _current = trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The checkpoint that a trial goes on from.

    Attributes:
        path: The file.
        step: The optimizer steps in it, which have been reported.
        other_config: It was made with another configuration: the trial takes another's place.
    """

    path: str
    step: int
    other_config: bool


@dataclass(slots=True, kw_only=True)
class Trial:
    """One trial, in the process that Ray Tune started for it.

    Attributes:
        name: As the sweep's directory has it, such as ``trial_00003``.
        number: Of this trial in the sweep, from 0.
        config: Its configuration.
        metric: What the sweep compares.
        mode: ``"min"`` or ``"max"``.
        directory: The trial's directory; logs go there unless the user says otherwise.
        num_workers: Workers that the trial has reserved besides this process; 0 when it trains in this
            process.
        resources_per_worker: What each of them has reserved.
        placement_group: Where they are reserved, or None.
        talk: Says a `Report` or `Saved` to the sweep and returns its decision.
        origin: What the trial's next fit goes on from; None from the start.
        taken: What the fit that begins goes on from.
        moment: Of the last report: after a loss, workers may come to it again.
        answered: What the sweep has said last.
    """

    name: str
    number: int
    config: Mapping[str, Any]
    metric: str
    mode: str
    directory: str
    num_workers: int
    resources_per_worker: dict[str, float]
    placement_group: Any
    talk: Callable[[Report | Saved], str]
    origin: Origin | None = None
    taken: Origin | None = None
    moment: tuple[int, ...] = ()
    answered: str = GO_ON

    def reporter(self) -> TrialReporter:
        """Return the callback that reports."""
        taken, self.taken = self.taken, None
        return TrialReporter(self.metric, self.mode, taken)

    def take_start(self, given: str | None) -> str | None:
        """Return the checkpoint that a fit starts from: the trial's own, once, else the one given."""
        self.taken, self.origin = self.origin, None
        self.moment = ()
        return given if self.taken is None else self.taken.path

    def group_spec(self, num_workers: int, **options: Any) -> GroupSpec:
        """Return the spec of a group in what the trial has reserved.

        Raises:
            MisconfigurationError: The trial has not reserved as many workers, or spares are asked for.
        """
        if num_workers != self.num_workers:
            raise MisconfigurationError(
                f"The Trainer asks for {num_workers} workers, and its trial has reserved {self.num_workers}. "
                f"Use Sweep(resources_per_trial=ScalingConfig(num_workers={num_workers}))."
            )
        if options.get("spares"):
            raise MisconfigurationError(
                f"Trainer(spares={options['spares']}) in a trial of a sweep: a trial has no room but what it "
                "has reserved, which its workers take. Leave spares out."
            )
        return GroupSpec.create(
            num_workers,
            resources_per_worker=self.resources_per_worker,
            placement_group=self.placement_group,
            **options,
        )

    def answer(self, question: object) -> str:
        """Pass a `Report` or `Saved` on to the sweep; return its decision.

        A report that is made again, as the step before it was retried or a checkpoint gone back to, gets the
        decision that there was: the sweep does not notice the loss.
        """
        assert isinstance(question, Report | Saved)
        if isinstance(question, Report) and question.moment <= self.moment:
            return self.answered if question.moment == self.moment else GO_ON
        if isinstance(question, Report):
            self.moment = question.moment
        self.answered = self.talk(question)
        return self.answered

    def let_grow(self, policy: RecoveryPolicy, spec: GroupSpec, logical_ranks: int) -> None:
        """Let an elastic group take what the sweep's other trials have freed, and give it back.

        Args:
            policy: Of the group's run; `max_workers` is kept where it is given.
            spec: What the group was started with, in the trial's own room.
            logical_ranks: V: no more workers than that have something to do.
        """
        from orchestrator.sweep.spare_room import SpareRoom

        most = policy.max_workers or logical_ranks
        policy.max_workers = most
        if most > spec.num_workers:
            policy.room = SpareRoom(os.path.dirname(self.directory), spec, most)


class TrialReporter(Callback):
    """Reports to the sweep after each validation, or after each training epoch when there is no validation.

    Rank 0 reports and waits for the decision; the other ranks learn it from rank 0, so all stop at the same
    step. A value that is not finite ends the trial at once; the sweep is told the worst value that there is.

    Args:
        metric: What the sweep compares; it must be among the metrics that were logged.
        mode: ``"min"`` or ``"max"``.
        origin: What the trial goes on from; None from the start.
    """

    watches_metrics = True

    def __init__(self, metric: str, mode: str, origin: Origin | None) -> None:
        self.metric = metric
        self.mode = mode
        self._reported = None if origin is None else origin.step
        self._retunes = origin is not None and origin.other_config
        self._options: list[GroupOptions] = []

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Before anything is restored: note what the configuration asks of the optimizers."""
        if self._retunes:
            self._options = [GroupOptions.of(optimizer) for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """After another configuration's checkpoint was restored: take the options of this one."""
        if self._retunes:
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            retune(trainer.optimizers, schedulers, self._options)
            self._retunes, self._options = False, []

    def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Report after a validation in fit."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._report(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Report after an epoch of a fit that does not validate."""
        if not trainer.num_val_batches:
            self._report(trainer)

    def _report(self, trainer: Any) -> None:
        reported, self._reported = self._reported, None
        if trainer.global_step == reported:  # the validation within which the checkpoint was made
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        check_metric(self.metric, metrics)
        report = diverged_or_not(metrics, self.metric, self.mode)
        place, decision = trainer.engine.place, ""
        if trainer.is_global_zero:
            counters = {"epoch": trainer.current_epoch, "global_step": trainer.global_step}
            moment = trainer.current_epoch, trainer.global_step, trainer.batches_seen
            decision = place.ask(Report(metrics={**counters, **report}, moment=moment))
        while (decision := trainer.strategy.broadcast(decision)) == SAVE:
            content = trainer.dump_checkpoint()
            if trainer.is_global_zero:
                decision = place.ask(Saved(content=content))
        if decision == STOP:
            raise TrialStopped(f"The sweep ended this trial at step {trainer.global_step}.")


def diverged_or_not(metrics: Mapping[str, float], name: str, mode: str) -> dict[str, Any]:
    """Return what is reported: `metrics`, or with the worst value there is where that of `name` is not
    finite.

    Schedulers and searchers can rank the worst value, and NaN they cannot; and a trial whose accuracy became
    infinite must not win.

    >>> diverged_or_not({"loss": float("nan")}, "loss", "min")
    {'loss': inf, 'diverged': True, 'done': True}
    """
    if math.isfinite(metrics[name]):
        return dict(metrics)
    worst = math.inf if mode == "min" else -math.inf
    return {**metrics, name: worst, "diverged": True, "done": True}


def check_metric(name: str, metrics: Mapping[str, float]) -> None:
    """Refuse to go on where the sweep's metric was not logged.

    Raises:
        MetricNotLogged: It is not among `metrics`; the message names those that are.
    """
    if name not in metrics:
        raise MetricNotLogged(
            f"Sweep(metric={name!r}): the trial has not logged it.{suggest(name, metrics)} It has logged "
            f"{sorted(metrics)}. "
            "Call self.log with that name in validation, or name another metric."
        )
