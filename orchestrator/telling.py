"""What rank 0 tells the driver for the run's record: what has happened, and where the time has gone.

It is told where an epoch, a validation or a checkpoint is done, and where training begins and ends; never in
a step. Other ranks say nothing. Telling waits for nobody, and cannot end a run.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from orchestrator.run_event import RunEvent
from orchestrator.run_facts import numbers
from orchestrator.strategies.ddp import DataParallel

if TYPE_CHECKING:
    from orchestrator.engine import Engine


class Telling:
    """The telling of one engine.

    Args:
        engine: Whose run.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._windows_before = 0

    def begin_training(self) -> None:
        """Count the time from here on as training, and say so."""
        engine = self._engine
        self.count_steps_from_here()
        if engine.place.world_size > 1:
            gather = engine.strategy.gather
            engine.strategy.__dict__["gather"] = engine.account.counting("communication", gather)
        feed = engine.feed
        found = "" if feed is None else feed.loader.fingerprint
        batches = None if feed is None else feed.num_batches
        self.note("train", data={"fingerprint": found, "batches": batches})
        engine.account.switch("train")

    def count_steps_from_here(self) -> None:
        """Take the steps so far for another process's."""
        self._windows_before = self._engine.state.windows

    def note(self, kind: str, *, metrics: bool = False, **details: Any) -> None:
        """Tell of something, with where the run is; from rank 0.

        Args:
            kind: What has happened.
            metrics: Add those that were decided, where a logger records any.
            **details: What else there is to say.
        """
        engine = self._engine
        if not engine.is_global_zero:
            return
        if metrics and engine.trainer.loggers:
            details["metrics"] = numbers(engine.board.callback)
        waited_s = engine.strategy.waited_s() if isinstance(engine.strategy, DataParallel) else 0.0
        steps = engine.state.windows - self._windows_before
        engine.place.emit(
            RunEvent(
                kind=kind,
                at_s=time.time(),
                epoch=engine.state.epoch,
                step=engine.state.global_step,
                samples=engine.trainer.samples_seen,
                account=(os.getpid(), engine.account.number),
                seconds=engine.account.seconds(waited_s, steps),
                details=details,
            )
        )
