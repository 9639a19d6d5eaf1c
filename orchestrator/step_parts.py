"""What a training step is made of, and where a batch stands in its accumulation window.

Plain data that the loop, automatic and manual optimization share. A training_step whose arguments cannot be
given is a `MisconfigurationError`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from modules.module import LightningModule
from orchestrator.errors import MisconfigurationError
from orchestrator.hooks import HookTable
from orchestrator.lightning_optimizer import LightningOptimizer
from orchestrator.log_slots import LogSlots
from orchestrator.loss import LossCounts
from orchestrator.precision import Precision
from orchestrator.state import TrainState
from orchestrator.strategies.strategy import Strategy


@dataclass(slots=True, kw_only=True)
class Window:
    """Where a batch stands in its accumulation window; one object, changed from step to step.

    Attributes:
        first: The batch opens the window: gradients are zeroed.
        last: The batch closes the window: the optimizer steps.
        size: Batches in the window; the loss is divided by it.
        by_hand: Ranks have unequal batches in this window: gradients are reduced at its end, outside of the
            strategy's backward.
        scale: This rank's share of the batch relative to an equal one; 1.0 where ranks have equally many
            samples.
        rescale: Multiplies the gradients at the end of the window, where it closed earlier than its size
            said.
    """

    first: bool = True
    last: bool = True
    size: int = 1
    by_hand: bool = False
    scale: float = 1.0
    rescale: float = 1.0


Step = Callable[[Any, int], Any]
"""Runs a batch of the given number, and returns what training_step returned."""
EmptyStep = Callable[[Any, int], None]
"""Stands for a step on a rank without a batch; what it gets is another rank's batch, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """What a step is made of.

    Attributes:
        module: The module.
        strategy: Reduces gradients.
        precision: Number format.
        hooks: Whom to call.
        slots: Told which hook runs.
        state: Its ``global_step`` counts the commits.
        optimizer: The optimizer, or None: then only forward runs, and steps are counted all the same.
        wrapped: The optimizer as the module sees it; None without one.
        window: Read at each step.
        clip_val: Clip gradients at this, or None.
        clip_algorithm: ``"norm"`` or ``"value"``.
        counts: What losses that are sums are sums over.
        before_commit: Called with what the training step returned, once gradients are final and before the
            optimizer steps; None for nothing.
    """

    module: LightningModule
    strategy: Strategy
    precision: Precision
    hooks: HookTable
    slots: LogSlots
    state: TrainState
    optimizer: Optimizer | None
    wrapped: LightningOptimizer | None
    window: Window
    clip_val: float | None
    clip_algorithm: str | None
    counts: LossCounts = field(default_factory=LossCounts)
    before_commit: Callable[[Any], None] | None = None


def visible(outputs: Any) -> Any:
    """Return what hooks see of a step's outputs: a dictionary with the detached loss, empty without one; what
    is neither (manual optimization allows anything) as it is.
    """
    if isinstance(outputs, Tensor):
        return {"loss": outputs.detach()}
    if isinstance(outputs, dict):
        return {name: item.detach() if isinstance(item, Tensor) else item for name, item in outputs.items()}
    return {} if outputs is None else outputs


def training_step_arguments(module: LightningModule) -> int:
    """Return how many of (batch, batch_idx) the module's training step takes.

    Raises:
        MisconfigurationError: It takes none, or more than two that have no default, or Lightning's
            ``dataloader_iter``.
    """
    parameters = list(inspect.signature(module.training_step).parameters.values())
    if any(item.name == "dataloader_iter" for item in parameters):
        raise MisconfigurationError(
            f"{type(module).__qualname__}.training_step takes dataloader_iter, an iterator over the data, "
            "which is not supported: the trainer reads it. Define training_step(self, batch, batch_idx)."
        )
    if any(item.kind is item.VAR_POSITIONAL for item in parameters):
        return 2
    positional = [
        item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
    ]
    required = [item.name for item in positional if item.default is item.empty]
    if not positional or len(required) > 2:
        raise MisconfigurationError(
            f"{type(module).__qualname__}.training_step takes "
            f"({', '.join(item.name for item in positional)}). "
            "Define training_step(self, batch, batch_idx)."
        )
    return min(2, len(positional))
