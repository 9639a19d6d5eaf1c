"""Tries something on a copy of the module, within a call that is running, and leaves no trace of it.

A probe is an engine of its own in the same process and group: with a copy of the module, fresh optimizers and
counters, no callbacks of the user's, loggers that record nothing, and no checkpoints. Set-up hooks are not
called again. Afterwards the random states, the data's generators and the data module's trainer are as before.
A module that cannot be copied is a `MisconfigurationError`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from modules import rng
from modules.datamodule import LightningDataModule
from modules.loader import RankLoader
from modules.module import LightningModule
from orchestrator.board import Board
from orchestrator.callbacks.callback import Callback
from orchestrator.engine import Engine
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers.dummy import DummyLogger
from orchestrator.place import Place
from orchestrator.profilers.profiler import PassThroughProfiler
from orchestrator.saving import LastFit
from orchestrator.settings import Settings
from orchestrator.state import TrainState
from orchestrator.strategies.sharding import refuse_sharded
from orchestrator.transfer import build_transfer

if TYPE_CHECKING:
    from orchestrator.trainer import Trainer


def bare_trainer(trainer: Trainer, callbacks: list[Callback], settings: Settings) -> Trainer:
    """Return a trainer that runs where `trainer` does, with these callbacks and nothing else of it."""
    bare = copy.copy(trainer)
    bare.__dict__.pop("save_checkpoint", None)  # a profiler's
    bare.settings, bare.plan = settings, trainer.plan
    bare.callbacks = callbacks
    bare.loggers = [DummyLogger() for _ in trainer.loggers]
    bare.state, bare.board = TrainState(), Board()
    bare.profiler = PassThroughProfiler()
    bare.should_stop = False
    bare._last_fit = LastFit()
    return bare


class Probe(Engine):
    """An engine within another.

    Args:
        outer: The engine that is running.
        module: The copy to try on.
        callbacks: What watches.
        settings: Of the probe.
        alone: Without the other ranks: nothing is exchanged with them.
        fn: What to run: fit, validate, test or predict.
    """

    def __init__(
        self,
        outer: Engine,
        module: LightningModule,
        callbacks: list[Callback],
        settings: Settings,
        *,
        alone: bool = False,
        fn: str = "fit",
    ) -> None:
        place = outer.place
        job = replace(
            outer.job,
            fn=fn,
            module=module,
            ckpt_path=None,
            attempt=None,
            return_predictions=False,
            verbose=False,
        )
        quiet = Place(
            rank=0 if alone else place.rank,
            world_size=1 if alone else place.world_size,
            local_rank=place.local_rank,
            node_rank=place.node_rank,
            num_nodes=1 if alone else place.num_nodes,
            device=place.device,
            pickler=place.pickler,
        )
        super().__init__(bare_trainer(outer.trainer, callbacks, settings), job, quiet, None)
        self.order_seed = outer.order_seed
        self._torn_down = True  # its set-up was the outer engine's, and so is the end of it
        self._sources: list[tuple[DataLoader[Any], Any]] = []
        self._generators: list[tuple[torch.Generator, Any]] = []

    def run(self) -> Any:
        """Run, and put back whatever the run has drawn from."""
        datamodule = self.datamodule
        before = None if datamodule is None else datamodule.trainer
        try:
            with rng.isolated():
                return super().run()
        finally:
            self.trainer.engine = None
            if datamodule is not None:
                datamodule.trainer = before
            for generator, state in self._generators:
                generator.set_state(state)
            for source, iterator in self._sources:
                source._iterator = iterator

    def _prepare(self) -> None:
        fit = self.job.fn == "fit"
        self.strategy.setup(self.module, training=fit)
        self.transfer = build_transfer(self.hooks, self.place.device, self.precision.dtype)
        if fit:
            self._configure_optimizers()

    def _on_failure(self, error: BaseException) -> None:
        """Whoever tries decides what a failure means."""

    def take_loader(self, loader: RankLoader, kind: str) -> None:
        """Note what reading it will change."""
        if isinstance(loader.source, DataLoader):
            self._sources.append((loader.source, loader.source._iterator))
        self._generators += [(item, item.get_state()) for item in loader.generators()]


@contextlib.contextmanager
def copied(engine: Engine, purpose: str) -> Iterator[LightningModule]:
    """Give a copy of the engine's module for as long as the context lasts.

    Args:
        engine: Whose module.
        purpose: What it is for, for the message.

    Raises:
        MisconfigurationError: It cannot be copied, or each rank has a part of it only.
    """
    module = engine.module
    refuse_sharded(
        engine.strategy,
        purpose,
        "it tries on a copy of the weights",
        "Find the value with strategy='ddp' or in one process, and leave it out here.",
    )
    try:
        twin = copy.deepcopy(module)
    except Exception as error:
        raise MisconfigurationError(
            f"{purpose} tries on a copy of the module, and {type(module).__qualname__} cannot be copied: "
            f"{type(error).__name__}: {error}. Make copy.deepcopy(module) work, or leave it out."
        ) from error
    if engine.instruments is not None:
        engine.instruments.strip(module, twin)
    try:
        yield twin
    finally:
        twin.zero_grad(set_to_none=True)


@contextlib.contextmanager
def attached_as_before(module: LightningModule, datamodule: LightningDataModule | None) -> Iterator[None]:
    """Give module and data module back to the trainer that they had."""
    trainer = module.__dict__.get("_trainer")
    trainer_of_data = None if datamodule is None else datamodule.trainer
    try:
        yield
    finally:
        module.__dict__["_trainer"] = trainer
        if datamodule is not None:
            datamodule.trainer = trainer_of_data
