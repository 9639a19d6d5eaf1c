"""Stop training after a given time, and know how long training, validation and testing have taken.

Training time goes on counting over a checkpoint: what was used before is part of it. On a group rank 0's
clock decides for all, at few steps that all ranks know: the nearer the end, the more often it is asked. The
trainer's `min_epochs` and `min_steps` are respected. A duration that is no length of time raises
`MisconfigurationError`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from orchestrator.callbacks.callback import Callback
from orchestrator.checkpoint.schedule import steps_to_next_look
from orchestrator.duration import parse_duration
from orchestrator.errors import MisconfigurationError, suggest

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer

STAGES = ("train", "sanity_check", "validate", "test", "predict")


class Timer(Callback):
    """Measures time by stage, and stops training when `duration` is used up.

    >>> Timer("00:12:00:00").time_remaining()
    43200.0

    Args:
        duration: The most time that training, with its validations, may take: ``"DD:HH:MM:SS"``, a timedelta,
            or a dictionary of its arguments. None only measures.
        interval: Stop after a ``"step"``, or only at the end of an ``"epoch"``.
        verbose: Print a line when time is up.

    Raises:
        MisconfigurationError: An argument is none of these.
    """

    meets_ranks = True

    def __init__(
        self,
        duration: str | timedelta | dict[str, int] | None = None,
        interval: str = "step",
        verbose: bool = True,
    ) -> None:
        if interval not in ("step", "epoch"):
            raise MisconfigurationError(
                f"Timer(interval={interval!r}) is unknown.{suggest(str(interval), ['step', 'epoch'])} "
                "Use 'step' or 'epoch'."
            )
        length = parse_duration("Timer(duration=", duration)
        self.duration_s = None if length is None else length.total_seconds()
        self.interval = interval
        self.verbose = verbose
        self._began: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._before_s = 0.0  # of training, in the run that a checkpoint is from
        self._next_look = self._first_step = 0

    def start_time(self, stage: str = "train") -> float | None:
        """Return when `stage` (one of `STAGES`) began, by rank 0's monotonic clock in seconds, or None."""
        return self._began.get(_checked(stage))

    def end_time(self, stage: str = "train") -> float | None:
        """Return when `stage` ended, by the same clock; None while it runs and before."""
        return self._ended.get(_checked(stage))

    def time_elapsed(self, stage: str = "train") -> float:
        """Return the seconds that `stage` has taken so far, or took when it ran last."""
        began, ended = self.start_time(stage), self.end_time(stage)
        before_s = self._before_s if stage == "train" else 0.0
        if began is None:
            return before_s
        return (time.monotonic() if ended is None else ended) - began + before_s

    def time_remaining(self, stage: str = "train") -> float | None:
        """Return the seconds that are left of the duration; None without one."""
        return None if self.duration_s is None else self.duration_s - self.time_elapsed(stage)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds that each stage has taken."""
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in STAGES}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count the training time of the run that the checkpoint is from."""
        self._before_s = float(state_dict.get("time_elapsed", {}).get("train", 0.0))

    def unused_hooks(self) -> frozenset[str]:
        """Look at the clock after batches only where steps are to be stopped at."""
        if self.duration_s is None or self.interval == "epoch":
            return frozenset({"on_train_batch_end"})
        return frozenset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; where time was used up before, do not begin."""
        self._start("train")
        self._first_step = trainer.global_step
        self._next_look = trainer.global_step + 1
        if self.duration_s is not None and _agreed(trainer, self._is_up()):
            self._stop(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop when time is up, at a step at which rank 0's clock is asked."""
        step = trainer.state.global_step
        if step < self._next_look:
            return
        is_up, wait = self._is_up(), 1
        if trainer.world_size > 1:
            step_s = (time.monotonic() - self._began["train"]) / max(1, step - self._first_step)
            remaining_s = self.time_remaining()
            assert remaining_s is not None
            is_up, wait = _agreed(trainer, (is_up, steps_to_next_look(remaining_s, step_s)))
        self._next_look = step + wait
        if is_up:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop when time is up."""
        if self.duration_s is not None and self.interval == "epoch" and _agreed(trainer, self._is_up()):
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._end("train")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start("sanity_check" if trainer.sanity_checking else "validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._end("sanity_check" if trainer.sanity_checking else "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._end("test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start("predict")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._end("predict")

    def _start(self, stage: str) -> None:
        self._began[stage] = time.monotonic()
        self._ended.pop(stage, None)

    def _end(self, stage: str) -> None:
        self._ended[stage] = time.monotonic()

    def _is_up(self) -> bool:
        remaining_s = self.time_remaining()
        return remaining_s is not None and remaining_s <= 0

    def _stop(self, trainer: Trainer) -> None:
        """All ranks come here at the same batch."""
        if self.verbose and trainer.is_global_zero and not trainer.should_stop:
            used = timedelta(seconds=int(self.time_elapsed()))
            print(f"Training has taken {used}, its time is up. Stopping.", flush=True)
        assert trainer.engine is not None
        trainer.engine.stop_together()


def has_timer(callbacks: Iterable[Callback]) -> bool:
    """Whether one of `callbacks` limits training by time, so that no number of epochs is needed."""
    return any(isinstance(item, Timer) and item.duration_s is not None for item in callbacks)


def _agreed(trainer: Trainer, value: Any) -> Any:
    """Return rank 0's value on every rank."""
    return value if trainer.strategy is None else trainer.strategy.broadcast(value)


def _checked(stage: str) -> str:
    if stage not in STAGES:
        raise ValueError(
            f"Timer measures no stage {stage!r}.{suggest(str(stage), STAGES)} Use one of {STAGES}."
        )
    return stage
