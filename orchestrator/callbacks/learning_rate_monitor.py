"""Log the learning rates, and on request momentum and weight decay, of all optimizers.

What a scheduler changes is logged as often as it changes it; an optimizer without a scheduler at each log
point. A batch at which nothing is due costs one comparison. All values are the optimizers' own, so ranks
agree without asking; reading a learning rate that is a tensor on a device waits for it, at log points only.
A Trainer without a logger raises `MisconfigurationError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer


class LearningRateMonitor(Callback):
    """Logs what optimizers use, as ``lr-Adam``, ``lr-Adam/pg1`` or the name that a scheduler's ``name``
    gives.

    A second optimizer of a class is ``lr-Adam-1``; parameter groups with a ``name`` are called by it.

    Args:
        logging_interval: ``"step"`` or ``"epoch"`` for everything; None takes each scheduler's own interval.
        log_momentum: Also log ``-momentum``, or the first of Adam's betas.
        log_weight_decay: Also log ``-weight_decay``.

    Attributes:
        lrs: All learning rates that were logged, by name.
        last_momentum_values: The last momenta, by name.
        last_weight_decay_values: The last weight decays, by name.

    Raises:
        MisconfigurationError: There is no such interval.
    """

    def __init__(
        self, logging_interval: str | None = None, log_momentum: bool = False, log_weight_decay: bool = False
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise MisconfigurationError(
                f"LearningRateMonitor(logging_interval={logging_interval!r}) is unknown. Use 'step', "
                "'epoch' or "
                "None."
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float] = {}
        self.last_weight_decay_values: dict[str, float] = {}
        self._every = 1
        self._logged_at = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer without a logger."""
        if stage == "fit" and not trainer.loggers:
            raise MisconfigurationError(
                "LearningRateMonitor has nothing to log to: Trainer(logger=False). Give a logger, or leave "
                "the "
                "callback out."
            )

    def unused_hooks(self) -> frozenset[str]:
        """Leave out what the interval has no use for."""
        unused = {"epoch": "on_train_batch_start", "step": "on_train_epoch_start"}
        return frozenset({unused[self.logging_interval]} if self.logging_interval else ())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, and refuse names that cannot be told apart."""
        self.lrs = {}
        self._every = trainer.log_every_n_steps
        self._logged_at = -1
        list(self._sources(trainer, None))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Log before a step that is a log point."""
        step = trainer.state.windows
        if (step + 1) % self._every == 0 and step != self._logged_at:
            self._logged_at = step
            self._log(trainer, "step")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log at the beginning of an epoch."""
        self._log(trainer, "epoch")

    def _log(self, trainer: Trainer, moment: str) -> None:
        metrics: dict[str, float] = {}
        for name, group in self._sources(trainer, None if self.logging_interval else moment):
            lr = float(group["lr"])
            metrics[name] = lr
            self.lrs.setdefault(name, []).append(lr)
            if self.log_momentum:
                momentum = group["momentum"] if "momentum" in group else group.get("betas", (0.0,))[0]
                metrics[f"{name}-momentum"] = self.last_momentum_values[name] = float(momentum)
            if self.log_weight_decay:
                decay = float(group.get("weight_decay", 0.0))
                metrics[f"{name}-weight_decay"] = self.last_weight_decay_values[name] = decay
        if not metrics:
            return
        trainer.board.callback.update({name: torch.tensor(value) for name, value in metrics.items()})
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, trainer.state.windows)

    def _sources(self, trainer: Trainer, moment: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name and the parameter group of all that is logged at `moment`; of all where that is
        None.
        """
        used: dict[str, int] = {}
        scheduled: set[int] = set()
        for config in trainer.lr_scheduler_configs:
            optimizer = getattr(config.scheduler, "optimizer", None)
            if not isinstance(optimizer, Optimizer) or id(optimizer) in scheduled:
                continue
            scheduled.add(id(optimizer))
            name = _unused(config.name or f"lr-{type(optimizer).__name__}", used)
            if moment is None or config.interval == moment:
                yield from _groups(name, optimizer)
        for optimizer in trainer.optimizers:
            if id(optimizer) in scheduled:
                continue
            name = _unused(f"lr-{type(optimizer).__name__}", used)
            if moment is None or moment == "step" or self._every > trainer.num_training_batches:
                yield from _groups(name, optimizer)


def _unused(name: str, used: dict[str, int]) -> str:
    """Return `name`, with a number where it was used before."""
    count = used.get(name, 0)
    used[name] = count + 1
    return f"{name}-{count}" if count else name


def _groups(name: str, optimizer: Optimizer) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each parameter group with its name: the optimizer's alone where there is one without a name."""
    groups = optimizer.param_groups
    names = [str(group.get("name", f"pg{index}")) for index, group in enumerate(groups, start=1)]
    if len(set(names)) < len(names):
        raise MisconfigurationError(
            f"The parameter groups of {type(optimizer).__name__} have the names {names}, so their learning "
            "rates "
            "cannot be told apart. Give each its own name, or none."
        )
    for group, own in zip(groups, names, strict=True):
        yield (name if len(groups) == 1 and "name" not in group else f"{name}/{own}"), group
