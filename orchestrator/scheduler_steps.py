"""When the learning rate schedulers of automatic optimization step within a fit.

Those that count optimizer steps step behind one, those that count epochs behind an epoch's last batch and
before its validation, and those that watch a metric once it is there. In manual optimization the module steps
its own, and none is stepped here. A metric to watch that was not logged is a `MisconfigurationError`, or a
warning where the scheduler's configuration says ``strict: False``.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from orchestrator.errors import MisconfigurationError
from orchestrator.optimizers import SchedulerConfig

if TYPE_CHECKING:
    from orchestrator.engine import Engine


class SchedulerSteps:
    """Steps the schedulers of one fit.

    Args:
        engine: Whose schedulers, counters and metrics.

    Attributes:
        by_step: Those that count optimizer steps; empty in most fits, and then the loop calls nothing.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._state = engine.state
        self.take()

    def take(self) -> None:
        """Look up which schedulers step when: a callback may have replaced one."""
        self._all = self._engine.schedulers if self._engine.manual is None else []
        self.by_step = [config for config in self._all if config.interval == "step"]

    def step_by_steps(self) -> None:
        """Step the schedulers that count optimizer steps; one whose metric comes from validation waits for
        that.
        """
        for config in self.by_step:
            if self._state.global_step % config.frequency:
                continue
            if not config.reduce_on_plateau:
                self._engine.step_scheduler(config, None)
            elif self._watches_steps(config) or not self._validates():
                self._step_plateau(config, alike=False)

    def step_by_epochs(self) -> None:
        """Step the schedulers that count epochs; before validation, like Lightning."""
        for config in self._due_by_epoch(plateau=False):
            self._engine.step_scheduler(config, None)

    def step_on_validation(self) -> None:
        """Step those that count steps and watch a metric, which a validation has brought."""
        for config in self.by_step:
            if config.reduce_on_plateau and not self._watches_steps(config):
                self._step_plateau(config)

    def step_on_epoch_end(self) -> None:
        """Step those that count epochs and watch a metric, when the epoch's metrics are there."""
        for config in self._due_by_epoch(plateau=True):
            self._step_plateau(config)

    def _due_by_epoch(self, *, plateau: bool) -> list[SchedulerConfig]:
        return [
            config
            for config in self._all
            if config.interval == "epoch"
            and config.reduce_on_plateau == plateau
            and (self._state.epoch + 1) % config.frequency == 0
        ]

    def _validates(self) -> bool:
        return any(limit != 0 for limit in self._engine.data.val_limits)

    def _watches_steps(self, config: SchedulerConfig) -> bool:
        """Whether a scheduler watches a metric that training steps log."""
        slots = self._engine.train_slots.stepped()
        return any(config.monitor in (slot.name, slot.step_name) for slot in slots)

    def _step_plateau(self, config: SchedulerConfig, *, alike: bool = True) -> None:
        """Step a scheduler that watches a metric; where ranks do not know it `alike`, all take rank 0's."""
        metrics = self._engine.trainer.callback_metrics
        value = metrics.get(config.monitor or "")
        if not alike and self._engine.place.world_size > 1:
            value = self._engine.strategy.gather(value)[0]
        if value is None:
            text = (
                f"The scheduler watches {config.monitor!r}, which was not logged. There are "
                f"{sorted(metrics)}. "
                "Log it, or set 'strict': False to skip the scheduler until it appears."
            )
            if config.strict:
                raise MisconfigurationError(text)
            warnings.warn(text, stacklevel=2)
            return
        self._engine.step_scheduler(config, value)
