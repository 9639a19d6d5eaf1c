"""Every form of what ``configure_optimizers`` may return, as one list of optimizers and one of scheduler
configurations.

The user's objects are taken as they are and never changed. A form that cannot work is refused with what was
found.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from orchestrator.errors import MisconfigurationError, suggest


@dataclass(slots=True, kw_only=True)
class SchedulerConfig:
    """A learning-rate scheduler and when to step it.

    Attributes:
        scheduler: The scheduler.
        interval: ``"epoch"`` or ``"step"`` (an optimizer step).
        frequency: Step it every so many intervals.
        monitor: The metric that a plateau scheduler watches.
        strict: A missing metric is an error, else a warning.
        name: What a learning-rate monitor calls it.
        reduce_on_plateau: Hand it the metric.
    """

    scheduler: Any
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    name: str | None = None
    reduce_on_plateau: bool = False


def parse(returned: Any) -> tuple[list[Optimizer], list[SchedulerConfig]]:
    """Return the optimizers and schedulers in what ``configure_optimizers`` returned.

    Raises:
        MisconfigurationError: It is none of the forms: an optimizer; a list of them; ``([optimizers],
            [schedulers])``; a dictionary with ``optimizer`` and perhaps ``lr_scheduler`` and ``monitor``; a
            list of such dictionaries; None.
    """
    if returned is None:
        return [], []
    if isinstance(returned, Optimizer):
        return [returned], []
    if isinstance(returned, Mapping):
        return _from_dictionaries([returned])
    if isinstance(returned, Sequence) and not isinstance(returned, str):
        if (
            len(returned) == 2
            and isinstance(returned[0], Sequence)
            and isinstance(returned[1], Sequence | Mapping)
        ):
            optimizers, schedulers = returned
            if isinstance(schedulers, Mapping):
                schedulers = [schedulers]
            if all(isinstance(item, Optimizer) for item in optimizers):
                return _checked(list(optimizers), [_scheduler(item) for item in schedulers])
        if all(isinstance(item, Optimizer) for item in returned):
            return list(returned), []
        if all(isinstance(item, Mapping) for item in returned):
            return _from_dictionaries(returned)
        if len(returned) == 2 and isinstance(returned[0], Optimizer) and _is_scheduler(returned[1]):
            raise MisconfigurationError(
                "configure_optimizers returned (optimizer, scheduler). Return ([optimizer], [scheduler]), "
                "or {'optimizer': optimizer, 'lr_scheduler': scheduler}."
            )
    raise MisconfigurationError(
        f"configure_optimizers returned {_describe(returned)}. Return an optimizer, "
        "{'optimizer': ..., 'lr_scheduler': ...}, or ([optimizers], [schedulers])."
    )


def _from_dictionaries(entries: Sequence[Mapping[str, Any]]) -> tuple[list[Optimizer], list[SchedulerConfig]]:
    optimizers, schedulers = [], []
    for entry in entries:
        optimizer = entry.get("optimizer")
        if not isinstance(optimizer, Optimizer):
            raise MisconfigurationError(
                f"configure_optimizers returned a dictionary with keys {sorted(entry)} and "
                f"{_describe(optimizer)} as 'optimizer'. Put the optimizer there."
            )
        unknown = [key for key in entry if key not in ("optimizer", "lr_scheduler", "monitor")]
        if unknown:
            warnings.warn(
                "configure_optimizers returned unknown keys "
                f"{unknown}.{suggest(unknown[0], ['lr_scheduler', 'monitor'])} "
                "They are ignored.",
                stacklevel=2,
            )
        optimizers.append(optimizer)
        scheduler = entry.get("lr_scheduler")
        if scheduler is not None:
            schedulers.append(_scheduler(scheduler, entry.get("monitor")))
    return _checked(optimizers, schedulers)


def _checked(
    optimizers: list[Optimizer], schedulers: list[SchedulerConfig]
) -> tuple[list[Optimizer], list[SchedulerConfig]]:
    """Return both, unless a scheduler changes an optimizer that nobody steps."""
    for config in schedulers:
        owner = getattr(config.scheduler, "optimizer", None)
        if isinstance(owner, Optimizer) and all(owner is not item for item in optimizers):
            raise MisconfigurationError(
                f"configure_optimizers returned a {type(config.scheduler).__name__} of an optimizer that it "
                "did not return. Build the scheduler on the optimizer that is returned."
            )
    return optimizers, schedulers


def _scheduler(entry: Any, monitor: str | None = None) -> SchedulerConfig:
    if isinstance(entry, Mapping):
        known = [field.name for field in fields(SchedulerConfig)]
        unknown = [key for key in entry if key not in known]
        if unknown:
            warnings.warn(
                f"The lr_scheduler dictionary has unknown keys {unknown}.{suggest(unknown[0], known)} "
                "They are ignored.",
                stacklevel=2,
            )
        if entry.get("scheduler") is None:
            raise MisconfigurationError(
                f"The lr_scheduler dictionary has keys {sorted(entry)}, but no 'scheduler'. Put the "
                "scheduler there."
            )
        config = SchedulerConfig(**{key: value for key, value in entry.items() if key in known})
    else:
        config = SchedulerConfig(scheduler=entry)
    if config.monitor is None:
        config.monitor = monitor
    if not _is_scheduler(config.scheduler):
        raise MisconfigurationError(
            f"configure_optimizers returned {_describe(config.scheduler)} as a scheduler. It needs the "
            "methods step(), state_dict() and load_state_dict()."
        )
    if config.interval not in ("epoch", "step"):
        raise MisconfigurationError(
            f"lr_scheduler interval={config.interval!r} is "
            f"unknown.{suggest(config.interval, ['epoch', 'step'])} "
            "Use 'epoch' or 'step'."
        )
    if isinstance(config.frequency, bool) or not isinstance(config.frequency, int) or config.frequency < 1:
        raise MisconfigurationError(
            f"lr_scheduler frequency={config.frequency!r}. Use a whole number of at least 1."
        )
    if isinstance(config.scheduler, ReduceLROnPlateau):
        config.reduce_on_plateau = True
    if config.reduce_on_plateau and config.monitor is None:
        raise MisconfigurationError(
            f"{type(config.scheduler).__name__} needs a metric to watch. Return {{'optimizer': ..., "
            "'lr_scheduler': ..., 'monitor': 'val_loss'}."
        )
    return config


def _is_scheduler(value: Any) -> bool:
    if isinstance(value, Optimizer):
        return False
    needed = ("step", "state_dict", "load_state_dict")
    return isinstance(value, LRScheduler) or all(callable(getattr(value, name, None)) for name in needed)


def _describe(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {[type(item).__name__ for item in value]}"
    return f"a {type(value).__name__}"
