"""Gives an optimizer that was restored from another trial's checkpoint the options of its own configuration.

Population based training copies a good trial's state into a bad one and changes its configuration a little. A
checkpoint holds the options of the optimizer too (learning rate, momentum, ...), so restoring it alone would
undo the change. Here every option takes the value of the new configuration. Learning rates that a scheduler
has moved keep their place on its course: they are scaled by new start over old start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOptions:
    """What each parameter group of one optimizer is asked to do, without the parameters.

    Attributes:
        groups: By option, one mapping for each group.
    """

    groups: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, optimizer: Optimizer) -> GroupOptions:
        """Return the options that `optimizer` has now."""
        return cls(
            groups=tuple(
                {name: _plain(value) for name, value in group.items() if name != "params"}
                for group in optimizer.param_groups
            )
        )


def retune(
    optimizers: Sequence[Optimizer], schedulers: Sequence[Any], wanted: Sequence[GroupOptions]
) -> None:
    """Set the options of restored optimizers to those that the configuration asks for.

    Args:
        optimizers: With restored state.
        schedulers: Theirs, with restored state.
        wanted: For each optimizer, its options before it was restored.
    """
    for optimizer, options in zip(optimizers, wanted, strict=True):
        for group, asked in zip(optimizer.param_groups, options.groups, strict=True):
            for name, value in new_options(group, asked).items():
                present = group.get(name)
                if isinstance(present, Tensor):
                    present.fill_(value)
                else:
                    group[name] = value
    for scheduler in _with_inner(schedulers):
        groups = scheduler.optimizer.param_groups
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
        if hasattr(scheduler, "_last_lr"):
            scheduler._last_lr = [group["lr"] for group in groups]


def new_options(restored: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of one group: as asked, with the learning rate where the scheduler had brought it.

    >>> new_options({"lr": 0.25, "initial_lr": 0.5}, {"lr": 1.0, "initial_lr": 1.0, "momentum": 0.9})
    {'lr': 0.5, 'initial_lr': 1.0, 'momentum': 0.9}
    """
    options = {name: value for name, value in asked.items() if name in restored or name != "initial_lr"}
    start, before = asked.get("initial_lr"), _plain(restored.get("initial_lr"))
    if start is not None and before:
        options["lr"] = _plain(restored["lr"]) * start / before
    return options


def _with_inner(schedulers: Sequence[Any]) -> Iterator[Any]:
    """Yield schedulers with those that they are made of, such as the parts of a `SequentialLR`."""
    for scheduler in schedulers:
        yield from _with_inner(getattr(scheduler, "_schedulers", ()))
        yield scheduler


def _plain(value: Any) -> Any:
    """Return a tensor of one element as its number, so that a later change does not reach what was noted."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
