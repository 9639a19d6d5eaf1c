"""One process, one device: nothing to reduce, nobody to wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from orchestrator.strategies.strategy import Dealing
from orchestrator.strategies.whole import Whole

T = TypeVar("T")


class Alone(Whole):
    """The strategy of a single process.

    Args:
        device: Where the module lives.
    """

    name = "single"
    rank = 0
    world_size = 1
    in_step = False
    dealing: Dealing | None = None

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.training_step: Callable[..., Any]
        self.optimizers: list[torch.optim.Optimizer] = []
        self.local_step: Callable[..., Any]

    def setup(self, module: torch.nn.Module, *, training: bool) -> None:
        """Move the module to the device."""
        if self.device.type != "cpu":
            module.to(self.device)
        self.training_step = self.local_step = getattr(module, "training_step", _no_training_step)

    def follow(self, module: torch.nn.Module) -> bool:
        """Autograd follows by itself."""
        return False

    def sync_gradients(self, on: bool) -> None:
        """There is nothing to reduce."""

    def reduce_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """The mean over one rank is what is there."""

    def reduce_after_backward(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """The mean over one rank is what is there."""

    def add_up(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over one rank is what is there."""
        return value

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

    def broadcast(self, value: T, source: int = 0) -> T:
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
