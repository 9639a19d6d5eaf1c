"""Finds the largest batch size that fits into memory before a call loads its data, and goes on with it.

Trials run on a copy of the module, so the call itself goes on as if it had been made with that size. On a
group all ranks take the size that fits on each of them. See `orchestrator.tuner.batch_size_search`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.settings import Settings
    from orchestrator.trainer import Trainer


class BatchSizeFinder(Callback):
    """Searches when fit, validate, test or predict starts.

    Args:
        mode: ``"power"`` doubles until a size does not fit; ``"binsearch"`` then halves the gap.
        steps_per_trial: Batches to run of each size.
        init_val: The first size.
        max_trials: At most so many trials.
        batch_arg_name: The attribute of the module or data module, or of their hyperparameters, that holds
            the size and that their ``*_dataloader`` methods use.
        margin: With ``"binsearch"``, the share to take off a size that is next to one that does not fit.
        max_val: The largest size.

    Attributes:
        optimal_batch_size: What the last search has found.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    tunes = True
    _settings: Settings | None = None

    def __init__(
        self,
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> None:
        from orchestrator.tuner.batch_size_search import check_arguments

        check_arguments(
            type(self).__name__, mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val
        )
        self.mode = mode
        self.steps_per_trial = steps_per_trial
        self.init_val = init_val
        self.max_trials = max_trials
        self.batch_arg_name = batch_arg_name
        self.margin = margin
        self.max_val = max_val
        self.optimal_batch_size: int | None = init_val

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, unless the fit is resumed: then the size is what it was."""
        if trainer.ckpt_path is None:
            self.scale_batch_size(trainer, pl_module)

    def before_evaluation_data(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search before validate, test and predict load their data."""
        self.scale_batch_size(trainer, pl_module)

    def scale_batch_size(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search now. On a group, all ranks must call it.

        Raises:
            MisconfigurationError: The data is loaded already, its size cannot be changed, or nothing fits.
        """
        from orchestrator.tuner.batch_size_search import run_batch_size_search

        engine = trainer.engine
        assert engine is not None
        if trainer.fast_dev_run:
            engine.say("fast_dev_run leaves out the batch-size search.")
            self.optimal_batch_size = None
            return
        if engine.feed is not None:
            raise MisconfigurationError(
                f"{type(self).__name__}.scale_batch_size is called after the training data was loaded. Call "
                "it in on_fit_start."
            )
        self.optimal_batch_size = run_batch_size_search(
            engine,
            settings=self._settings or engine.settings,
            mode=self.mode,
            steps_per_trial=self.steps_per_trial,
            init_val=self.init_val,
            max_trials=self.max_trials,
            batch_arg_name=self.batch_arg_name,
            margin=self.margin,
            max_val=self.max_val,
        )
        if engine.data.forget_training() and engine.optimizers:
            engine.rebuild_optimizers()  # a schedule was planned by the length that the data had before
