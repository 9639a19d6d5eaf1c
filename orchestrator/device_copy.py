"""Copies batches to a CUDA device while it computes: the next one is there when the step before it ends.

The host runs ahead of the device, so it asks for batch k + 1 while step k computes. Copied on the stream of
the steps, the batch would wait behind step k; here it has a stream of its own, goes through pinned memory,
and what computes waits for it on the device alone. Nothing is read earlier than without, so data draw the
same random numbers. What is no plain tensor of the host moves as `orchestrator.device.move` moves it. Errors
are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orchestrator import device


class DeviceCopies:
    """Copies to one CUDA device.

    Args:
        target: The device.
    """

    def __init__(self, target: torch.device) -> None:
        self._target = target
        self._stream = torch.cuda.Stream(target)

    def move(self, batch: Any) -> Any:
        """Return `batch` with all tensors in it on the device, for the stream that computes now."""
        computing = torch.cuda.current_stream(self._target)
        moved = device.move(batch, self._target, lambda tensor: self._copy(tensor, computing))
        computing.wait_stream(self._stream)
        return moved

    def _copy(self, tensor: Tensor, computing: Any) -> Tensor:
        if tensor.device.type != "cpu" or type(tensor) is not Tensor or tensor.layout is not torch.strided:
            return tensor.to(self._target, non_blocking=True)
        with torch.cuda.stream(self._stream):
            pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
            copied = pinned.to(self._target, non_blocking=True)
        copied.record_stream(computing)  # so that its memory is not given to a later copy while it is used
        return copied
