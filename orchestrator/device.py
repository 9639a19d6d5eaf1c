"""Devices and number formats: bringing things there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer


def move(value: Any, device: torch.device, copy: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Any:
    """Return `value` with all tensors in it on `device`.

    Walks tuples, lists, mappings and dataclasses; objects with a ``to`` method move themselves; anything else
    stays. Copies from pinned memory do not block.

    Args:
        value: What holds the tensors.
        device: Where to.
        copy: Brings a tensor there from elsewhere; None does that by its ``to``.
    """
    if isinstance(value, torch.Tensor):
        if value.device == device:
            return value
        return copy(value) if copy is not None else value.to(device, non_blocking=device.type != "cpu")
    found = _within(value, lambda item: move(item, device, copy))
    if found is not None:
        return found
    if hasattr(value, "to") and not isinstance(value, type):
        return value.to(device)
    return value


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Return `value` with all floating-point tensors in it as `dtype`; walks what `move` walks."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    found = _within(value, lambda item: cast(item, dtype))
    return value if found is None else found


def _within(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a copy of a container with everything in it changed; None for what is no container."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(change(item) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(change(item) for item in value)
    if isinstance(value, Mapping):
        moved = {key: change(item) for key, item in value.items()}
        return moved if type(value) is dict else type(value)(moved)  # type: ignore[call-arg]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{field.name: change(getattr(value, field.name)) for field in dataclasses.fields(value)}
        )
    return None


def move_optimizer_state(optimizer: Optimizer, device: torch.device) -> None:
    """Bring an optimizer's state to where its parameters are; step counts stay where the optimizer wants
    them.
    """
    for parameter, state in optimizer.state.items():
        for name, item in state.items():
            if isinstance(item, torch.Tensor) and item.ndim and item.device != parameter.device:
                state[name] = item.to(device)
