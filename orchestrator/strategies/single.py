"""One process, one device: nothing to reduce, nobody to wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class SingleStrategy:
    """The strategy of a single process.

    Args:
        device: Where the module lives.
    """

    name = "single"
    rank = 0
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.training_step: Callable[..., Any]

    def setup(self, module: torch.nn.Module, *, training: bool) -> None:
        """Move the module to the device."""
        if self.device.type != "cpu":
            module.to(self.device)
        self.training_step = getattr(module, "training_step", _no_training_step)

    def sync_gradients(self, on: bool) -> None:
        """There is nothing to reduce."""

    def reduce_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """The mean over one rank is what is there."""

    def state_dict(self) -> dict[str, Any]:
        """There is nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to take back."""

    def gather(self, value: T) -> list[T]:
        """Return ``[value]``."""
        return [value]

    def all_gather(self, tensor: torch.Tensor, group: Any = None, sync_grads: bool = False) -> torch.Tensor:
        """Return `tensor`."""
        return tensor

    def broadcast(self, value: T) -> T:
        """Return `value`."""
        return value

    def counts(self, number: int) -> list[int]:
        """Return ``[number]``."""
        return [number]

    def barrier(self) -> None:
        """Nobody to wait for."""

    def teardown(self) -> None:
        """Nothing to undo."""


def _no_training_step(*args: Any) -> None:
    raise NotImplementedError("The module has no training_step.")
