"""Bring a batch to a device."""

from __future__ import annotations

from typing import Any

import torch

from orchestrator import device as devices


def move_data_to_device(batch: Any, device: torch.device | str | int) -> Any:
    """Return `batch` with all tensors in it on `device`: in tuples, lists, mappings, dataclasses and objects
    with a ``to`` method. Copies from pinned memory do not block.

    >>> move_data_to_device({"x": [torch.zeros(1)]}, "cpu")
    {'x': [tensor([0.])]}
    """
    return devices.move(batch, torch.device(device))
