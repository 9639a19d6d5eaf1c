"""A slot: one metric of one hook, how it was asked for, and what has come in since the epoch began.

Values are added without waiting for their device, in float64 where the device has it. A slot of numbers and
tensors keeps sums; a slot of a metric object keeps only the newest value of a step, since the object keeps
the rest. Slots check nothing but that a metric object's step value is one number.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from orchestrator import log_hooks
from orchestrator.errors import MisconfigurationError
from orchestrator.log_choices import Choices
from orchestrator.log_reduction import Record
from orchestrator.log_values import least, one_element, wide_type


class Slot:
    """One metric of one hook.

    Attributes:
        name: What it is called, `suffix` included.
        suffix: The part of the name that says which evaluation loader; empty where there is one.
        loader: The suffix of the loader that it was logged for, even where the name is without.
        choices: How it was asked for.
        attribute: Of a metric object, where in the module it is; None for numbers.
        arguments: The same as the user wrote it; None in a slot from elsewhere, until they are seen.
        metric: The metric object, once it was seen; None for numbers.
        fresh: The metric object was logged for the epoch since it was last computed.
        computed: The metric object's value for the epoch, once it was computed.
        announced: The other ranks know this slot.
    """

    __slots__ = (
        "announced",
        "arguments",
        "attribute",
        "choices",
        "computed",
        "dtype",
        "extreme",
        "fresh",
        "hook",
        "host_last",
        "host_sum",
        "last",
        "last_weight",
        "loader",
        "metric",
        "name",
        "on_epoch",
        "on_step",
        "reduce",
        "running",
        "stepped",
        "suffix",
        "total",
        "updates",
        "weighs",
        "weight",
    )

    def __init__(
        self,
        name: str,
        hook: str,
        choices: Choices,
        arguments: tuple[Any, ...] | None = None,
        *,
        suffix: str = "",
        loader: str = "",
    ) -> None:
        self.name = name
        self.hook = hook
        self.choices = choices
        self.arguments = arguments
        self.suffix = suffix
        self.loader = loader
        self.attribute = choices.attribute
        self.on_step = choices.on_step
        self.on_epoch = choices.on_epoch
        self.reduce = choices.reduce
        self.extreme = choices.reduce in ("min", "max")
        self.weighs = (
            choices.reduce == "mean"
            and choices.attribute is None
            and (choices.on_epoch or choices.sync)
            and hook not in log_hooks.EPOCH_ONLY
        )
        self.announced = False
        self.metric: Any = None
        self.dtype = torch.float32
        self.total: Tensor | None = None
        self.last: Tensor | None = None
        self.host_last = math.nan
        self.last_weight: float = 1.0
        self.running = False
        self.clear()

    @property
    def step_name(self) -> str:
        """What the value of a step is called."""
        return self._forked("_step") if self.on_epoch else self.name

    @property
    def epoch_name(self) -> str:
        """What the value of an epoch is called."""
        return self._forked("_epoch") if self.on_step else self.name

    def _forked(self, mark: str) -> str:
        return f"{self.name.removesuffix(self.suffix)}{mark}{self.suffix}"

    def clear(self) -> None:
        """Forget the epoch's values."""
        self.host_sum = 0.0 if not self.extreme else math.inf if self.reduce == "min" else -math.inf
        self.weight: float = 0.0
        self.updates = 0
        self.stepped = False
        self.fresh = False
        self.computed: float | None = None
        if self.total is not None:
            self.total.fill_(self.host_sum)

    # ---------------------------------------------------------------- what comes in

    def add_number(self, value: float, weight: float) -> None:
        """Take a number of the host."""
        if self.on_step:
            self.host_last = value
            self.last_weight = weight
            self.last = None
            self.stepped = True
        if self.on_epoch:
            if not self.extreme:
                self.host_sum += value * weight if weight else 0.0
            elif self.reduce == "min":
                self.host_sum = min(self.host_sum, value) if value == value else value
            else:
                self.host_sum = max(self.host_sum, value) if value == value else value
            self.weight += weight
        self.updates += 1

    def add_tensor(self, value: Tensor, weight: float) -> None:
        """Take a detached tensor of one element."""
        if self.on_step:
            if self.last is None:
                self.last = torch.empty((), dtype=wide_type(self.name, value), device=value.device)
                if value.dtype is torch.float64:
                    self.dtype = torch.float64
            self.last.copy_(value)
            self.last_weight = weight
            self.stepped = True
        if self.on_epoch:
            if self.total is None or self.total.device != value.device:
                self._make_total(value)
            if not self.extreme:
                if weight:  # what weighs nothing may be NaN
                    self.total.add_(value, alpha=weight)  # type: ignore[union-attr]
            else:
                pick = torch.minimum if self.reduce == "min" else torch.maximum
                pick(self.total, value.to(self.total.dtype), out=self.total)  # type: ignore[union-attr, arg-type]
            self.weight += weight
        self.updates += 1

    def add_metric(self, metric: Any) -> None:
        """Take note that a metric object was logged: its value of this step, if it has one, and that its
        value of the epoch is wanted.

        The value of a step is what the object's ``forward`` returned, which torchmetrics keeps. An object
        that keeps none shows what it has computed so far, when somebody looks.
        """
        self.metric = metric
        self.updates += 1
        self.fresh = self.on_epoch
        if not self.on_step:
            return
        if not hasattr(metric, "_forward_cache"):
            self.running = self.stepped = True
            return
        value = metric._forward_cache
        if value is None:  # only ``update`` was called
            return
        self.last = metric_value(self.name, metric, value)
        self.dtype = torch.float64 if self.last.dtype is torch.float64 else torch.float32
        self.stepped = True

    def _make_total(self, value: Tensor) -> None:
        start = float(self.total) if self.total is not None else 0.0 if not self.extreme else self.host_sum
        self.total = torch.full((), start, dtype=wide_type(self.name, value), device=value.device)
        if value.dtype is torch.float64:
            self.dtype = torch.float64

    # ---------------------------------------------------------------- what is read

    def newest(self) -> Tensor | None:
        """Return the tensor of the last step; None where it is a number of the host, `host_last`."""
        if self.running and self.metric is not None:
            return metric_value(self.name, self.metric, self.metric.compute())
        return self.last

    def record(self, total: float) -> Record:
        """Return what this rank has for the epoch, where `total` is the value of the slot's tensor."""
        if self.total is None:
            value = self.host_sum
        elif self.reduce == "min":
            value = least(total, self.host_sum)
        elif self.reduce == "max":
            value = -least(-total, -self.host_sum)
        else:
            value = total + self.host_sum
        choices = self.choices
        return Record(self.name, self.hook, self.reduce, choices.sync, value, self.weight, choices.ranks)

    def step_record(self, value: float) -> Record:
        """Return what this rank has for the step, where `value` is what was read."""
        choices = self.choices
        weight = self.last_weight if choices.sync and self.reduce == "mean" else 1.0
        return Record(self.name, self.hook, self.reduce, choices.sync, value * weight, weight, choices.ranks)


def metric_value(name: str, metric: Any, value: Any) -> Tensor:
    """Return what a metric object has computed as a detached tensor without dimensions.

    Raises:
        MisconfigurationError: It is not one number.
    """
    if isinstance(value, (int, float)):
        value = torch.tensor(float(value), dtype=torch.float64)
    if not isinstance(value, Tensor):
        raise MisconfigurationError(
            f"self.log({name!r}, {type(metric).__name__}): the metric computes a {type(value).__name__}. "
            "Log its entries one by one: self.log_dict(metric.compute())."
        )
    return (one_element(name, value) if value.ndim else value).detach()
