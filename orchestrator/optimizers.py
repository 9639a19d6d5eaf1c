"""Every form of what ``configure_optimizers`` may return, as one list of optimizers and one of scheduler
configurations.

The user's objects are taken as they are and never changed. A form that cannot work, or that cannot work with
how a run optimises, is refused with what was found.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from modules.module import LightningModule
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


def parse(returned: Any, *, automatic: bool = True) -> tuple[list[Optimizer], list[SchedulerConfig]]:
    """Return the optimizers and schedulers in what ``configure_optimizers`` returned.

    Args:
        returned: It.
        automatic: The trainer steps the schedulers, and so needs to know what a plateau scheduler watches.

    Raises:
        MisconfigurationError: It is none of the forms: an optimizer; a list of them; ``([optimizers],
            [schedulers])``; a dictionary with ``optimizer`` and perhaps ``lr_scheduler`` and ``monitor``; a
            list of such dictionaries; None.
    """
    optimizers, schedulers = _read(returned)
    for config in schedulers:
        if automatic and config.reduce_on_plateau and config.monitor is None:
            raise MisconfigurationError(
                f"{type(config.scheduler).__name__} needs a metric to watch. Return {{'optimizer': ..., "
                "'lr_scheduler': ..., 'monitor': 'val_loss'}."
            )
    return optimizers, schedulers


def _read(returned: Any) -> tuple[list[Optimizer], list[SchedulerConfig]]:
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


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether the optimizer calls the forward pass itself, like LBFGS."""
    parameters = inspect.signature(type(optimizer).step).parameters
    closure = parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def refuse_optimizers(
    optimizers: Sequence[Optimizer], *, automatic: bool, ranks: int, scales: bool, clips: bool
) -> None:
    """Refuse optimizers that a run cannot step.

    Args:
        optimizers: Those of the run.
        automatic: The trainer steps, rather than training_step.
        ranks: Processes.
        scales: The precision scales the loss.
        clips: The trainer clips gradients.

    Raises:
        MisconfigurationError: There are several to step automatically, or one decides by itself how often it
            runs the forward pass where that cannot be.
        RuntimeError: One unscales its gradients itself, in its step, and they are to be clipped before.
    """
    if automatic and len(optimizers) > 1:
        raise MisconfigurationError(
            f"configure_optimizers returned {len(optimizers)} optimizers. Automatic optimization steps one: "
            "put all parameters into its groups, or set self.automatic_optimization = False in __init__ and "
            "step them in training_step."
        )
    for optimizer in optimizers:
        name = type(optimizer).__name__
        if needs_closure(optimizer) and ranks > 1:
            raise MisconfigurationError(
                f"{name} decides by each rank's own loss how often it runs the forward pass, so ranks would "
                "part. Use one process, or another optimizer."
            )
        if needs_closure(optimizer) and scales:
            raise MisconfigurationError(
                f"Trainer(precision='16-mixed') and {name}: a step whose gradients overflow is skipped, and "
                "this optimizer runs the forward pass within its step. Use 'bf16-mixed' or 32."
            )
        if scales and clips and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise RuntimeError(
                f"Trainer(precision='16-mixed', gradient_clip_val=...) and {name}(fused=True): it "
                "unscales gradients within its step, after they would be clipped. Leave out fused=True or "
                "gradient_clip_val."
            )


def refuse_accumulation(
    argument: str, batches: int, module: LightningModule, optimizers: Sequence[Optimizer]
) -> None:
    """Refuse to make a step of several batches where steps are not made of batches.

    Args:
        argument: What the user wrote.
        batches: How many.
        module: Which may be optimised manually.
        optimizers: Which may run the forward pass themselves.

    Raises:
        MisconfigurationError: Either is so.
    """
    if batches == 1:
        return
    if not module.automatic_optimization:
        raise MisconfigurationError(
            f"{argument} and {type(module).__qualname__}.automatic_optimization=False: training_step decides "
            "when to step. Leave it out, and step in every n-th training_step."
        )
    if any(needs_closure(optimizer) for optimizer in optimizers):
        raise MisconfigurationError(
            f"{argument} and {type(optimizers[0]).__name__}: this optimizer runs the forward pass several "
            "times a step, on one batch. Use accumulate_grad_batches=1 and larger batches."
        )


def refuse_schedulers(configs: Sequence[SchedulerConfig], *, own_step: bool) -> None:
    """Refuse schedulers that are none of torch's, unless the module has an ``lr_scheduler_step`` for them.

    Args:
        configs: Those that the trainer steps.
        own_step: The module overrides ``lr_scheduler_step``.

    Raises:
        MisconfigurationError: It has not, and there is one.
    """
    for config in configs:
        if not own_step and not isinstance(config.scheduler, LRScheduler | ReduceLROnPlateau):
            raise MisconfigurationError(
                f"configure_optimizers returned a {type(config.scheduler).__name__} as a scheduler, which is "
                "none of torch's. Subclass torch.optim.lr_scheduler.LRScheduler, or define "
                "lr_scheduler_step(self, scheduler, metric)."
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
            "methods state_dict() and load_state_dict()."
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
    return config


def _is_scheduler(value: Any) -> bool:
    if isinstance(value, Optimizer | nn.Module):
        return False
    needed = ("state_dict", "load_state_dict")
    return isinstance(value, LRScheduler) or all(callable(getattr(value, name, None)) for name in needed)


def _describe(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {[type(item).__name__ for item in value]}"
    return f"a {type(value).__name__}"
