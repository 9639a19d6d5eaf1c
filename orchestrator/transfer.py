"""How a batch comes to the device: the user's hooks around the move, or nothing where there is nothing to do.
To a CUDA device it is copied while the step before computes, unless a hook of the user's moves it.

Decided once, before the loop. What a hook or a move raises goes on to the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from orchestrator import device
from orchestrator.device_copy import DeviceCopies
from orchestrator.hooks import HookTable


def build_transfer(
    hooks: HookTable, target: torch.device, dtype: torch.dtype | None
) -> Callable[[Any, int], Any] | None:
    """Return the function that brings a batch to the device, or None when there is nothing to do.

    Args:
        hooks: Those of the module and the data module, of which the three around a transfer are called.
        target: The device.
        dtype: What floating-point tensors are converted to before; None leaves them.

    Returns:
        A function of the batch and the number of its loader.
    """
    before = hooks.data_hook("on_before_batch_transfer")
    move = hooks.data_hook("transfer_batch_to_device")
    after = hooks.data_hook("on_after_batch_transfer")
    if dtype is not None:
        given, before = before, lambda batch, index: _converted(batch, index, dtype, given)
    if before is None and move is None and after is None:
        if target.type == "cpu":
            return None
        alone = _mover(target)
        return lambda batch, index: alone(batch)
    own = _mover(target) if move is None else None

    def transfer(batch: Any, index: int) -> Any:
        if before is not None:
            batch = before(batch, index)
        batch = own(batch) if own is not None else move(batch, target, index)  # type: ignore[misc]
        return batch if after is None else after(batch, index)

    return transfer


def _mover(target: torch.device) -> Callable[[Any], Any]:
    """Return what brings a batch to `target` where the user does not."""
    if target.type == "cuda":
        return DeviceCopies(target).move
    return lambda batch: device.move(batch, target)


def _converted(batch: Any, index: int, dtype: torch.dtype, then: Callable[[Any, int], Any] | None) -> Any:
    """Return the batch with floating-point tensors of type `dtype`, then as the user's hook makes it."""
    converted = device.cast(batch, dtype)
    return converted if then is None else then(converted, index)
