"""What the loops ask of a strategy; each strategy is one small file that answers.

The loops know neither processes nor process groups. Every method that communicates says so; all ranks must
call those in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


class Strategy(Protocol):
    """The seam between the loops and the ranks.

    Attributes:
        name: As given to ``Trainer(strategy=...)``.
        rank: This process's rank.
        world_size: Ranks.
        device: Where the module lives.
        training_step: Runs the module's training step so that its backward reduces gradients; set by `setup`.
    """

    name: str
    rank: int
    world_size: int
    device: torch.device
    training_step: Callable[..., Any]

    def setup(self, module: torch.nn.Module, *, training: bool) -> None:
        """Move the module to the device, and make it ready for training. Communicates when `training`."""
        ...

    def sync_gradients(self, on: bool) -> None:
        """Say whether the next training step's backward reduces gradients over ranks."""
        ...

    def reduce_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by the mean over ranks, absent ones counting as zero. Communicates."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps so that a resumed run reduces to the same bits."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned, after `setup`. Communicates."""
        ...

    def gather(self, value: T) -> list[T]:
        """Return every rank's `value`, by rank. Communicates; values must pickle."""
        ...

    def all_gather(self, tensor: torch.Tensor, group: Any = None, sync_grads: bool = False) -> torch.Tensor:
        """Return the tensors of all ranks of `group`, stacked along a new first dimension; a single rank's as
        it is. With `sync_grads`, gradients flow back to the ranks. Communicates."""
        ...

    def broadcast(self, value: T) -> T:
        """Return rank 0's `value`. Communicates."""
        ...

    def counts(self, number: int) -> list[int]:
        """Return every rank's `number`, by rank. Communicates."""
        ...

    def barrier(self) -> None:
        """Wait until all ranks are here. Communicates."""
        ...

    def teardown(self) -> None:
        """Undo `setup`."""
        ...
