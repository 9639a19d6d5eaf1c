"""What strategies do whose every process has the whole module and optimizer: nothing special.

The usual answers, for those that shard neither weights nor optimizer state; others give their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Whole:
    """The part of a strategy about weights and optimizer state, of which each process has all."""

    clips = False

    def adopt(
        self, module: nn.Module, optimizers: list[torch.optim.Optimizer]
    ) -> list[torch.optim.Optimizer]:
        """Return `optimizers`: they step their parameters themselves."""
        return optimizers

    def scale_gradients(self, parameters: Iterable[nn.Parameter], factor: float | Tensor) -> None:
        """Multiply the parameters' gradients by `factor`."""
        gradients = [item.grad for item in parameters if item.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)

    def step_of(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return `step`."""
        return step

    def load_weights(self, module: nn.Module, state: dict[str, Any], *, strict: bool) -> None:
        """Load `state` as it is."""
        module.load_state_dict(state, strict=strict)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Load `state` as it is."""
        optimizer.load_state_dict(state)

    def module_state(self, module: nn.Module) -> dict[str, Any]:
        """Return the module's state dict."""
        state: dict[str, Any] = module.state_dict()
        return state

    def whole(self, state: Any) -> Any:
        """Return `state`."""
        return state

    def bring_back(self, module: nn.Module) -> None:
        """Nothing is elsewhere."""

    def before_save(self) -> None:
        """Nothing is to be made ready."""

    def keep_pace(self, batches: Iterable[Any], along: Callable[[Any], None]) -> Iterable[Any]:
        """Return `batches`: no process waits for another within a step."""
        return batches

    def run_along(self) -> Any:
        """There is never a reason to."""
        return None
