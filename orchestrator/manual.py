"""Manual optimization: training_step runs backward and steps the optimizers, as many as there are.

Always holds: at a step of an optimizer its gradients are the mean over ranks, reduced once, whatever was
accumulated or toggled before; under 16-mixed the loss is scaled, and a step whose gradients overflow is
skipped; ``global_step`` counts each step of each optimizer. Gradients are reduced after each
`manual_backward`, so that code between backward and step sees the mean. A rank without a batch at an uneven
end runs another's batch with weight 0, so that it does what the others do; what it logs there is not taken.
A backward that does not go through `manual_backward` is neither scaled nor reduced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from orchestrator.optimizers import refuse_accumulation
from orchestrator.precision import Precision
from orchestrator.settings import Settings
from orchestrator.state import TrainState
from orchestrator.step_parts import EmptyStep, Step, Window, training_step_arguments
from orchestrator.strategies.strategy import Strategy


def refuse_settings(module: LightningModule, settings: Settings) -> None:
    """Refuse arguments of the Trainer that only automatic optimization can follow.

    Raises:
        MisconfigurationError: The module is optimised manually, and there is one.
    """
    if module.automatic_optimization:
        return
    batches = settings.accumulate_grad_batches
    refuse_accumulation(f"Trainer(accumulate_grad_batches={batches})", batches, module, [])
    if settings.gradient_clip_val:
        raise MisconfigurationError(
            f"Trainer(gradient_clip_val={settings.gradient_clip_val}) and "
            f"{type(module).__qualname__}.automatic_optimization=False: training_step clips. Leave it out, "
            "and call self.clip_gradients(optimizer, gradient_clip_val=...) before optimizer.step()."
        )


class ManualOptimization:
    """What a module's manual_backward and its optimizers' steps do.

    Args:
        module: The module.
        strategy: Reduces gradients.
        precision: Number format.
        hooks: Whom to call.
        slots: Told which hook runs.
        state: Its ``global_step`` counts steps.
        optimizers: The optimizers.
    """

    def __init__(
        self,
        *,
        module: LightningModule,
        strategy: Strategy,
        precision: Precision,
        hooks: HookTable,
        slots: LogSlots,
        state: TrainState,
        optimizers: Sequence[LightningOptimizer],
    ) -> None:
        self.module = module
        self.strategy = strategy
        self.precision = precision
        self.slots = slots
        self.state = state
        self.optimizers = list(optimizers)
        for item in self.optimizers:
            item.conductor = self
        self.window = Window()
        self._scaler = precision.scaler
        self._alone = strategy.world_size == 1
        self._before_backward = hooks["on_before_backward"]
        self._after_backward = hooks["on_after_backward"]
        self._before_step = hooks["on_before_optimizer_step"]
        self._own_backward = overrides(module, "backward", LightningModule)
        self._synchronizes = True
        self._scaled_steps: set[int] = set()
        self._unscaled: set[int] = set()
        self._unreduced: set[int] = set()
        self._unstepped: set[int] = set()

    # ---------------------------------------------------------------- what training_step calls

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run backward of `loss` with hooks, loss scaling and the reduction over ranks."""
        if self._scaled_steps:
            self._update_scaler()
        self._unstepped.update(range(len(self.optimizers)))
        if self._before_backward:
            self._call(self._before_backward, "on_before_backward", loss)
        if self.window.scale != 1.0:
            loss = loss * self.window.scale
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        if self._own_backward:
            self.module.backward(loss, *args, **kwargs)
        else:
            loss.backward(*args, **kwargs)
        if not self._alone:
            self._reduce()
        if self._after_backward:
            self._call(self._after_backward, "on_after_backward")

    def _reduce(self) -> None:
        """Make gradients means over ranks, unless told to accumulate on each rank."""
        if not self._synchronizes:
            self._unreduced.update(range(len(self.optimizers)))
            return
        found: dict[int, torch.nn.Parameter] = {}
        for index, optimizer in enumerate(self.optimizers):
            learning = [item for item in parameters_of(optimizer.optimizer) if item.requires_grad]
            if learning:
                self._unreduced.discard(index)
            found.update((id(item), item) for item in learning)
        self.strategy.reduce_after_backward(list(found.values()))

    def step(self, optimizer: LightningOptimizer, closure: Closure | None, options: dict[str, Any]) -> Any:
        """Run the closure, the hooks and the optimizer's step, and count it."""
        index = self._index_of(optimizer.optimizer)
        if index in self._scaled_steps:
            self._update_scaler()

        def finish() -> None:
            self._prepare(index, unscale=bool(self._before_step))
            if self._before_step:
                self._call(self._before_step, "on_before_optimizer_step", optimizer.optimizer)

        result = run_step(optimizer, closure, options, finish, self._scaler)
        if self._scaler is not None and has_gradients(optimizer.optimizer):
            self._scaled_steps.add(index)
        self._unstepped.discard(index)
        self.state.global_step += 1
        return result

    @contextmanager
    def synchronized(self, on: bool) -> Iterator[None]:
        """Within it backward reduces over ranks, or does not."""
        before, self._synchronizes = self._synchronizes, on
        self.strategy.sync_gradients(on)
        try:
            yield
        finally:
            self._synchronizes = before
            self.strategy.sync_gradients(before)

    def prepare_clipping(self, optimizer: Optimizer) -> None:
        """Reduce and unscale the optimizer's gradients, so that clipping sees what the step uses."""
        self._prepare(self._index_of(getattr(optimizer, "optimizer", optimizer)), unscale=True)

    def _prepare(self, index: int, *, unscale: bool) -> None:
        optimizer = self.optimizers[index].optimizer
        if index in self._unreduced:
            self._unreduced.discard(index)
            self.strategy.reduce_after_backward(parameters_of(optimizer))
        if self._scaler is not None and unscale and index not in self._unscaled and has_gradients(optimizer):
            self._unscaled.add(index)
            self._scaler.unscale_(optimizer)

    def _update_scaler(self) -> None:
        """Let the scale follow what the last steps found. Not between backward and a step that belong
        together, so that gradients are unscaled by what they were scaled with."""
        assert self._scaler is not None
        self._scaler.update()
        self._scaled_steps.clear()
        self._unscaled.clear()

    def _index_of(self, optimizer: Optimizer) -> int:
        for index, item in enumerate(self.optimizers):
            if item.optimizer is optimizer:
                return index
        raise MisconfigurationError(
            f"A {type(optimizer).__name__} is used that configure_optimizers did not return. Return it "
            "there, and take it from self.optimizers()."
        )

    def _call(self, hooks: Sequence[Callable[..., Any]], name: str, *arguments: Any) -> None:
        """Call hooks in the middle of another, whose logging goes on afterwards."""
        slots = self.slots
        before = slots.table, slots.where
        slots.enter(name)
        for hook in hooks:
            hook(*arguments)
        slots.table, slots.where = before

    # ---------------------------------------------------------------- what the loop calls

    def build_steps(self, window: Window) -> tuple[Step, EmptyStep]:
        """Return the functions that run a batch: this rank's own, and one that another rank has lent.

        Args:
            window: Its ``scale`` is read at each backward; 0 where the batch is another rank's.
        """
        self.window = window
        module, slots, autocast = self.module, self.slots, self.precision.autocast
        takes_index = training_step_arguments(module) == 2
        table = slots.table_for("training_step")
        run = self.strategy.training_step

        def step(batch: Any, batch_idx: int) -> Any:
            slots.table, slots.where = table, "training_step"
            arguments = (batch, batch_idx) if takes_index else (batch,)
            if autocast is None:
                outputs = run(*arguments)
            else:
                with autocast:
                    outputs = run(*arguments)
            if self._scaled_steps:
                self._update_scaler()
            return outputs

        def empty_step(batch: Any, batch_idx: int) -> None:
            sink = module.__dict__["_log_sink"]
            module.__dict__["_log_sink"] = _take_nothing
            try:
                step(batch, batch_idx)
            finally:
                module.__dict__["_log_sink"] = sink

        return step, empty_step

    # ---------------------------------------------------------------- checkpoints

    @property
    def holds_gradients(self) -> bool:
        """Whether gradients have come together that an optimizer has not stepped with yet."""
        return bool(self._unstepped)

    def state_dict(self) -> dict[str, list[int]]:
        """Return which optimizers have gradients that were not stepped with, and not reduced."""
        return {"unstepped": sorted(self._unstepped), "unreduced": sorted(self._unreduced)}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        """Take back what `state_dict` returned."""
        self._unstepped = set(state.get("unstepped", ()))
        self._unreduced = set(state.get("unreduced", ()))


def _take_nothing(*record: Any, **options: Any) -> None:
    """Take what is logged for a batch that is another rank's."""
