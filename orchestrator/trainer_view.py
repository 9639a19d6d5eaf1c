"""What a user and hooks read from the Trainer: counters, metrics, where it runs, its parts.

Reading never communicates, and starts nothing; only an estimate may load the training data. During a call the
values are those of this process's run; afterwards they are what the run left, also where it ran on a group.
What only a run in this process has is None, empty or zero without one, as each property says; an estimate
that cannot be made is a `RuntimeError`.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator.adjusting import Adjustable
from orchestrator.arguments import saves_checkpoints
from orchestrator.board import Board
from orchestrator.callbacks.callback import Callback
from orchestrator.callbacks.checkpoint import Checkpoint
from orchestrator.callbacks.early_stopping import EarlyStopping
from orchestrator.callbacks.progress_bar import ProgressBar
from orchestrator.errors import MisconfigurationError
from orchestrator.foreign import is_foreign_stopper
from orchestrator.loggers.logger import Logger
from orchestrator.optimizers import SchedulerConfig, refuse_accumulation
from orchestrator.plan import Plan
from orchestrator.profilers.profiler import Profiler
from orchestrator.settings import Settings
from orchestrator.state import TrainState
from orchestrator.step_estimate import estimate_steps

if TYPE_CHECKING:
    from orchestrator.engine import Engine


class TrainerView(Adjustable):
    """The properties of a Trainer; it holds what they read.

    Attributes:
        settings: The arguments.
        plan: Where calls run.
        state: The counters.
        board: The metrics.
        callbacks: All callbacks, those that save checkpoints last.
        loggers: All loggers.
        profiler: What times the run; one that does nothing when none was asked for.
        engine: The run of this process, or its last one; None where there was none.
        batch_counts: Batches of each loader that the last call ran, by kind of data.
    """

    settings: Settings
    plan: Plan
    state: TrainState
    board: Board
    callbacks: list[Callback]
    loggers: list[Logger]
    profiler: Profiler
    engine: Engine | None
    batch_counts: dict[str, list[int | float]]
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
    def accumulate_grad_batches(self) -> int:
        """Batches whose gradients make one step: as given, or as it was set last. What a hook sets holds from
        the next epoch that starts; in ``on_train_epoch_start``, from this one.

        Raises:
            MisconfigurationError: It is set to no whole number of at least 1, or where steps are not made of
                batches.
        """
        return self.state.accumulate or self.settings.accumulate_grad_batches

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, batches: int) -> None:
        if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
            raise MisconfigurationError(
                f"trainer.accumulate_grad_batches = {batches!r}. Use a whole number of at least 1."
            )
        if self.engine is not None:
            argument = f"trainer.accumulate_grad_batches = {batches}"
            refuse_accumulation(argument, batches, self.engine.module, self.engine.optimizers)
        self.state.accumulate = batches

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
    def world_size(self) -> int:
        """Ranks."""
        return self.plan.num_workers if self.engine is None else self.engine.place.world_size

    @property
    def global_rank(self) -> int:
        """This process's rank."""
        if self.engine is not None:
            return self.engine.place.rank
        return 0 if self.plan.launched is None else self.plan.launched.rank

    @property
    def local_rank(self) -> int:
        """This process's rank on its node."""
        if self.engine is not None:
            return self.engine.place.local_rank
        return 0 if self.plan.launched is None else self.plan.launched.local_rank

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
    def received_sigterm(self) -> bool:
        """Whether this job's queue has asked it to end, and training is about to."""
        requeue = None if self.engine is None else self.engine.requeue
        return requeue is not None and requeue.asked

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
        self.engine.replace_optimizers(optimizers)

    @property
    def lr_scheduler_configs(self) -> list[SchedulerConfig]:
        """The schedulers and when they step; empty where there is no run in this process."""
        return [] if self.engine is None else list(self.engine.schedulers)

    @property
    def num_training_batches(self) -> int | float:
        """Training batches of an epoch on the rank that has most; infinite when not known, 0 before the data
        is loaded.
        """
        feed = None if self.engine is None else self.engine.feed
        if feed is None:
            return self.batch_counts.get("train", [0])[0]
        return math.inf if feed.num_batches is None else feed.num_batches

    @property
    def num_val_batches(self) -> list[int | float]:
        """Validation batches of each loader on the rank that has most; infinite when not known, empty without
        validation. Loaders that are read together count as one.
        """
        return list(self.batch_counts.get("val", []))

    @property
    def num_test_batches(self) -> list[int | float]:
        """Test batches of each loader, likewise."""
        return list(self.batch_counts.get("test", []))

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Prediction batches of each loader, likewise."""
        return list(self.batch_counts.get("predict", []))

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

        Within fit, from ``configure_optimizers`` on, it loads the training data if the answer needs them, and
        they are not loaded again. So ``train_dataloader`` runs earlier than it would, and what it draws from
        the random generators comes earlier too.

        Raises:
            RuntimeError: The length of the training data is needed, and no fit runs or has run.
        """
        schedules = (getattr(item, "scheduling", None) for item in self.callbacks)
        planned = next((item for item in schedules if isinstance(item, dict)), None)
        accumulation = planned or {0: self.accumulate_grad_batches}
        steps = estimate_steps(self.settings, self._known_training_batches(), accumulation)
        if steps is None and self.engine is not None and self.engine.job.fn == "fit":
            self.engine.data.load_training()
            steps = estimate_steps(self.settings, self.num_training_batches, accumulation)
        if steps is None:
            raise RuntimeError(
                "trainer.estimated_stepping_batches is read before a fit has training data, and "
                f"Trainer(max_epochs={self.max_epochs}, max_steps={self.max_steps}) counts epochs. "
                "Read it in configure_optimizers or later, or set max_steps, and max_epochs=-1."
            )
        return steps

    def _known_training_batches(self) -> int | float | None:
        if self.settings.limit_train_batches == 0:
            return 0
        return self.num_training_batches if "train" in self.batch_counts else None

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
