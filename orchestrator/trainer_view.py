"""What a user and hooks read from the Trainer: its arguments and its parts, and where the run stands.

Reading never communicates, and starts nothing. During a call the values are those of this process's run;
afterwards they are what the run left, also where it ran on a group. What only a run in this process has is
None or empty without one, as each property says. Counters, metrics and ranks are in `orchestrator.run_view`.
"""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from torch.optim import Optimizer

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator.adjusting import Adjustable
from orchestrator.arguments import saves_checkpoints
from orchestrator.callbacks.checkpoint import Checkpoint
from orchestrator.callbacks.early_stopping import EarlyStopping
from orchestrator.callbacks.progress_bar import ProgressBar
from orchestrator.errors import MisconfigurationError
from orchestrator.foreign import is_foreign_stopper
from orchestrator.loggers.logger import Logger
from orchestrator.optimizer_setup import replace_optimizers
from orchestrator.optimizers import SchedulerConfig
from orchestrator.profilers.profiler import Profiler
from orchestrator.run_view import RunView


class TrainerView(RunView, Adjustable):
    """The properties of a Trainer; it holds what they read.

    Attributes:
        loggers: All loggers.
        profiler: What times the run; one that does nothing when none was asked for.
    """

    loggers: list[Logger]
    profiler: Profiler
    _module: LightningModule | None
    _datamodule: LightningDataModule | None
    _ckpt_path: str | os.PathLike[str] | None
    _keeps_ckpt_path: bool

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """What scales the loss of 16-mixed; None in other precisions, and before the first run here."""
        return None if self.engine is None else self.engine.precision.scaler

    @property
    def precision(self) -> str:
        """The full name of the precision."""
        return self.settings.precision

    @property
    def fast_dev_run(self) -> bool:
        """Whether this is a trial run of a few batches."""
        return bool(self.settings.fast_dev_run)

    @property
    def default_root_dir(self) -> str:
        """Where logs and checkpoints go."""
        return self.settings.default_root_dir

    @property
    def received_sigterm(self) -> bool:
        """Whether this job's queue, a SIGTERM or another notice has asked it to end, and training is about
        to."""
        if self.engine is None:
            return False
        requeue = self.engine.requeue
        return (requeue is not None and requeue.asked) or self.engine.stopping.must_go

    @property
    def enable_validation(self) -> bool:
        """Whether fit of the present module validates: it has a step and data for it, and no limit of 0."""
        return self.engine is not None and self.engine.data.has_validation()

    @property
    def lightning_module(self) -> LightningModule | None:
        """The module of this call, or of the last one."""
        return self._module

    @property
    def model(self) -> LightningModule | None:
        """The same as `lightning_module`."""
        return self._module

    @property
    def datamodule(self) -> LightningDataModule | None:
        """The data module of this call, or of the last one."""
        return self._datamodule

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers; empty where there is no run in this process."""
        return [] if self.engine is None else list(self.engine.optimizers)

    @optimizers.setter
    def optimizers(self, optimizers: list[Optimizer]) -> None:
        if self.engine is None or self.engine.job.fn != "fit" or self.engine.feed is not None:
            raise MisconfigurationError(
                "trainer.optimizers is set while no fit is being prepared. Set it in on_fit_start, or return "
                "the optimizers from configure_optimizers."
            )
        replace_optimizers(self.engine, optimizers)

    @property
    def lr_scheduler_configs(self) -> list[SchedulerConfig]:
        """The schedulers and when they step; empty where there is no run in this process."""
        return [] if self.engine is None else list(self.engine.schedulers)

    @property
    def train_dataloader(self) -> Any:
        """The training loader, or collection of loaders, of the run in this process, as the user made it;
        None before it is loaded.
        """
        return self._loaded("train")

    @property
    def val_dataloaders(self) -> Any:
        """The validation loaders of the run in this process, as the user made them; None before."""
        return self._loaded("val")

    @property
    def test_dataloaders(self) -> Any:
        """The test loaders of the run in this process, as the user made them; None before."""
        return self._loaded("test")

    @property
    def predict_dataloaders(self) -> Any:
        """The prediction loaders of the run in this process, as the user made them; None before."""
        return self._loaded("predict")

    def _loaded(self, kind: str) -> Any:
        return None if self.engine is None else self.engine.data.sources.get(kind)

    @property
    def ckpt_path(self) -> str | os.PathLike[str] | None:
        """The checkpoint that the last call started from, or None. Set to a path, ``"best"`` or ``"last"``,
        it is what all further calls start from that are not given another; set to None, none of them.
        """
        return self._ckpt_path

    @ckpt_path.setter
    def ckpt_path(self, path: str | os.PathLike[str] | None) -> None:
        self._ckpt_path = path
        self._keeps_ckpt_path = path is not None

    @property
    def strategy(self) -> Any:
        """How the ranks of the run in this process work together; before the first, and in the driver of a
        group, what was asked for, which is None for ``"auto"``.
        """
        return self.settings.strategy_spec if self.engine is None else self.engine.strategy

    @property
    def logger(self) -> Logger | None:
        """The first logger."""
        return self.loggers[0] if self.loggers else None

    @property
    def log_dir(self) -> str | None:
        """The first logger's directory, else `default_root_dir`."""
        found = None if self.logger is None else self.logger.log_dir
        return self.default_root_dir if found is None else found

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """All callbacks that save checkpoints, Lightning's own included."""
        found = [item for item in self.callbacks if saves_checkpoints(item)]
        return cast("list[Checkpoint]", found)

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first callback that saves checkpoints."""
        found = self.checkpoint_callbacks
        return found[0] if found else None

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The callback that says how progress is shown; None without one. A module's own comes first."""
        found = [item for item in self.callbacks if isinstance(item, ProgressBar)]
        return found[-1] if found else None

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """All callbacks that stop early, Lightning's own included."""
        found = [
            item for item in self.callbacks if isinstance(item, EarlyStopping) or is_foreign_stopper(item)
        ]
        return cast("list[EarlyStopping]", found)

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first callback that stops early."""
        found = self.early_stopping_callbacks
        return found[0] if found else None
