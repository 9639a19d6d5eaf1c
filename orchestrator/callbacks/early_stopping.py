"""Stop training when a metric has stopped improving, has become useless, or is good enough.

It runs on every rank at validation or epoch ends, where metrics are equal on all ranks, so all decide the
same without asking each other. It sets `trainer.should_stop`; training goes on until the trainer's
`min_epochs` and `min_steps` are reached. A metric that is not there raises `RuntimeError` naming those that
are, unless `strict=False`. Arguments that cannot work raise `MisconfigurationError`.
"""

from __future__ import annotations

import enum
import math
import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from orchestrator.callbacks.callback import Callback
from orchestrator.checkpoint import schedule
from orchestrator.errors import MisconfigurationError, suggest

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer


class EarlyStoppingReason(enum.IntEnum):
    """Why training was stopped."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Callback):
    """Stop training after `patience` checks in which `monitor` did not improve by more than `min_delta`.

    Args:
        monitor: The metric to watch.
        min_delta: A change of this or less is no improvement.
        patience: Checks without improvement after which training stops. A check is the end of an epoch, or
            of a validation where those are more or less frequent.
        verbose: Print a line at each improvement and at the stop.
        mode: "min" if lower is better, "max" if higher.
        strict: Raise when the metric is not there; False skips the check.
        check_finite: Stop when the metric is NaN or infinite.
        stopping_threshold: Stop as soon as the metric is better than this.
        divergence_threshold: Stop as soon as the metric is worse than this.
        check_on_train_epoch_end: True checks when a training epoch ends, False when validation ends. By
            default when the epoch ends if the trainer validates once an epoch, and when validation ends
            otherwise.
        log_rank_zero_only: Print on rank 0 only, instead of on each rank.

    Attributes:
        best_score: The best value so far, a scalar tensor; the worst infinity before the first.
        wait_count: Checks since the last improvement.
        stopped_epoch: The epoch, from 0, in which training was stopped; 0 if it was not.
        stopping_reason: Why training was stopped.
        stopping_reason_message: The same in words, or None.

    Raises:
        MisconfigurationError: for an argument that cannot work.
    """

    watches_metrics = True

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Literal["min", "max"] = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        _check_watching(monitor, min_delta, patience, mode)
        _check_threshold("stopping_threshold", stopping_threshold)
        _check_threshold("divergence_threshold", divergence_threshold)
        self.monitor = monitor
        self.min_delta = min_delta
        self.patience = patience
        self.verbose = verbose
        self.mode = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self._check_on_train_epoch_end = check_on_train_epoch_end
        self.wait_count = 0
        self.stopped_epoch = 0
        self.best_score: Tensor = torch.tensor(math.inf if mode == "min" else -math.inf)
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None

    @property
    def state_key(self) -> str:
        """The key in a checkpoint; callbacks that watch different metrics have different ones."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, the count of checks since, and whether and why training was stopped."""
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "patience": self.patience,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.wait_count = state_dict["wait_count"]
        self.stopped_epoch = state_dict["stopped_epoch"]
        self.best_score = state_dict["best_score"]
        self.patience = state_dict["patience"]
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))
        self.stopping_reason_message = state_dict.get("stopping_reason_message")

    # ---------------------------------------------------------------- hooks

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metric, if this is the time for it."""
        if not self._checks_at_train_epoch_end(trainer):
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metric, if this is the time for it."""
        if self._checks_at_train_epoch_end(trainer):
            self._check(trainer)

    # ---------------------------------------------------------------- the check

    def _checks_at_train_epoch_end(self, trainer: Trainer) -> bool:
        return schedule.saves_at_train_epoch_end(
            self._check_on_train_epoch_end,
            val_check_interval=trainer.val_check_interval,
            check_val_every_n_epoch=trainer.check_val_every_n_epoch,
            validates=True,
        )

    def _check(self, trainer: Trainer) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            self._report_missing(sorted(metrics), validated=bool(trainer.num_val_batches))
            return
        reason, message = self._judge(torch.as_tensor(metrics[self.monitor]).detach().squeeze())
        if reason is not EarlyStoppingReason.NOT_STOPPED:
            self.stopping_reason = reason
            self.stopping_reason_message = message
            self.stopped_epoch = trainer.current_epoch
            trainer.should_stop = True
        if message and self.verbose and (trainer.is_global_zero or not self.log_rank_zero_only):
            rank = f"[rank {trainer.global_rank}] " if trainer.world_size > 1 else ""
            print(f"{rank}{message}", flush=True)

    def _judge(self, score: Tensor) -> tuple[EarlyStoppingReason, str | None]:
        """Take note of `score`, and return whether to stop and why, or a word about the improvement."""
        value, best = score.item(), self.best_score.item()
        if self.check_finite and not math.isfinite(value):
            return (
                EarlyStoppingReason.NON_FINITE_METRIC,
                f"{self.monitor} is {value}, not a finite number; the best was {best:.5g}. Stopping.",
            )
        if self.stopping_threshold is not None and self._is_better(value, self.stopping_threshold):
            return (
                EarlyStoppingReason.STOPPING_THRESHOLD,
                f"{self.monitor} reached {value:.5g}, better than {self.stopping_threshold}. Stopping.",
            )
        if self.divergence_threshold is not None and self._is_better(self.divergence_threshold, value):
            return (
                EarlyStoppingReason.DIVERGENCE_THRESHOLD,
                f"{self.monitor} reached {value:.5g}, worse than {self.divergence_threshold}. Stopping.",
            )
        required = best - self.min_delta if self.mode == "min" else best + self.min_delta
        if self._is_better(value, required):
            self.best_score = score.clone()
            self.wait_count = 0
            change = f" by {abs(best - value):.5g}" if math.isfinite(best) else ""
            return EarlyStoppingReason.NOT_STOPPED, f"{self.monitor} improved{change} to {value:.5g}."
        self.wait_count += 1
        if self.wait_count < self.patience:
            return EarlyStoppingReason.NOT_STOPPED, None
        return (
            EarlyStoppingReason.PATIENCE_EXHAUSTED,
            f"{self.monitor} did not improve in {self.wait_count} checks from {best:.5g}. Stopping.",
        )

    def _is_better(self, value: float, than: float) -> bool:
        return value < than if self.mode == "min" else value > than

    def _report_missing(self, logged: list[str], *, validated: bool) -> None:
        none = (
            ""
            if validated
            else " There was no validation: fit has no validation data, or no validation_step."
        )
        text = (
            f"EarlyStopping(monitor={self.monitor!r}) found no such metric: logged are {logged}.{none}"
            f"{suggest(self.monitor, logged)} Log it by self.log({self.monitor!r}, value), monitor one of "
            "these, or write strict=False to wait for it."
        )
        if self.strict:
            raise RuntimeError(text)
        if self.verbose:
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _check_watching(monitor: Any, min_delta: Any, patience: Any, mode: Any) -> None:
    if not isinstance(monitor, str) or not monitor:
        raise MisconfigurationError(
            f"EarlyStopping(monitor={monitor!r}) is not a metric's name. Write a str."
        )
    if mode not in ("min", "max"):
        raise MisconfigurationError(
            f"EarlyStopping(mode={mode!r}) is neither. Write 'min' if lower is better, 'max' if higher."
        )
    if not isinstance(patience, int) or isinstance(patience, bool) or patience < 0:
        raise MisconfigurationError(
            f"EarlyStopping(patience={patience!r}) is not a number of checks. Write 0 or more."
        )
    if not _is_number(min_delta) or not min_delta >= 0:
        raise MisconfigurationError(
            f"EarlyStopping(min_delta={min_delta!r}) is not a size of change. Write 0 or more."
        )


def _check_threshold(argument: str, value: Any) -> None:
    if value is not None and (not _is_number(value) or math.isnan(value)):
        raise MisconfigurationError(
            f"EarlyStopping({argument}={value!r}) is not a number. Write one, or None."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
