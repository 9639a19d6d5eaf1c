"""Whether a training step is what ``strategy="elastic"`` takes it for: a function of weights, buffers, batch
and random numbers.

`ElasticStrategy(check_step=True)` runs the first batch of a fit twice, forward and backward, on a copy of the
module that is put back in between to the same weights, buffers and random state. A step that also depends on
something else, such as an attribute that it counts up, a generator of its own or a kernel that adds in any
order, gives other bits the second time. What it gives to `self.log` is not kept.
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
    name = type(module).__qualname__
    try:
        twin = copy.deepcopy(module)
    except Exception as error:
        raise MisconfigurationError(
            f"ElasticStrategy(check_step=True): {name} cannot be copied to be tried: {error!r}. Leave "
            "check_step out, or keep out of the module what cannot be copied."
        ) from error
    twin.trainer = module.trainer
    twin.__dict__["_log_sink"] = lambda *arguments: None
    tensors = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
    before = {key: item.detach().clone() for key, item in tensors.items()}
    found = []
    for _ in range(2):
        twin.zero_grad()
        with torch.no_grad():
            for key, item in tensors.items():
                item.copy_(before[key])
        set_seeds()
        found.append(_results(twin, copy.deepcopy(batch), batch_idx, autocast or contextlib.nullcontext()))
        now = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
        replaced = [key for key, item in tensors.items() if now.get(key) is not item]
        if replaced:
            raise MisconfigurationError(
                f"ElasticStrategy(check_step=True): {name}.training_step replaces "
                f"{', '.join(replaced[:_SHOWN])} by other tensors, which are not followed. Change a buffer "
                "in place: self.buffer.copy_(...)."
            )
    first, second = found
    other = [name for name in first if not _same(first[name], second.get(name))]
    if other:
        more = f" and {len(other) - _SHOWN} others" if len(other) > _SHOWN else ""
        raise MisconfigurationError(
            f"ElasticStrategy(check_step=True): batch {batch_idx} was run twice, from the same weights, "
            f"buffers and random numbers, and {', '.join(other[:_SHOWN])}{more} differ. "
            f"{name}.training_step depends on something else: an attribute that it "
            "changes, a generator of its own, or a kernel that adds in any order (deterministic=True)."
        )


def _results(
    module: LightningModule, batch: Any, batch_idx: int, context: contextlib.AbstractContextManager[Any]
) -> dict[str, Tensor | None]:
    """Return the loss of a batch, all gradients, and the buffers behind it, by what a message calls them."""
    with context:
        outputs = module.training_step(
            *((batch, batch_idx) if training_step_arguments(module) == 2 else (batch,))
        )
    found: dict[str, Tensor | None] = {"the loss": None}
    loss = None
    if is_sum(outputs):
        loss, found["loss_count"] = outputs["loss_sum"], torch.as_tensor(outputs["loss_count"])
    elif outputs is not None:
        loss = loss_of(outputs)
    if loss is not None:
        found["the loss"] = loss
        if loss.requires_grad:
            module.backward(loss)
    found |= {f"the gradient of {name}": item.grad for name, item in module.named_parameters()}
    found |= {f"the buffer {name}": item for name, item in module.named_buffers()}
    return {name: None if item is None else item.detach().clone() for name, item in found.items()}


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two results have the same bits, NaN included."""
    if first is None or second is None:
        return first is second
    if first.is_sparse or second.is_sparse:  # refused by elastic training itself
        return True
    return first.shape == second.shape and bool(
        torch.equal(
            first.contiguous().flatten().view(torch.uint8), second.contiguous().flatten().view(torch.uint8)
        )
    )
