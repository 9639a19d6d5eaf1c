"""Finds a learning rate or a batch size for a module, where its trainer would train it.

The search runs in this process or on the trainer's workers, on copies of the module; afterwards module, data
module and trainer are as before, random streams included, but for the attribute that was asked for. The
user's callbacks and loggers take no part.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modules import rng
from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator.call_arguments import check_loaders, make_job
from orchestrator.callbacks.batch_size_finder import BatchSizeFinder
from orchestrator.callbacks.callback import Callback
from orchestrator.callbacks.lr_finder import LearningRateFinder
from orchestrator.errors import MisconfigurationError
from orchestrator.tuner import attribute
from orchestrator.tuner.batch_size_search import METHODS
from orchestrator.tuner.batch_size_search import check_arguments as check_search
from orchestrator.tuner.probe import attached_as_before, bare_trainer
from orchestrator.tuner.range_test import check_arguments as check_range_test

if TYPE_CHECKING:
    from orchestrator.job import Job
    from orchestrator.trainer import Trainer
    from orchestrator.tuner.range_test import LRFinder

_KINDS = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}


class Tuner:
    """Tries things before training.

    Args:
        trainer: Where and how to try; it stays as it is.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def lr_find(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        method: str = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> LRFinder | None:
        """Train a few steps with a growing learning rate, and return the losses.

        Args:
            model: The module; its weights stay.
            train_dataloaders: As for `Trainer.fit`.
            val_dataloaders: Not used; there is no validation in the test.
            dataloaders: Not used; only fit has a learning rate.
            datamodule: As for `Trainer.fit`.
            method: ``"fit"``.
            min_lr: The first rate.
            max_lr: The last rate.
            num_training: Optimizer steps.
            mode: The rate grows by a factor (``"exponential"``) or by an amount (``"linear"``).
            early_stop_threshold: End when the smoothed loss is so many times the least one; None for never.
            update_attr: Set the module's ``lr`` or ``learning_rate``, and that of its hyperparameters, to the
                suggestion.
            attr_name: Another name for it.

        Returns:
            What was found; None under ``fast_dev_run``.

        Raises:
            MisconfigurationError: An argument or the module cannot work.
        """
        if method != "fit":
            raise MisconfigurationError(f"lr_find(method={method!r}): only 'fit' has a learning rate.")
        if dataloaders is not None:
            raise MisconfigurationError(
                "lr_find(dataloaders=...) is for evaluation, which has no learning rate. "
                "Use train_dataloaders."
            )
        check_range_test("lr_find", min_lr, max_lr, num_training, mode, early_stop_threshold, "num_training")
        self._refuse(LearningRateFinder)
        job = self._job("fit", model, {"train": train_dataloaders}, datamodule)
        names = (attr_name,) if attr_name else attribute.LEARNING_RATES
        name = ""
        if update_attr:
            name = attribute.find_name(names, f"lr_find(attr_name={attr_name!r})", model, job.datamodule)
        finder = LearningRateFinder(
            min_lr, max_lr, num_training, mode, early_stop_threshold, update_attr=False
        )
        self._run(job, finder)
        found = finder.optimal_lr
        rate = found.suggestion() if found is not None and update_attr else None
        if rate is not None:
            attribute.write(name, rate, model, job.datamodule)
        return found

    def scale_batch_size(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        method: str = "fit",
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> int | None:
        """Find the largest batch size, for each rank, that fits into memory, and set the attribute to it.

        Args:
            model: The module; its weights stay.
            train_dataloaders: A data module; a loader has a fixed size and is refused.
            val_dataloaders: Not used.
            dataloaders: Likewise for validate, test and predict.
            datamodule: Has the ``*_dataloader`` methods, unless the module has them.
            method: What to try: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
            mode: ``"power"`` doubles until a size does not fit; ``"binsearch"`` then halves the gap.
            steps_per_trial: Batches to run of each size.
            init_val: The first size.
            max_trials: At most so many trials.
            batch_arg_name: The attribute that holds the size.
            margin: With ``"binsearch"``, the share to take off a size that is next to one that does not fit.
            max_val: The largest size.

        Returns:
            The size; None under ``fast_dev_run``.

        Raises:
            MisconfigurationError: An argument or the data cannot work, or nothing fits.
        """
        if method not in METHODS:
            raise MisconfigurationError(
                f"scale_batch_size(method={method!r}) is unknown. Use one of {', '.join(METHODS)}."
            )
        check_search(
            "scale_batch_size", mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val
        )
        self._refuse(BatchSizeFinder)
        given = train_dataloaders if method == "fit" else dataloaders
        job = self._job(method, model, {_KINDS[method]: given}, datamodule)
        attribute.find_name(
            (batch_arg_name,), f"scale_batch_size(batch_arg_name={batch_arg_name!r})", model, job.datamodule
        )
        finder = BatchSizeFinder(mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val)
        self._run(job, finder)
        found = finder.optimal_batch_size
        if found is not None:
            attribute.write(batch_arg_name, found, model, job.datamodule)
        return found

    def _refuse(self, kind: type[Callback]) -> None:
        """Refuse to search where the trainer would search once more by itself."""
        if any(isinstance(item, kind) for item in self._trainer.callbacks):
            raise MisconfigurationError(
                f"The trainer has {kind.__name__} among its callbacks, which searches when it trains. "
                "Leave it out, or do not use the Tuner."
            )

    def _job(self, fn: str, model: Any, loaders: dict[str, Any], datamodule: Any) -> Job:
        job = make_job(fn, model, datamodule, loaders, return_predictions=False, verbose=False)
        check_loaders(job, self._trainer.settings, self._trainer.plan.num_workers)
        return job

    def _run(self, job: Job, finder: LearningRateFinder | BatchSizeFinder) -> None:
        """Run a call whose only content is the finder's search."""
        trainer = self._trainer
        finder._settings = trainer.settings
        nothing: dict[str, Any] = {f"limit_{kind}_batches": 0 for kind in _KINDS.values()}
        settings = replace(trainer.settings, **nothing, num_sanity_val_steps=0)
        bare = bare_trainer(trainer, [finder], settings)
        with rng.isolated(), attached_as_before(job.module, job.datamodule):
            bare._module, bare._datamodule = job.module, job.datamodule
            bare._run(replace(job, only_tunes=True))
