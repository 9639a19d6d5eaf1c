"""What the loops ask of a strategy; each strategy is one small file that answers.

The loops know neither processes nor process groups. Every method that communicates says so; all ranks must
call those in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch
from torch.optim import Optimizer

from modules.checkpoint.shards import Part

T = TypeVar("T")


class Dealing(Protocol):
    """What a sharded checkpoint asks of a strategy that deals tensors to ranks. Nothing here communicates."""

    def state(self, module: torch.nn.Module) -> dict[str, Any]:
        """Return the module's state dict, of tensors as this rank has them."""
        ...

    def part_of(self, item: torch.Tensor) -> Part | None:
        """Return this rank's part of a tensor that is dealt; None of one that every rank has."""
        ...


class Strategy(Protocol):
    """The seam between the loops and the ranks.

    Attributes:
        name: As given to ``Trainer(strategy=...)``.
        rank: This process's rank.
        world_size: Ranks.
        device: Where the module lives.
        in_step: Every forward pass is a collective, so ranks must run equally many.
        clips: The optimizer's step clips gradients, so the loop does not.
        training_step: Runs the module's training step so that its backward reduces gradients; set by `setup`.
            With manual optimization backward need not: `reduce_after_backward` follows each.
        optimizers: The optimizers of a fit.
        local_step: Runs it where some rank has no batch, and gradients are reduced by hand; set by `setup`.
        dealing: How each rank takes its own parts for a checkpoint; None where rank 0 writes it whole.
    """

    name: str
    rank: int
    world_size: int
    device: torch.device
    in_step: bool
    clips: bool
    training_step: Callable[..., Any]
    optimizers: list[Optimizer]
    local_step: Callable[..., Any]
    dealing: Dealing | None

    def setup(self, module: torch.nn.Module, *, training: bool) -> None:
        """Move the module to the device, and make it ready for training. Communicates when `training`."""
        ...

    def adopt(self, module: torch.nn.Module, optimizers: list[Optimizer]) -> list[Optimizer]:
        """Take the optimizers of the module that was set up for training; return those that are to be
        stepped. Communicates where it returns others.
        """
        ...

    def step_of(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return `step`, a step of the module that was set up, as it must be called for evaluation."""
        ...

    def load_weights(self, module: torch.nn.Module, state: dict[str, Any], *, strict: bool) -> None:
        """Load a state dict of whole tensors into the module, before or after `setup`."""
        ...

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Load a state dict of whole tensors into an optimizer of the module, after `setup`."""
        ...

    def module_state(self, module: torch.nn.Module) -> dict[str, Any]:
        """Return the module's state dict, of whole tensors on rank 0. Communicates."""
        ...

    def whole(self, state: Any) -> Any:
        """Return containers of tensors with the whole tensor where a rank has a part. Communicates; only
        rank 0's result is complete.
        """
        ...

    def bring_back(self, module: torch.nn.Module) -> None:
        """Make the module an ordinary one that holds whole weights on rank 0. Communicates."""
        ...

    def keep_pace(self, batches: Iterable[Any], along: Callable[[Any], None]) -> Iterable[Any]:
        """Return `batches` of an evaluation; where `in_step`, call ``along(batch)`` after the last until no
        rank has another. Communicates then.
        """
        ...

    def run_along(self) -> Any:
        """Where `in_step`: run the last step again, because others run one, and return its outputs, of which
        nothing may count. Communicates then.
        """
        ...

    def follow(self, module: torch.nn.Module) -> bool:
        """Take note, between epochs, of parameters that began or ceased to need gradients; return whether
        `training_step` is another one now. Communicates when it is.
        """
        ...

    def sync_gradients(self, on: bool) -> None:
        """Say whether the next training step's backward reduces gradients over ranks."""
        ...

    def reduce_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by the mean over ranks, absent ones counting as zero. Communicates."""
        ...

    def scale_gradients(self, parameters: Iterable[torch.nn.Parameter], factor: float | torch.Tensor) -> None:
        """Multiply the reduced gradients of an optimizer's parameters by `factor`, a number or a tensor of
        one.
        """
        ...

    def reduce_after_backward(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """With manual optimization, make these gradients the mean over ranks unless backward has done so.
        Communicates.
        """
        ...

    def add_up(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of every rank's `value`, on its device, without waiting. Communicates."""
        ...

    def before_save(self) -> None:
        """Make ready for `state_dict`. Communicates."""
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

    def broadcast(self, value: T, source: int = 0) -> T:
        """Return the `value` of rank `source`. Communicates; it must pickle."""
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
