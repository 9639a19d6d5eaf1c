"""What a user and hooks read from the Trainer: counters, metrics, where it runs, its parts.

Reading never communicates and never starts anything. During a call the values are those of this process's
run; afterwards they are what the run left, also where it ran on a group. What only a run in this process has
is None, empty or zero without one, as each property says; an estimate that cannot be made is a
`RuntimeError`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from torch.optim import Optimizer

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator.arguments import saves_checkpoints
from orchestrator.board import Board
from orchestrator.callbacks.callback import Callback
from orchestrator.callbacks.early_stopping import EarlyStopping
from orchestrator.callbacks.model_checkpoint import ModelCheckpoint
from orchestrator.foreign import is_foreign_stopper
from orchestrator.loggers.logger import Logger
from orchestrator.optimizers import SchedulerConfig
from orchestrator.plan import Plan
from orchestrator.settings import Settings
from orchestrator.state import TrainState
from orchestrator.step_estimate import estimate_steps
from orchestrator.strategies.strategy import Strategy

if TYPE_CHECKING:
    from orchestrator.engine import Engine


class TrainerView:
    """The properties of a Trainer; it holds what they read.

    Attributes:
        settings: The arguments.
        plan: Where calls run.
        state: The counters.
        board: The metrics.
        callbacks: All callbacks, those that save checkpoints last.
        loggers: All loggers.
        engine: The run of this process, or its last one; None where there was none.
    """

    settings: Settings
    plan: Plan
    state: TrainState
    board: Board
    callbacks: list[Callback]
    loggers: list[Logger]
    engine: Engine | None
    _module: LightningModule | None
    _datamodule: LightningDataModule | None
    _ckpt_path: str | os.PathLike[str] | None
    _keeps_ckpt_path: bool

    @property
    def global_step(self) -> int:
        """Optimizer steps so far."""
        return self.state.global_step

    @property
    def current_epoch(self) -> int:
        """The running epoch, from 0; after fit, the number of epochs that have ended."""
        return self.state.epoch

    @property
    def batches_seen(self) -> int:
        """Training batches so far, over all ranks."""
        return self.state.batches_seen + self._in_epoch()[0]

    @property
    def samples_seen(self) -> int:
        """Training samples so far, over all ranks."""
        return self.state.samples_seen + self._in_epoch()[1]

    def _in_epoch(self) -> tuple[int, int]:
        if self.engine is None or self.engine.feed is None or not self.state.epoch_batches:
            return 0, 0
        return self.engine.feed.totals(self.state.epoch_batches)

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """All metrics by name, as scalar tensors; equal on all ranks after epochs and validations."""
        return self.board.with_steps(None if self.engine is None else self.engine.train_slots)

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """The metrics that were sent to loggers."""
        return dict(self.board.logged)

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The metrics that the progress display shows."""
        return dict(self.board.progress)

    @property
    def max_epochs(self) -> int | None:
        """As given."""
        return self.settings.max_epochs

    @property
    def min_epochs(self) -> int | None:
        """As given."""
        return self.settings.min_epochs

    @property
    def max_steps(self) -> int:
        """As given."""
        return self.settings.max_steps

    @property
    def min_steps(self) -> int | None:
        """As given."""
        return self.settings.min_steps

    @property
    def val_check_interval(self) -> int | float:
        """As given."""
        return self.settings.val_check_interval

    @property
    def check_val_every_n_epoch(self) -> int | None:
        """As given."""
        return self.settings.check_val_every_n_epoch

    @property
    def log_every_n_steps(self) -> int:
        """As given."""
        return self.settings.log_every_n_steps

    @property
    def accumulate_grad_batches(self) -> int:
        """As given."""
        return self.settings.accumulate_grad_batches

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
    def world_size(self) -> int:
        """Ranks."""
        return self.plan.num_workers if self.engine is None else self.engine.place.world_size

    @property
    def global_rank(self) -> int:
        """This process's rank."""
        return 0 if self.engine is None else self.engine.place.rank

    @property
    def local_rank(self) -> int:
        """This process's rank on its node."""
        return 0 if self.engine is None else self.engine.place.local_rank

    @property
    def node_rank(self) -> int:
        """The rank of this process's node."""
        return 0 if self.engine is None else self.engine.place.node_rank

    @property
    def num_nodes(self) -> int:
        """Nodes."""
        return self.settings.num_nodes if self.engine is None else self.engine.place.num_nodes

    @property
    def num_devices(self) -> int:
        """Ranks on each node."""
        return max(1, self.world_size // max(1, self.num_nodes))

    @property
    def device_ids(self) -> list[int]:
        """The numbers of this node's devices that the ranks compute on, from 0."""
        return list(range(self.num_devices))

    @property
    def is_global_zero(self) -> bool:
        """Whether this process is rank 0."""
        return self.global_rank == 0

    @property
    def training(self) -> bool:
        """Whether training batches are running."""
        return self.state.stage == "train"

    @property
    def validating(self) -> bool:
        """Whether validation is running."""
        return self.state.stage == "validate"

    @property
    def testing(self) -> bool:
        """Whether testing is running."""
        return self.state.stage == "test"

    @property
    def predicting(self) -> bool:
        """Whether prediction is running."""
        return self.state.stage == "predict"

    @property
    def sanity_checking(self) -> bool:
        """Whether validation batches are being tried before training."""
        return self.state.stage == "sanity"

    @property
    def evaluating(self) -> bool:
        """Whether validation, a sanity check or testing is running."""
        return self.state.stage in ("validate", "sanity", "test")

    @property
    def interrupted(self) -> bool:
        """Whether the last call ended by an exception."""
        return self.state.status == "interrupted"

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

    @property
    def lr_scheduler_configs(self) -> list[SchedulerConfig]:
        """The schedulers and when they step; empty where there is no run in this process."""
        return [] if self.engine is None else list(self.engine.schedulers)

    @property
    def num_training_batches(self) -> int | float:
        """Training batches of an epoch on this rank; infinite when not known, 0 before the data is loaded."""
        feed = None if self.engine is None else self.engine.feed
        if feed is None:
            return 0
        return float("inf") if feed.num_batches is None else feed.num_batches

    @property
    def num_val_batches(self) -> list[int | float]:
        """Validation batches of each loader on this rank that fit or validate runs; infinite when not known,
        empty without validation.
        """
        if self.engine is None:
            return []
        return _counts(self.engine.limits.get("val", self.engine.val_limits))

    @property
    def num_test_batches(self) -> list[int | float]:
        """Test batches of each loader on this rank; infinite when not known, empty without test."""
        return [] if self.engine is None else _counts(self.engine.limits.get("test", []))

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Batches to predict of each loader on this rank; infinite when not known, empty where predict does
        not run.
        """
        return [] if self.engine is None else _counts(self.engine.limits.get("predict", []))

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Validation batches of each loader that are tried before training."""
        steps = self.settings.num_sanity_val_steps
        return [count if steps < 0 else min(steps, count) for count in self.num_val_batches]

    @property
    def is_last_batch(self) -> bool:
        """Whether the training batch that runs, or ran last, is the last of its epoch; False where that is
        not known.
        """
        feed = None if self.engine is None else self.engine.feed
        return feed is not None and feed.is_last

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole fit, as far as limits and the length of the data say; infinite when
        they do not.

        Raises:
            RuntimeError: The length of the training data is needed and not known yet.
        """
        feed = None if self.engine is None else self.engine.feed
        steps = estimate_steps(self.settings, None if feed is None else self.num_training_batches)
        if steps is None:
            raise RuntimeError(
                "trainer.estimated_stepping_batches is read before the training data is loaded, and "
                f"Trainer(max_epochs={self.max_epochs}, max_steps={self.max_steps}) counts epochs. "
                "Read it from on_train_start on, or set max_steps, and max_epochs=-1."
            )
        return steps

    @property
    def train_dataloader(self) -> Any:
        """The training loader of the run in this process, as the user made it; None before it is loaded."""
        feed = None if self.engine is None else self.engine.feed
        return None if feed is None else feed.loader.source

    @property
    def val_dataloaders(self) -> Any:
        """The validation loaders of the run in this process, as they were given; those that fit takes from a
        ``val_dataloader`` method as one or a list; None where there are none yet.
        """
        if self.engine is None:
            return None
        given = self.engine.job.loaders.get("val")
        found = [loader.source for loader in self.engine.val_loaders]
        if given is not None or not found:
            return given
        return found[0] if len(found) == 1 else found

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
    def strategy(self) -> Strategy | None:
        """How the ranks of the run in this process work together; None before the first."""
        return None if self.engine is None else self.engine.strategy

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
    def checkpoint_callbacks(self) -> list[ModelCheckpoint]:
        """All callbacks that save checkpoints, Lightning's own included."""
        found = [item for item in self.callbacks if saves_checkpoints(item)]
        return cast("list[ModelCheckpoint]", found)

    @property
    def checkpoint_callback(self) -> ModelCheckpoint | None:
        """The first callback that saves checkpoints."""
        found = self.checkpoint_callbacks
        return found[0] if found else None

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


def _counts(limits: list[int | None]) -> list[int | float]:
    return [float("inf") if limit is None else limit for limit in limits]
