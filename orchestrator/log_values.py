"""What may be logged as a value: one real number, on the host or on a device.

Tensors are never read here, so nothing waits for a device. Anything that is not one number is a
`MisconfigurationError` that names the metric and what was found.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import MisconfigurationError


def wide_type(name: str, value: Tensor) -> torch.dtype:
    """Return the type in which values like `value` are added up: float64 where the device has it."""
    if value.is_complex():
        raise MisconfigurationError(
            f"self.log({name!r}, ...) got a complex tensor. Log a number that is real, say by .abs()."
        )
    return torch.float32 if value.device.type == "mps" else torch.float64


def one_element(name: str, value: Tensor) -> Tensor:
    """Return a tensor of one element as one without dimensions."""
    if value.numel() != 1:
        raise MisconfigurationError(
            f"self.log({name!r}, ...) got a tensor of shape {tuple(value.shape)}. Log one number: reduce "
            "it first, say by .mean()."
        )
    return value.reshape(())


def number(name: str, value: Any) -> float:
    """Return a host's number as a float."""
    if isinstance(value, dict) or hasattr(value, "compute_groups"):
        raise MisconfigurationError(
            f"self.log({name!r}, {type(value).__name__}) cannot be recorded. Log a number for each of its "
            "entries: self.log_dict(values)."
        )
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise MisconfigurationError(
            f"self.log({name!r}, {type(value).__name__}) cannot be recorded. Log a number, a tensor of "
            "one element, or a metric object with update, compute and reset."
        )
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        if value.bit_length() > 1023:
            raise MisconfigurationError(
                f"self.log({name!r}, ...) got a number of {value.bit_length()} bits: no float holds it. "
                "Log its logarithm."
            )
        warnings.warn(f"self.log({name!r}, {value}) is stored as a float and loses digits.", stacklevel=4)
    return float(value)


def size(name: str, value: Any) -> float:
    """Return a batch's size that was given as something else than a whole number of at least 0.

    A tensor is read, so the caller waits for its device.

    Raises:
        MisconfigurationError: It is no number of at least 0.
    """
    is_number = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
    if isinstance(value, bool) or not is_number or not 0 <= float(value) < math.inf:
        raise MisconfigurationError(
            f"self.log({name!r}, batch_size={value!r}). Use a number of at least 0: what the value weighs."
        )
    return float(value)


def to_host(tensors: Sequence[Tensor | None], numbers: Sequence[float]) -> list[float]:
    """Return the tensors' values, and the numbers where there is none, with one copy for each device."""
    values = list(numbers)
    by_device: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor is not None:
            by_device.setdefault(tensor.device, []).append(index)
    for device, places in by_device.items():
        wide = torch.float32 if device.type == "mps" else torch.float64
        stacked = torch.stack([tensors[index].to(wide) for index in places])  # type: ignore[union-attr]
        for index, value in zip(places, stacked.tolist(), strict=True):
            values[index] = value
    return values


def least(*values: float) -> float:
    """Return the smallest value; NaN when any is."""
    return math.nan if any(value != value for value in values) else min(values)
