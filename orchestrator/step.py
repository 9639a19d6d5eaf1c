"""One training step: forward, backward, and at the end of an accumulation window reduce, clip, commit.

Built once for a module, optimizer, precision and strategy; in the loop it is a plain function call. Nothing
is visible outside until the optimizer has stepped. Two forms: the straight line, and the closure form for
optimizers that call the forward pass themselves (LBFGS) and modules that override ``optimizer_step``; both
run the same hooks in the same order.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modules.module import LightningModule
from orchestrator.errors import MisconfigurationError
from orchestrator.hooks import HookTable, overrides
from orchestrator.log_slots import LogSlots
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
        window: Read at each step.
        clip_val: Clip gradients at this, or None.
        clip_algorithm: ``"norm"`` or ``"value"``.
    """

    module: LightningModule
    strategy: Strategy
    precision: Precision
    hooks: HookTable
    slots: LogSlots
    state: TrainState
    optimizer: Optimizer | None
    window: Window
    clip_val: float | None
    clip_algorithm: str | None


def training_step_arguments(module: LightningModule) -> int:
    """Return how many of (batch, batch_idx) the module's training step takes.

    Raises:
        MisconfigurationError: It takes none, or more than two that have no default.
    """
    parameters = list(inspect.signature(module.training_step).parameters.values())
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
        return _build_closure_step(parts, optimizer, forward_backward, finish)
    commit = _build_commit(parts, optimizer, finish)

    def step(batch: Any, batch_idx: int) -> Any:
        outputs = forward_backward(batch, batch_idx)
        if window.last:
            commit()
        return outputs

    return step


def build_empty_step(parts: StepParts) -> Callable[[int], None]:
    """Return the function that stands for a step on a rank that has no batch, so that it does what others do.

    It also closes a window whose end was not known when its last batch ran.
    """
    module, optimizer, state, window = parts.module, parts.optimizer, parts.state, parts.window
    finish = _build_finish(parts)
    zero_grad = _build_zero_grad(parts)
    commit = None if optimizer is None else _build_commit(parts, optimizer, finish)
    along = _build_along(parts) if parts.strategy.in_step else None
    own_step = _calls_optimizer_itself(parts)

    def step(batch_idx: int) -> None:
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
            module.optimizer_step(state.epoch, batch_idx, optimizer, finish)
            state.global_step += 1
        else:
            commit()

    return step


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
    nothing = torch.zeros((), device=parts.strategy.device)

    def commit_scaled() -> None:
        scaler.scale(nothing)  # makes the scale, where no loss has done so yet
        finish()
        if _has_gradients(optimizer):
            scaler.step(optimizer)
            scaler.update()
        state.global_step += 1

    return commit_scaled


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(item.grad is not None for group in optimizer.param_groups for item in group["params"])


def _build_zero_grad(parts: StepParts) -> Callable[[int], None]:
    """Return what opens a window: the hooks and the zeroing of gradients."""
    module, slots, state, optimizer = parts.module, parts.slots, parts.state, parts.optimizer
    before = parts.hooks["on_before_zero_grad"]
    own = overrides(module, "optimizer_zero_grad", LightningModule)

    def zero_grad(batch_idx: int) -> None:
        assert optimizer is not None
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
        loss = outputs if outputs.__class__ is Tensor and not outputs.ndim else loss_of(outputs)
        if window.first:
            zero_grad(batch_idx)
        if loss is None:
            if not alone and not window.by_hand:
                raise RuntimeError(
                    f"training_step returned None for batch {batch_idx} on rank {strategy.rank}: other "
                    "ranks wait for its gradients. "
                    "Return a loss; multiply it by 0 to leave a batch out."
                )
            return outputs
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

    def finish() -> None:
        assert optimizer is not None
        if window.by_hand:
            strategy.reduce_gradients(item for group in optimizer.param_groups for item in group["params"])
        if window.rescale != 1.0:
            for group in optimizer.param_groups:
                for item in group["params"]:
                    if item.grad is not None:
                        item.grad.mul_(window.rescale)
        if scaler is not None and (before_step or clips) and _has_gradients(optimizer):
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


def _build_closure_step(
    parts: StepParts, optimizer: Optimizer, forward_backward: Step, finish: Callable[[], None]
) -> Step:
    if parts.precision.scaler is not None:
        raise MisconfigurationError(
            "precision='16-mixed' scales the loss, which does not go together with an optimizer that "
            "calls the forward pass itself "
            f"({type(optimizer).__name__}) or an overridden optimizer_step. Use 'bf16-mixed' or 32."
        )
    module, state, window, slots = parts.module, parts.state, parts.window, parts.slots

    def step(batch: Any, batch_idx: int) -> Any:
        if not window.last:
            return forward_backward(batch, batch_idx)
        seen: list[Any] = []

        def closure() -> Any:
            outputs = forward_backward(batch, batch_idx)
            seen.append(outputs)
            finish()
            return loss_of(outputs)

        slots.enter("optimizer_step")
        module.optimizer_step(state.epoch, batch_idx, optimizer, closure)
        state.global_step += 1
        if not seen:
            raise MisconfigurationError(
                f"{type(module).__qualname__}.optimizer_step did not run the closure, so there was no "
                "forward pass. "
                "Call optimizer.step(closure=optimizer_closure)."
            )
        return seen[-1]

    return step


def loss_of(outputs: Any) -> Tensor | None:
    """Return the loss in what a training step returned: a tensor, a dictionary with ``loss``, or None.

    Raises:
        MisconfigurationError: It is something else.
    """
    if outputs is None or isinstance(outputs, Tensor):
        loss = outputs
    elif isinstance(outputs, dict) and isinstance(outputs.get("loss"), Tensor):
        loss = outputs["loss"]
    else:
        found = (
            f"a dictionary with keys {sorted(map(str, outputs))}"
            if isinstance(outputs, dict)
            else type(outputs).__name__
        )
        raise MisconfigurationError(
            f"training_step returned {found}. Return the loss as a tensor, a dictionary with 'loss', or None."
        )
    if loss is not None and loss.numel() != 1:
        raise MisconfigurationError(
            f"training_step returned a loss of shape {tuple(loss.shape)}. Return one number: reduce it, "
            "say by .mean()."
        )
    return loss


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether the optimizer calls the forward pass itself, like LBFGS."""
    parameters = inspect.signature(type(optimizer).step).parameters
    closure = parameters.get("closure")
    return closure is not None and closure.default is closure.empty
