"""One training step: forward, backward, and at the end of an accumulation window reduce, clip, commit.

Built once for a module, optimizer, precision and strategy; in the loop it is a plain function call. Nothing
is visible outside until the optimizer has stepped. Two forms: the straight line, and the closure form for
optimizers that call the forward pass themselves (LBFGS) and modules that override ``optimizer_step``; both
run the same hooks in the same order. Manual optimization is another file.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modules.module import LightningModule
from orchestrator.errors import MisconfigurationError
from orchestrator.hooks import HookTable, overrides
from orchestrator.lightning_optimizer import (
    Closure,
    LightningOptimizer,
    has_gradients,
    parameters_of,
    run_step,
)
from orchestrator.log_slots import LogSlots
from orchestrator.loss import LossCounts, is_sum, loss_of
from orchestrator.optimizers import needs_closure
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


def build_step(parts: StepParts) -> Step:
    """Return the function that runs one batch and, at the end of a window, the optimizer.

    It returns what the module's training step returned.
    """
    forward_backward = _build_forward_backward(parts)
    finish = _build_finish(parts)
    optimizer = parts.optimizer
    state, window = parts.state, parts.window
    if optimizer is None:

        def step_without(batch: Any, batch_idx: int) -> Any:
            outputs = forward_backward(batch, batch_idx)
            if window.last:
                state.global_step += 1
            return outputs

        return step_without
    if _calls_optimizer_itself(parts):
        return _build_closure_step(parts, forward_backward, finish)
    commit = _build_commit(parts, optimizer, finish)

    def step(batch: Any, batch_idx: int) -> Any:
        outputs = forward_backward(batch, batch_idx)
        if window.last:
            commit()
        return outputs

    return step


def build_empty_step(parts: StepParts) -> EmptyStep:
    """Return the function that stands for a step on a rank that has no batch, so that it does what others do.

    It also closes a window whose end was not known when its last batch ran.
    """
    module, optimizer, state, window = parts.module, parts.optimizer, parts.state, parts.window
    finish = _build_finish(parts)
    zero_grad = _build_zero_grad(parts)
    commit = None if optimizer is None else _build_commit(parts, optimizer, finish)
    along = _build_along(parts) if parts.strategy.in_step else None
    own_step = _calls_optimizer_itself(parts)

    def step(batch: Any, batch_idx: int) -> None:
        if optimizer is None or commit is None:
            state.global_step += window.last
            return
        if window.first:
            zero_grad(batch_idx)
        if along is not None:
            along()
        if not window.last:
            return
        if own_step:
            _make_scale(parts)
            module.optimizer_step(state.epoch, batch_idx, parts.wrapped, _nothing)  # type: ignore[arg-type]
            state.global_step += 1
        else:
            commit()

    return step


def _nothing() -> None:
    """The closure where no forward pass is left to run."""


def _build_along(parts: StepParts) -> Callable[[], None]:
    """Return what runs forward and backward for the sake of other ranks, with weight 0."""
    context = parts.precision.autocast or contextlib.nullcontext()

    def along() -> None:
        with context:
            loss = loss_of(parts.strategy.run_along())
        if loss is not None:
            (loss * 0.0).backward()

    return along


def _calls_optimizer_itself(parts: StepParts) -> bool:
    """Whether the module or the optimizer runs the forward pass within the optimizer's step."""
    if overrides(parts.module, "optimizer_step", LightningModule):
        return True
    return parts.optimizer is not None and needs_closure(parts.optimizer)


def _build_commit(parts: StepParts, optimizer: Optimizer, finish: Callable[[], None]) -> Callable[[], None]:
    """Return what ends a window: the rest of the reduction, clipping, and the optimizer's step."""
    scaler, state = parts.precision.scaler, parts.state
    if scaler is None:

        def commit() -> None:
            finish()
            optimizer.step()
            state.global_step += 1

        return commit

    def commit_scaled() -> None:
        _make_scale(parts)
        finish()
        if has_gradients(optimizer):
            scaler.step(optimizer)
            scaler.update()
        state.global_step += 1

    return commit_scaled


def _make_scale(parts: StepParts) -> None:
    """Let the scaler make its scale, where no loss has done so yet."""
    if parts.precision.scaler is not None:
        parts.precision.scaler.scale(torch.zeros((), device=parts.strategy.device))


def _build_zero_grad(parts: StepParts) -> Callable[[int], None]:
    """Return what opens a window: the hooks and the zeroing of gradients."""
    module, slots, state, optimizer = parts.module, parts.slots, parts.state, parts.optimizer
    before = parts.hooks["on_before_zero_grad"]
    own = overrides(module, "optimizer_zero_grad", LightningModule)
    counts = parts.counts

    def zero_grad(batch_idx: int) -> None:
        assert optimizer is not None
        if counts.in_use:
            counts.open_window()
        if before:
            slots.enter("on_before_zero_grad")
            for hook in before:
                hook(optimizer)
        if own:
            slots.enter("optimizer_zero_grad")
            module.optimizer_zero_grad(state.epoch, batch_idx, optimizer)
        else:
            optimizer.zero_grad()

    return zero_grad


def _build_forward_backward(parts: StepParts) -> Step:
    module, strategy, slots, hooks, window = (
        parts.module,
        parts.strategy,
        parts.slots,
        parts.hooks,
        parts.window,
    )
    autocast, scaler, optimizer = parts.precision.autocast, parts.precision.scaler, parts.optimizer
    takes_index = training_step_arguments(module) == 2
    reduced_step, local_step = strategy.training_step, strategy.local_step
    alone = strategy.world_size == 1
    before_backward, after_backward = hooks["on_before_backward"], hooks["on_after_backward"]
    zero_grad = _build_zero_grad(parts)
    own_backward = overrides(module, "backward", LightningModule)
    table = slots.table_for("training_step")
    counts = parts.counts

    def forward_backward(batch: Any, batch_idx: int) -> Any:
        if alone or window.by_hand:
            run = local_step
        else:
            strategy.sync_gradients(window.last)
            run = reduced_step
        slots.table = table
        arguments = (batch, batch_idx) if takes_index else (batch,)
        if autocast is None:
            outputs = run(*arguments)
        else:
            with autocast:
                outputs = run(*arguments)
        if optimizer is None:
            return outputs
        loss, summed = None, False
        if outputs.__class__ is Tensor and not outputs.ndim:
            loss = outputs
        elif is_sum(outputs):
            summed = True
        else:
            loss = loss_of(outputs)
        if window.first:
            zero_grad(batch_idx)
        if counts.in_use is not summed and outputs is not None:
            counts.settle(summed)
        if summed:
            loss, outputs = counts.take(outputs)
        elif loss is None:
            if not alone and not window.by_hand:
                raise RuntimeError(
                    f"training_step returned None for batch {batch_idx} on rank {strategy.rank}: other "
                    "ranks wait for its gradients. "
                    "Return a loss; multiply it by 0 to leave a batch out."
                )
            return outputs
        else:
            if window.size != 1:
                loss = loss / window.size
            if window.scale != 1.0:
                loss = loss * window.scale
        if before_backward:
            slots.enter("on_before_backward")
            for hook in before_backward:
                hook(loss)
        if scaler is not None:
            loss = scaler.scale(loss)
        if own_backward:
            slots.enter("backward")
            module.backward(loss)
        else:
            loss.backward()
        if after_backward:
            slots.enter("on_after_backward")
            for hook in after_backward:
                hook()
        return outputs

    return forward_backward


def _build_finish(parts: StepParts) -> Callable[[], None]:
    """Return what runs between the last backward of a window and the optimizer's step."""
    module, slots, hooks, window = parts.module, parts.slots, parts.hooks, parts.window
    scaler, optimizer, strategy = parts.precision.scaler, parts.optimizer, parts.strategy
    before_step = hooks["on_before_optimizer_step"]
    clip_val, clip_algorithm = parts.clip_val, parts.clip_algorithm
    own_clipping = overrides(module, "configure_gradient_clipping", LightningModule)
    clips = own_clipping or bool(clip_val)
    counts = parts.counts

    def finish() -> None:
        assert optimizer is not None
        if window.by_hand:
            strategy.reduce_gradients(parameters_of(optimizer))
            if any(strategy.counts(int(bool(counts.in_use)))):
                counts.in_use = True  # also on a rank that has had no batch yet
        if counts.in_use:
            counts.scale(parameters_of(optimizer), strategy)
        elif window.rescale != 1.0:
            for item in parameters_of(optimizer):
                if item.grad is not None:
                    item.grad.mul_(window.rescale)
        if scaler is not None and (before_step or clips) and has_gradients(optimizer):
            scaler.unscale_(optimizer)
        if before_step:
            slots.enter("on_before_optimizer_step")
            for hook in before_step:
                hook(optimizer)
        if clips:
            slots.enter("configure_gradient_clipping")
            if own_clipping:
                module.configure_gradient_clipping(optimizer, clip_val, clip_algorithm)
            else:
                module.clip_gradients(optimizer, clip_val, clip_algorithm)

    return finish


class AutomaticOptimization:
    """What a module that is optimised automatically is attached to: its optimizers, nothing to call.

    Args:
        optimizers: As the module sees them.
    """

    def __init__(self, optimizers: list[LightningOptimizer]) -> None:
        self.optimizers = optimizers

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run backward; the loop does, so the module does not ask for it."""
        loss.backward(*args, **kwargs)

    def prepare_clipping(self, optimizer: Optimizer) -> None:
        """Gradients are ready when the loop clips them."""


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


def _build_closure_step(parts: StepParts, forward_backward: Step, finish: Closure) -> Step:
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
