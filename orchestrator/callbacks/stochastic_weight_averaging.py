"""Average the weights of the last epochs, with a learning rate that is brought to a constant for them.

From a given epoch on, the weights with which each epoch begins are averaged, and a schedule of torch's takes
the place of the module's own; after the last epoch the module gets the average, and batch normalization the
statistics that belong to it. A fit that ends before its last epoch keeps its own weights. Method: Izmailov et
al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018. Arguments that cannot work raise
`MisconfigurationError`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim.swa_utils import SWALR

from orchestrator.batch_statistics import has_batch_norm, refresh_batch_norm
from orchestrator.callbacks.averaged_weights import AveragedWeights
from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError
from orchestrator.optimizers import SchedulerConfig
from orchestrator.strategies.sharding import refuse_sharded

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer


def running_mean(average: Tensor, weights: Tensor, count: int | Tensor) -> Tensor:
    """Return the mean of `count` + 1 weights from the mean of the first `count` and the new ones."""
    return average + (weights - average) / (count + 1)


class StochasticWeightAveraging(Callback):
    """Averages the weights from an epoch on.

    Args:
        swa_lrs: The learning rate that is reached; a list for the parameter groups.
        swa_epoch_start: The epoch, counted from 1, with which averaging starts; a float is a share of
            `max_epochs`.
        annealing_epochs: Epochs in which the learning rate is reached.
        annealing_strategy: On the way there, ``"cos"`` or ``"linear"``.
        avg_fn: Returns the new average from the old one, the new weights and how many were averaged. By
            default the mean.
        device: Where the average lives; with the module when None.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: Callable[[Tensor, Tensor, int], Tensor] | None = None,
        device: torch.device | str | None = torch.device("cpu"),  # noqa: B008 - it never changes
    ) -> None:
        _check(swa_lrs, swa_epoch_start, annealing_epochs, annealing_strategy, avg_fn)
        self._swa_lrs = swa_lrs
        self._epoch_start = swa_epoch_start
        self._annealing_epochs = annealing_epochs
        self._annealing_strategy = annealing_strategy
        self._average_one = avg_fn or running_mean
        self._device = device
        self._first_epoch = self._max_epochs = 0
        self._latest_update_epoch = -1
        self._average: AveragedWeights | None = None
        self._scheduler: SWALR | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def swa_start(self) -> int:
        """The first epoch, from 0, whose initial weights are averaged."""
        return max(self._first_epoch - 1, 0)

    @property
    def swa_end(self) -> int:
        """The last epoch, from 0."""
        return self._max_epochs - 1

    def state_dict(self) -> dict[str, Any]:
        """Return the average and where the schedule is."""
        average = self._average
        begun = average is not None and self._scheduler is not None
        return {
            "n_averaged": 0 if average is None else average.count,
            "latest_update_epoch": self._latest_update_epoch,
            "scheduler_state": self._scheduler.state_dict() if self._scheduler is not None else None,
            "average_model_state": dict(average.tensors) if average is not None and begun else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned, when fit starts."""
        self._latest_update_epoch = state_dict["latest_update_epoch"]
        self._resumed = state_dict

    def __getstate__(self) -> dict[str, Any]:
        """Leave what belongs to a run with the process that trains."""
        return {**self.__dict__, "_average": None, "_scheduler": None}

    # ---------------------------------------------------------------- hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out the first epoch, and refuse what cannot be averaged."""
        if stage != "fit":
            return
        refuse_sharded(
            trainer.strategy,
            type(self).__name__,
            "a second set of weights is kept beside the first",
            "Use strategy='ddp', or leave the callback out.",
        )
        epochs, start = trainer.max_epochs, self._epoch_start
        if epochs is None or epochs < 1:
            raise MisconfigurationError(
                f"StochasticWeightAveraging needs to know the last epoch, and Trainer(max_epochs={epochs}) "
                "does not "
                "say. Set max_epochs."
            )
        if not pl_module.automatic_optimization:
            raise MisconfigurationError(
                "StochasticWeightAveraging with automatic_optimization = False: the module steps its "
                "schedulers "
                "itself. Use WeightAveraging."
            )
        self._max_epochs = epochs
        self._first_epoch = int(epochs * start) if isinstance(start, float) else start
        self._average = self._scheduler = self._resumed = None
        self._latest_update_epoch = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where a checkpoint was written within the averaging, before its schedule is put in."""
        if len(trainer.optimizers) != 1 or len(trainer.lr_scheduler_configs) > 1:
            raise MisconfigurationError(
                "StochasticWeightAveraging needs one optimizer and at most one scheduler: "
                "configure_optimizers "
                f"returned {len(trainer.optimizers)} and {len(trainer.lr_scheduler_configs)}. Use "
                "WeightAveraging."
            )
        self._average = AveragedWeights(
            pl_module, use_buffers=False, device=self._device, avg_fn=self._average_one
        )
        if self._resumed is not None:
            self._average.load(self._resumed["average_model_state"] or {}, int(self._resumed["n_averaged"]))
            if self._resumed["scheduler_state"] is not None:
                self._take_over(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the schedule at the first epoch, and average."""
        epoch = trainer.current_epoch
        if not self.swa_start <= epoch <= self.swa_end:
            return
        if self._scheduler is None:
            self._take_over(trainer)
        if epoch > self._latest_update_epoch:
            assert self._average is not None
            self._average.follow(pl_module)
            self._average.update()
            self._latest_update_epoch = epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the average, where training has come to its last epoch's end."""
        if self._average is None or not self._average.count or trainer.current_epoch <= self.swa_end:
            return
        self._average.copy_to_module()
        if has_batch_norm(pl_module) and trainer.engine is not None:
            refresh_batch_norm(trainer.engine)

    def _take_over(self, trainer: Trainer) -> None:
        """Put torch's schedule in the place of the module's own."""
        assert trainer.engine is not None
        optimizer, schedulers = trainer.optimizers[0], trainer.engine.schedulers
        if schedulers and (schedulers[0].interval != "epoch" or schedulers[0].frequency != 1):
            warnings.warn(
                f"StochasticWeightAveraging replaces the {type(schedulers[0].scheduler).__name__}, which "
                "steps "
                f"every {schedulers[0].frequency} {schedulers[0].interval}, by a schedule of epochs.",
                stacklevel=2,
            )
        self._scheduler = SWALR(
            optimizer,
            swa_lr=self._swa_lrs,  # type: ignore[arg-type] # torch takes a list too
            anneal_epochs=self._annealing_epochs,
            anneal_strategy=self._annealing_strategy,
        )
        schedulers[:] = [SchedulerConfig(scheduler=self._scheduler)]


def _check(lrs: Any, start: Any, epochs: Any, strategy: Any, avg_fn: Any) -> None:
    rates = lrs if isinstance(lrs, list) else [lrs]
    if not rates or not all(isinstance(rate, int | float) and 0 < rate < math.inf for rate in rates):
        raise MisconfigurationError(
            f"StochasticWeightAveraging(swa_lrs={lrs!r}) is no learning rate. Write a number above 0, or a "
            "list of "
            "them for the parameter groups."
        )
    whole = isinstance(start, int) and not isinstance(start, bool) and start >= 1
    if not whole and not (isinstance(start, float) and 0 <= start <= 1):
        raise MisconfigurationError(
            f"StochasticWeightAveraging(swa_epoch_start={start!r}) is no epoch. Write a whole number of at "
            "least 1, "
            "or a share of max_epochs from 0.0 to 1.0."
        )
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 0:
        raise MisconfigurationError(
            f"StochasticWeightAveraging(annealing_epochs={epochs!r}) is not a count. Write 0 or more."
        )
    if strategy not in ("cos", "linear"):
        raise MisconfigurationError(
            f"StochasticWeightAveraging(annealing_strategy={strategy!r}) is unknown. Write 'cos' or 'linear'."
        )
    if avg_fn is not None and not callable(avg_fn):
        raise MisconfigurationError(
            f"StochasticWeightAveraging(avg_fn={avg_fn!r}) cannot be called. Give a function, or None for "
            "the mean."
        )
