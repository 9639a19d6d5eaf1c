"""Validation, testing and prediction: each sample once, exact metrics, nothing left changed.

Plain functions over an engine. Submodules return to the very mode they were in. Ranks may have different
numbers of batches: evaluation has no collective per batch, so nobody waits; metrics are reduced once at the
end, weighted by samples.
"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from modules.combined_reading import Reader
from modules.loader import RankLoader
from orchestrator.log_slots import LogSlots

if TYPE_CHECKING:
    from orchestrator.engine import Engine

_HOOKS = {"validate": "validation", "sanity": "validation", "test": "test", "predict": "predict"}


def evaluate(
    engine: Engine,
    stage: str,
    loaders: list[Reader],
    limits: list[int | None],
    before_end: Callable[[], None] | None = None,
) -> list[dict[str, float]] | list[list[Any]]:
    """Run all batches of `loaders` through the step of `stage` (validate, sanity, test or predict).

    Args:
        engine: Whose module, hooks and metrics.
        stage: What to run.
        loaders: One or several.
        limits: At most so many batches of each; None for all.
        before_end: Called when metrics are final, before the ``on_*_end`` hooks.

    Returns:
        For predict, each loader's outputs by batch, of this rank. Otherwise one dictionary a loader of the
        epoch metrics that go to loggers.
    """
    hook = _HOOKS[stage]
    slots = engine.train_slots.for_evaluation()
    step = _step_function(engine.strategy.step_of(getattr(engine.module, f"{hook}_step")), len(loaders) > 1)
    outputs: list[list[Any]] = []
    with _attached(engine, stage, slots), _evaluation_mode(engine, hook), engine.without_gradients(stage):
        engine.key_once(f"{stage} begins")
        engine.stopping.begin_evaluation()
        engine.call(f"on_{hook}_start")
        engine.call(f"on_{hook}_epoch_start")
        for index, (loader, limit) in enumerate(zip(loaders, limits, strict=True)):
            if engine.logical is not None:
                for own in engine.logical.evaluation_batches(slots, loader, limit, stage, index):
                    _run_loader(engine, stage, hook, step, slots, loader, limit, index, len(loaders), own)
                continue
            outputs.append(_run_loader(engine, stage, hook, step, slots, loader, limit, index, len(loaders)))
        engine.key_once(f"{stage} ends")
        engine.stopping.end_evaluation()
        if engine.stopping.told:
            engine.stopping.check()
        values = engine.reporting.reduce(slots)
        engine.call(f"on_{hook}_epoch_end")
        if engine.hooks[f"on_{hook}_epoch_end"]:
            values = engine.reporting.reduce(slots)
        if stage != "sanity":
            engine.reporting.log_epoch(slots, values)
        if before_end is not None:
            before_end()
        engine.call(f"on_{hook}_end")
        results = _by_loader(slots, values, len(loaders))
        slots.clear()
    if stage == "predict":
        return outputs if engine.job.return_predictions else [[] for _ in outputs]
    return results


def _run_loader(
    engine: Engine,
    stage: str,
    hook: str,
    step: Callable[..., Any],
    slots: LogSlots,
    loader: Reader,
    limit: int | None,
    index: int,
    num_loaders: int,
    own: Iterator[Any] | None = None,
) -> list[Any]:
    predictions = engine.predictions
    keep = stage == "predict" and predictions.keeps
    suffix = f"/dataloader_idx_{index}" if num_loaders > 1 else ""
    table = slots.table_for(f"{hook}_step", suffix) if stage != "predict" else None
    before, after = engine.hooks[f"on_{hook}_batch_start"], engine.hooks[f"on_{hook}_batch_end"]
    extra = (index,) if num_loaders > 1 else ()
    transfer = engine.transfer
    autocast = engine.precision.autocast
    kept: list[Any] = []
    if stage == "predict":
        predictions.outputs.append(kept)
    total = loader.num_batches if limit is None else min(limit, loader.num_batches or limit)
    clock, due = time.monotonic, 0.0
    loader.start_epoch(engine.state.epoch)
    if stage == "predict":
        indices = loader.note_batches() if isinstance(loader, RankLoader) and predictions.notes else []
        predictions.indices.append(indices)
    stopping, within = engine.stopping, not engine.strategy.in_step  # else ranks must run equally many
    batch_idx = 0
    reads_all = loader.exact and limit == loader.num_batches
    batches: Iterable[Any]
    batches = itertools.islice(loader.iterate(), None if reads_all else limit) if own is None else own
    context: AbstractContextManager[Any] = nullcontext() if autocast is None else autocast

    def along(batch: Any) -> None:
        with context:
            step(batch if transfer is None else transfer(batch, index), 0, index)

    for batch in engine.strategy.keep_pace(batches, along):
        if transfer is not None:
            slots.table, slots.where = None, "a batch transfer hook"
            batch = transfer(batch, index)
        slots.batch, slots.batch_size = batch, 0
        if before:
            slots.enter(f"on_{hook}_batch_start", suffix)
            for call in before:
                call(batch, batch_idx, *extra)
        slots.table, slots.where = table, f"{hook}_step"
        if autocast is None:
            output = step(batch, batch_idx, index)
        else:
            with autocast:
                output = step(batch, batch_idx, index)
        if after:
            slots.enter(f"on_{hook}_batch_end", suffix)
            for call in after:
                call(output, batch, batch_idx, *extra)
        if engine.logical is None or engine.logical.running == 0:
            engine.reporting.log_evaluation_step(slots, stage, index)
        if keep:
            kept.append(engine.to_host(output))
        batch_idx += 1
        if within:
            stopping.count_evaluated()
            if stopping.told:
                stopping.check()
        if engine.shows_progress and clock() >= due:
            due = clock() + engine.progress_interval_s
            engine.show(stage, batch_idx, total)
    slots.batch = None
    engine.show(stage, batch_idx, total, done=True)
    return kept


def _by_loader(
    slots: LogSlots, values: dict[tuple[str, str], float], num_loaders: int
) -> list[dict[str, float]]:
    results: list[dict[str, float]] = [{} for _ in range(num_loaders)]
    for slot in slots.epoch_slots():
        value = values.get((slot.name, slot.hook))
        if value is None or not slot.choices.logger:
            continue
        _, mark, number = slot.loader.rpartition("_")
        for index in [int(number)] if mark else range(num_loaders):
            results[index][slot.epoch_name] = value
    return results


def _step_function(own: Callable[..., Any], several_loaders: bool) -> Callable[..., Any]:
    """Return the module's step as a function of (batch, batch_idx, dataloader_idx); it may take fewer.

    A third parameter that has a default gets the loader's number only where there are several, unless it is
    called ``dataloader_idx``: it may be something else.
    """
    parameters = list(inspect.signature(own).parameters.values())
    positional = [
        item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
    ]
    taken = min(3, len(positional))
    if any(item.kind is item.VAR_POSITIONAL for item in parameters):
        taken = 3 if several_loaders else max(2, taken)
    if taken == 3 and not several_loaders:
        third = positional[2]
        taken = 3 if third.name == "dataloader_idx" or third.default is third.empty else 2
    if taken == 3:
        return own
    if taken == 2:
        return lambda batch, batch_idx, index: own(batch, batch_idx)
    return lambda batch, batch_idx, index: own(batch)


@contextmanager
def _attached(engine: Engine, stage: str, slots: LogSlots) -> Iterator[None]:
    """Send what the module logs to `slots`, and say which stage runs, until the end."""
    before = engine.state.stage, engine.slots
    engine.state.stage, engine.slots = stage, slots
    engine.attach_slots()
    engine.train_slots.pause(evaluating=True)
    try:
        yield
    finally:
        engine.train_slots.pause(evaluating=False)
        engine.state.stage, engine.slots = before
        engine.attach_slots()


@contextmanager
def _evaluation_mode(engine: Engine, hook: str) -> Iterator[None]:
    """Put every submodule into eval mode, and afterwards each back into its own; or do as the module says."""
    module, own = engine.module, engine.hooks.of_module
    modes = [(item, item.training) for item in module.modules()]

    def back() -> None:
        for item, mode in modes:
            if item.training is not mode:
                item.training = mode

    try:
        for to_eval in own(f"on_{hook}_model_eval") or (module.eval,):
            to_eval()
        yield
        for to_train in own(f"on_{hook}_model_train") or (back,):
            to_train()
    except BaseException:
        back()
        raise


def gradient_context(inference: bool) -> AbstractContextManager[Any]:
    """Return ``torch.inference_mode()`` or ``torch.no_grad()``."""
    return torch.inference_mode() if inference else torch.no_grad()
