"""The form of a step in which the optimizer runs the forward pass: LBFGS, or a module's own optimizer_step.

The closure runs forward and backward; what follows a window (reduction, unscaling, hooks, clipping) runs
between it and the optimizer's own step. An optimizer_step that never runs the closure is a
`MisconfigurationError`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from orchestrator.errors import MisconfigurationError
from orchestrator.lightning_optimizer import Closure, LightningOptimizer, has_gradients, run_step
from orchestrator.loss import loss_of
from orchestrator.step_parts import Step, StepParts


class _ClosureConductor:
    """Steps the optimizer of a module that calls ``optimizer.step(closure=...)`` in its own optimizer_step.

    Args:
        finish: What comes between backward and the optimizer's step.
        scaler: Of 16-mixed, or None.
    """

    def __init__(self, finish: Closure, scaler: torch.amp.GradScaler | None) -> None:
        self._finish = finish
        self._scaler = scaler

    def step(self, optimizer: LightningOptimizer, closure: Closure | None, options: dict[str, Any]) -> Any:
        """Run the closure, what follows a window, and the optimizer's step."""
        result = run_step(optimizer, closure, options, self._finish, self._scaler)
        if self._scaler is not None and has_gradients(optimizer.optimizer):
            self._scaler.update()
        return result

    def synchronized(self, on: bool) -> AbstractContextManager[None]:
        """When to reduce is the loop's to say."""
        return nullcontext()


def build_closure_step(parts: StepParts, forward_backward: Step, finish: Closure) -> Step:
    """Return the function that runs a batch, within the optimizer's step where it closes a window.

    Args:
        parts: What the step is made of, with an optimizer.
        forward_backward: Runs a batch without stepping.
        finish: Runs between the last backward of a window and the optimizer's step.
    """
    module, state, window, slots, optimizer = (
        parts.module,
        parts.state,
        parts.window,
        parts.slots,
        parts.wrapped,
    )
    assert optimizer is not None
    optimizer.conductor = _ClosureConductor(finish, parts.precision.scaler)

    def step(batch: Any, batch_idx: int) -> Any:
        if not window.last:
            return forward_backward(batch, batch_idx)
        seen: list[Any] = []

        def closure() -> Any:
            outputs = forward_backward(batch, batch_idx)
            seen.append(outputs)
            return loss_of(outputs)

        slots.enter("optimizer_step")
        module.optimizer_step(state.epoch, batch_idx, optimizer, closure)  # type: ignore[arg-type]
        state.global_step += 1
        if not seen:
            raise MisconfigurationError(
                f"{type(module).__qualname__}.optimizer_step did not run the closure, so there was no "
                "forward pass. "
                "Call optimizer.step(closure=optimizer_closure)."
            )
        return seen[-1]

    return step
