"""One training step: forward, backward, and at the end of an accumulation window reduce, clip, commit.

Built once for a module, optimizer, precision and strategy; in the loop it is a plain function call. Nothing
is visible outside until the optimizer has stepped. Two forms: the straight line, and the closure form for
optimizers that call the forward pass themselves (LBFGS) and modules that override ``optimizer_step``; both
run the same hooks in the same order. Manual optimization is another file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modules.module import LightningModule
from orchestrator.closure_step import build_closure_step
from orchestrator.hooks import overrides
from orchestrator.lightning_optimizer import has_gradients, parameters_of
from orchestrator.loss import is_sum, loss_of
from orchestrator.optimizers import needs_closure
from orchestrator.step_parts import EmptyStep, Step, StepParts, training_step_arguments


def build_step(parts: StepParts) -> Step:
    """Return the function that runs one batch and, at the end of a window, the optimizer.

    It returns what the module's training step returned.
    """
    forward_backward = build_forward_backward(parts)
    finish = build_finish(parts)
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
        return build_closure_step(parts, forward_backward, finish)
    commit = build_commit(parts, optimizer, finish)

    def step(batch: Any, batch_idx: int) -> Any:
        outputs = forward_backward(batch, batch_idx)
        if window.last:
            commit(outputs)
        return outputs

    return step


def build_empty_step(parts: StepParts) -> EmptyStep:
    """Return the function that stands for a step on a rank that has no batch, so that it does what others do.

    It also closes a window whose end was not known when its last batch ran.
    """
    module, optimizer, state, window = parts.module, parts.optimizer, parts.state, parts.window
    strategy = parts.strategy
    finish = build_finish(parts)
    zero_grad = build_zero_grad(parts)
    commit = None if optimizer is None else build_commit(parts, optimizer, finish)
    along = _build_along(parts) if strategy.in_step else None
    own_step = _calls_optimizer_itself(parts)

    def step(batch: Any, batch_idx: int) -> None:
        if optimizer is None or commit is None:
            state.global_step += window.last
            return
        if window.first:
            zero_grad(batch_idx)
        if along is not None:
            strategy.sync_gradients(window.last)
            along()
        if not window.last:
            return
        if own_step:
            make_scale(parts)
            module.optimizer_step(state.epoch, batch_idx, parts.wrapped, _nothing)  # type: ignore[arg-type]
            state.global_step += 1
        else:
            commit(None)

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


def build_commit(parts: StepParts, optimizer: Optimizer, finish: Callable[[], None]) -> Callable[[Any], None]:
    """Return what ends a window, given what the training step returned: the rest of the reduction, clipping,
    and the optimizer's step.
    """
    scaler, state, before_commit = parts.precision.scaler, parts.state, parts.before_commit
    if scaler is None and before_commit is None:

        def commit(outputs: Any) -> None:
            finish()
            optimizer.step()
            state.global_step += 1

        return commit

    def guarded_commit(outputs: Any) -> None:
        if scaler is not None:
            make_scale(parts)
        finish()
        if before_commit is not None:
            before_commit(outputs)
        if scaler is None:
            optimizer.step()
        elif has_gradients(optimizer):
            scaler.step(optimizer)
            scaler.update()
        state.global_step += 1

    return guarded_commit


def make_scale(parts: StepParts) -> None:
    """Let the scaler make its scale, where no loss has done so yet."""
    if parts.precision.scaler is not None:
        parts.precision.scaler.scale(torch.zeros((), device=parts.strategy.device))


def build_zero_grad(parts: StepParts) -> Callable[[int], None]:
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


def build_forward_backward(parts: StepParts) -> Step:
    """Return what runs a batch forward and backward, and opens the window where it is the first."""
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
    zero_grad = build_zero_grad(parts)
    own_backward = overrides(module, "backward", LightningModule)
    table = slots.table_for("training_step")
    counts = parts.counts

    def forward_backward(batch: Any, batch_idx: int) -> Any:
        if not alone:
            strategy.sync_gradients(window.last)
        run = local_step if alone or window.by_hand else reduced_step
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


def build_finish(parts: StepParts) -> Callable[[], None]:
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
            strategy.scale_gradients(parameters_of(optimizer), window.rescale)
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
