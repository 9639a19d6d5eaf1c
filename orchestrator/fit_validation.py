"""Validation within a fit: what is done before and after the evaluation loop, beside running it.

When it is due is a matter of numbers, which `orchestrator.validation_schedule` decides. A checkpoint written
while it runs goes on before it, one written behind its metrics goes on behind it. All ranks run it at the
same batch. What the user's steps raise goes on to the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modules import rng
from orchestrator import validation_schedule as validation
from orchestrator.scheduler_steps import SchedulerSteps
from orchestrator.step_parts import Window

if TYPE_CHECKING:
    from orchestrator.engine import Engine


class FitValidation:
    """Runs the validations of one fit.

    Args:
        engine: Whose loaders and hooks.
        window: Says whether gradients are being accumulated.
        schedulers: Those that watch a metric step behind it.
    """

    def __init__(self, engine: Engine, window: Window, schedulers: SchedulerSteps) -> None:
        self._engine = engine
        self._window = window
        self._schedulers = schedulers

    def interval(self, num_batches: int | None) -> int:
        """Return after how many batches validation runs: -1 at the epoch's end, 0 never."""
        engine = self._engine
        return validation.batches_between(
            val_check_interval=engine.settings.val_check_interval,
            check_val_every_n_epoch=engine.settings.check_val_every_n_epoch,
            batches_in_epoch=num_batches,
            validates=any(limit != 0 for limit in engine.data.val_limits),
        )

    def run(self) -> None:
        """Run validation, unless this epoch is one without."""
        engine = self._engine
        if not validation.validates_in(engine.state.epoch, engine.settings.check_val_every_n_epoch):
            return
        if self._window.last:
            for hook in engine.hooks.of_module("on_validation_model_zero_grad"):
                hook()
        engine.rng_to_resume = rng.capture()
        engine.evaluate("validate", engine.data.val, engine.data.val_limits, before_end=self._after_metrics)
        engine.telling.note("validation", metrics=True)
        if engine.validation_clock is not None:
            engine.validation_clock.restart()
        engine.agree_on_stopping()
        if engine.untold:
            engine.tell_standing()

    def _after_metrics(self) -> None:
        """Take note that validation has run: a checkpoint written from here on goes on behind it."""
        self._engine.rng_to_resume = None
        self._schedulers.step_on_validation()
        self._engine.state.validated = True
