"""Change how many batches make one optimizer step, from given epochs on.

The number in force is that of the last epoch in the schedule which has begun; before the first, 1. It is set
before each epoch's first batch, the same on all ranks, and a checkpoint keeps it for an epoch that is
resumed. A schedule that cannot work raises `MisconfigurationError` before training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer


class GradientAccumulationScheduler(Callback):
    """Sets ``trainer.accumulate_grad_batches`` by epoch.

    >>> GradientAccumulationScheduler({4: 2, 8: 4}).get_accumulate_grad_batches(5)
    2

    Args:
        scheduling: Batches that make one step, by the epoch, from 0, with which that begins.

    Attributes:
        scheduling: The schedule, sorted by epoch and with an entry for epoch 0.

    Raises:
        MisconfigurationError: An epoch or a number of batches is not a whole number that can be.
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        if not isinstance(scheduling, dict) or not scheduling:
            raise MisconfigurationError(
                f"GradientAccumulationScheduler(scheduling={scheduling!r}) is no schedule. Write a "
                "dictionary "
                "of batches by epoch, like {0: 1, 4: 2}."
            )
        for epoch, batches in scheduling.items():
            if not _is_whole(epoch, 0) or not _is_whole(batches, 1):
                raise MisconfigurationError(
                    f"GradientAccumulationScheduler(scheduling={scheduling!r}) has {epoch!r}: {batches!r}. "
                    "Write epochs from 0, and at least 1 batch, as whole numbers."
                )
        self.scheduling = dict(sorted({0: 1, **scheduling}.items()))
        self._in_force: int | None = None

    def going_to_accumulate_grad_batches(self) -> bool:
        """Whether more than one batch makes a step in any epoch."""
        return any(batches > 1 for batches in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """Return how many batches make one step in `epoch`, counted from 0."""
        return next(batches for start, batches in reversed(self.scheduling.items()) if start <= epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the number in force: what an epoch that was begun goes on with."""
        return {} if self._in_force is None else {"accumulate_grad_batches": self._in_force}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._in_force = state_dict["accumulate_grad_batches"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer that accumulates a number of its own, and a module that steps by itself."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise MisconfigurationError(
                "GradientAccumulationScheduler with automatic_optimization = False: the module decides when "
                "to step. Leave the callback out."
            )
        given = trainer.accumulate_grad_batches
        if given not in (1, *self.scheduling.values()):
            raise MisconfigurationError(
                f"Trainer(accumulate_grad_batches={given}) and a GradientAccumulationScheduler: which is "
                "meant? Put the number into the schedule, and leave the argument out."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the number that a resumed epoch was begun with."""
        if self._in_force is not None:
            trainer.accumulate_grad_batches = self._in_force

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the number of this epoch."""
        self._in_force = self.get_accumulate_grad_batches(trainer.current_epoch)
        trainer.accumulate_grad_batches = self._in_force


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
