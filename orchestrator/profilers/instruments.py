"""Puts a profiler between the loops and what they call: hooks, steps, backward, optimizers, data.

Only built when a profiler was asked for, so that a run without one is not touched at all. Functions are
replaced on the objects of this run (module, optimizers, loaders, engine) when it starts, and given back when
it ends, however it ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from modules.loader import RankLoader
from modules.module import LightningModule
from orchestrator.callbacks.callback import Callback
from orchestrator.hooks import Hook, HookTable, overrides
from orchestrator.profilers.profiler import PassThroughProfiler, Profiler

if TYPE_CHECKING:
    from orchestrator.engine import Engine

_STEPS = ("training_step", "validation_step", "test_step", "predict_step")
_OF_ENGINE = {"evaluate": "run_evaluation", "step_scheduler": "lr_scheduler_step"}
_OF_REPORTING = {"log_steps": "log_point", "reduce": "reduce_metrics", "log_epoch": "log_epoch"}


class Instruments:
    """What measures one run.

    Args:
        profiler: Takes the measurements.
    """

    def __init__(self, profiler: Profiler) -> None:
        self._profiler = profiler
        self._replaced: list[tuple[Any, str, Any]] = []
        self._absent = object()

    def hooks(self, table: HookTable) -> HookTable:
        """Return the hook table with each hook measured, as ``[Callback]Name.hook``."""
        return _MeasuredHooks(table, self._measured)

    def watch_steps(self, module: LightningModule) -> None:
        """Measure the module's steps; before the strategy takes hold of them."""
        for name in _STEPS:
            if overrides(module, name, LightningModule) or name == "predict_step":
                self._replace(module, name, name)
        self._replace(module, "backward", "backward")

    def install(self, engine: Engine) -> None:
        """Measure what the engine's loops call; after its pieces are built, before a loop starts."""
        self.watch_optimizers(engine.optimizers)
        for name, label in _OF_ENGINE.items():
            self._replace(engine, name, label)
        for name, label in _OF_REPORTING.items():
            self._replace(engine.reporting, name, label)
        self._replace(engine.trainer, "save_checkpoint", "save_checkpoint")
        if engine.transfer is not None:
            self._replace(engine, "transfer", "batch_to_device")
        watch = getattr(self._profiler, "watch", None)
        if watch is not None:
            watch(engine.module)

    def watch_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        """Measure the optimizers' steps."""
        for optimizer in optimizers:
            self._replace(optimizer, "step", "optimizer_step")
            self._replace(optimizer, "zero_grad", "optimizer_zero_grad")

    def watch_loader(self, loader: RankLoader, kind: str) -> None:
        """Measure how long each batch of a loader is waited for, as ``train_data_next`` and the like."""
        iterate = loader.iterate

        def measured(*args: Any, **kwargs: Any) -> Iterator[Any]:
            return self._batches(iterate(*args, **kwargs), f"{kind}_data_next")

        loader.__dict__["iterate"] = measured
        self._replaced.append((loader, "iterate", self._absent))

    def strip(self, original: LightningModule, twin: LightningModule) -> None:
        """Give a copy of a module its own functions: what is measured is the original's."""
        for owner, name, before in self._replaced:
            if owner is original:
                twin.__dict__.pop(name, None)
                if before is not self._absent:
                    twin.__dict__[name] = before

    def remove(self) -> None:
        """Give back what was replaced. May be called again."""
        while self._replaced:
            owner, name, before = self._replaced.pop()
            if before is self._absent:
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = before

    def _batches(self, iterator: Iterator[Any], label: str) -> Iterator[Any]:
        nothing = object()
        while True:
            with self._profiler.profile(label):
                batch = next(iterator, nothing)
            if batch is nothing:
                return
            yield batch
            self._profiler.step()

    def _replace(self, owner: Any, name: str, label: str) -> None:
        own = owner.__dict__.get(name, self._absent)
        owner.__dict__[name] = self._measured(getattr(owner, name), label)
        self._replaced.append((owner, name, own))

    def _measured(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        profiler = self._profiler

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            profiler.start(label)
            try:
                return function(*args, **kwargs)
            finally:
                profiler.stop(label)

        bound_to = getattr(function, "__self__", None)
        if bound_to is not None:
            measured.__self__ = bound_to  # type: ignore[attr-defined]
        return measured


class _MeasuredHooks(HookTable):
    """A hook table whose hooks are measured."""

    def __init__(self, table: HookTable, measured: Callable[[Hook, str], Hook]) -> None:
        self.__dict__.update(table.__dict__, _tables={})
        self._measured = measured

    def of_callbacks(self, name: str, only: Callable[[Callback], bool] | None = None) -> tuple[Hook, ...]:
        """Return the callbacks' methods, measured."""
        return self._all("Callback", name, super().of_callbacks(name, only))

    def of_module(self, name: str) -> tuple[Hook, ...]:
        """Return the module's method, measured."""
        return self._all("LightningModule", name, super().of_module(name))

    def of_datamodule(self, name: str) -> tuple[Hook, ...]:
        """Return the data module's method, measured."""
        return self._all("LightningDataModule", name, super().of_datamodule(name))

    def _all(self, kind: str, name: str, hooks: tuple[Hook, ...]) -> tuple[Hook, ...]:
        return tuple(self._measured(hook, f"[{kind}]{_owner_of(hook)}.{name}") for hook in hooks)


def _owner_of(hook: Hook) -> str:
    """Return the name of the class whose method a hook is."""
    bound = hook.func if isinstance(hook, functools.partial) else hook
    owner = getattr(bound, "__self__", None)
    if isinstance(owner, Callback):
        return owner.state_key
    return bound.__qualname__.rpartition(".")[0] if owner is None else type(owner).__qualname__


def instruments_for(profiler: Profiler) -> Instruments | None:
    """Return what measures with `profiler`; None for one that measures nothing."""
    return None if type(profiler) is PassThroughProfiler else Instruments(profiler)
