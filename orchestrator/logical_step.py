"""One optimizer step of all the logical ranks that a process hosts.

The loop runs the first logical rank's batches. Where they close a window, each other logical rank runs its
own batches of the window, from the same buffers and with random numbers of its own; then gradients, counts
and buffers are exchanged once, and the optimizer steps as ever. What a step is made of is
`orchestrator.step`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from modules.module import LightningModule
from orchestrator.closure_step import build_closure_step
from orchestrator.hooks import overrides
from orchestrator.lightning_optimizer import parameters_of
from orchestrator.logical_feed import LogicalFeed
from orchestrator.logical_slots import LogicalSlots
from orchestrator.loss import LossCounts, loss_of
from orchestrator.step import (
    build_commit,
    build_finish,
    build_forward_backward,
    build_zero_grad,
    make_scale,
)
from orchestrator.step_check import check_step
from orchestrator.step_parts import EmptyStep, Step, StepParts
from orchestrator.strategies.elastic import Elastic

if TYPE_CHECKING:
    from orchestrator.engine import Engine
    from orchestrator.logical_ranks import LogicalRanks


def build_logical_steps(parts: StepParts, engine: Engine, logical: LogicalRanks) -> tuple[Step, EmptyStep]:
    """Return what runs a batch of the first hosted logical rank, and what stands for it where it has none.

    Where the batch closes the window both run the other logical ranks, and step.
    """
    window, state, optimizer = parts.window, parts.state, parts.optimizer
    strategy, slots = cast(Elastic, parts.strategy), cast(LogicalSlots, parts.slots)
    hosted = logical.hosted
    counts = {rank: parts.counts if rank == hosted[0] else LossCounts() for rank in hosted}
    run: dict[int, Step] = {}
    for rank in hosted:
        slots.run_as(rank)
        run[rank] = build_forward_backward(replace(parts, counts=counts[rank]))
    slots.home()
    zero_grad = build_zero_grad(parts)
    commit = _build_commit(parts)
    transfer = engine.transfer
    stepped = set() if optimizer is None else {id(item) for item in parameters_of(optimizer)}
    apart = [item for item in parts.module.parameters() if id(item) not in stepped]  # nobody else clears them
    clock = time.perf_counter

    def run_one(rank: int, batch: Any, index: int) -> Any:
        logical.run_as(slots, rank)
        slots.batch, slots.batch_size = batch, 0
        logical.key("step", state.windows, index, rank)
        outputs = run[rank](batch, index)
        logical.home(slots)
        return outputs

    def open_window() -> None:
        strategy.seconds = 0.0
        strategy.open_window()
        for item in apart:
            item.grad = None

    def close_window(batch_idx: int) -> None:
        """Run the other logical ranks' batches of the window."""
        feed = cast(LogicalFeed, engine.feed)
        began = clock()
        strategy.end_rank(hosted[0])
        before = window.first, window.scale, slots.batch
        window.first = False
        for rank in hosted[1:]:
            strategy.begin_rank()
            counts[rank].open_window()
            for item in feed.batches_of(rank, batch_idx - batch_idx % engine.accumulate, batch_idx + 1):
                batch, window.scale = item.batch, item.scale
                if transfer is not None:
                    logical.running = rank
                    slots.table, slots.where = None, "a batch transfer hook"
                    batch = transfer(batch, 0)
                run_one(rank, batch, item.index)
            strategy.end_rank(rank)
        window.first, window.scale, slots.batch = before
        slots.batch_size = 0
        strategy.seconds += clock() - began
        uses_counts = any(bool(item.in_use) for item in counts.values())
        strategy.end_ranks({rank: counts[rank].on_host() for rank in hosted}, uses_counts)

    def close(outputs: Any, batch_idx: int) -> None:
        close_window(batch_idx)
        logical.key_once("commit")
        commit(outputs, batch_idx)
        logical.key_once("committed")

    def step(batch: Any, batch_idx: int) -> Any:
        if window.first:
            open_window()
        began = clock()
        outputs = run_one(hosted[0], batch, batch_idx)
        strategy.seconds += clock() - began
        if window.last:
            close(outputs, batch_idx)
        return outputs

    def empty_step(batch: Any, batch_idx: int) -> None:
        if window.first:
            open_window()
            if optimizer is not None:
                zero_grad(batch_idx)
        if window.last:
            close(None, batch_idx)

    if logical.checks_step and not logical.has_checked_step:
        return _checked_once(step, parts, logical), empty_step
    return step, empty_step


def _checked_once(step: Step, parts: StepParts, logical: LogicalRanks) -> Step:
    """Return a step whose first batch is run twice beforehand, and compared."""

    def checked_step(batch: Any, batch_idx: int) -> Any:
        if not logical.has_checked_step:
            logical.has_checked_step = True
            check_step(
                parts.module,
                batch,
                batch_idx,
                autocast=parts.precision.autocast,
                set_seeds=lambda: logical.key("step", parts.state.windows, batch_idx, logical.hosted[0]),
            )
        return step(batch, batch_idx)

    return checked_step


def _build_commit(parts: StepParts) -> Callable[[Any, int], None]:
    """Return what reduces and steps, given what the first logical rank's step returned, and its number."""
    optimizer, module, state, wrapped = parts.optimizer, parts.module, parts.state, parts.wrapped
    if optimizer is None:

        def count(outputs: Any, batch_idx: int) -> None:
            state.global_step += 1

        return count
    finish = build_finish(parts)
    commit = build_commit(parts, optimizer, finish)
    if not overrides(module, "optimizer_step", LightningModule):
        return lambda outputs, batch_idx: commit(outputs)
    build_closure_step(parts, lambda batch, batch_idx: None, finish)  # makes optimizer.step(closure=...) work

    def step_by_module(outputs: Any, batch_idx: int) -> None:
        make_scale(parts)
        loss = None if outputs is None else loss_of(outputs)
        parts.slots.enter("optimizer_step")
        module.optimizer_step(state.epoch, batch_idx, wrapped, lambda: loss)  # type: ignore[arg-type]
        state.global_step += 1

    return step_by_module
