"""Whether a training step is what ``strategy="elastic"`` takes it for: a function of weights, buffers, batch
and random numbers.

`ElasticStrategy(check_step=True)` runs the first batch of a fit twice, forward and backward, on a copy of the
module that is put back in between to the same buffers and random state. A step that also depends on something
else, such as an attribute that it counts up, a generator of its own or a kernel that adds in any order, gives
other bits the second time. Nothing that it logs is kept.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modules.module import LightningModule
from orchestrator.errors import MisconfigurationError
from orchestrator.loss import is_sum, loss_of
from orchestrator.step_parts import training_step_arguments

_SHOWN = 3


def check_step(
    module: LightningModule,
    batch: Any,
    batch_idx: int,
    *,
    autocast: contextlib.AbstractContextManager[Any] | None,
    set_seeds: Callable[[], None],
) -> None:
    """Run a batch twice and compare.

    Args:
        module: Left as it is, but for what it shares with other objects.
        batch: As ``training_step`` gets it.
        batch_idx: Its number.
        autocast: The context of the forward pass, or None.
        set_seeds: Sets all random generators to the state in which the step begins.

    Raises:
        MisconfigurationError: The two differ.
    """
    twin = copy.deepcopy(module)
    twin.trainer = module.trainer
    twin.__dict__["_log_sink"] = lambda *arguments: None
    buffers = {name: item.clone() for name, item in twin.named_buffers()}
    found = []
    for _ in range(2):
        twin.zero_grad()
        with torch.no_grad():
            for name, item in twin.named_buffers():
                if name in buffers:
                    item.copy_(buffers[name])
        set_seeds()
        found.append(_results(twin, copy.deepcopy(batch), batch_idx, autocast or contextlib.nullcontext()))
    first, second = found
    other = [name for name in first if not _same(first[name], second.get(name))]
    if other:
        more = f" and {len(other) - _SHOWN} others" if len(other) > _SHOWN else ""
        raise MisconfigurationError(
            f"ElasticStrategy(check_step=True): batch {batch_idx} was run twice, from the same weights, "
            f"buffers and random numbers, and {', '.join(other[:_SHOWN])}{more} differ. "
            f"{type(module).__qualname__}.training_step depends on something else: an attribute that it "
            "changes, a generator of its own, or a kernel that adds in any order (deterministic=True)."
        )


def _results(
    module: LightningModule, batch: Any, batch_idx: int, context: contextlib.AbstractContextManager[Any]
) -> dict[str, Tensor | None]:
    """Return the loss and all gradients of a batch, by what a message calls them."""
    with context:
        outputs = module.training_step(
            *((batch, batch_idx) if training_step_arguments(module) == 2 else (batch,))
        )
    if outputs is None:
        return {"the loss": None}
    loss = outputs["loss_sum"] if is_sum(outputs) else loss_of(outputs)
    if loss is None:
        return {"the loss": None}
    if loss.requires_grad:
        module.backward(loss)
    gradients = {f"the gradient of {name}": item.grad for name, item in module.named_parameters()}
    return {"the loss": loss.detach().clone(), **{name: _copy(item) for name, item in gradients.items()}}


def _copy(item: Tensor | None) -> Tensor | None:
    return None if item is None else item.detach().clone()


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two results have the same bits, NaN included."""
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and bool(
        torch.equal(
            first.contiguous().flatten().view(torch.uint8), second.contiguous().flatten().view(torch.uint8)
        )
    )
