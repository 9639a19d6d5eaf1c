"""The Trainer: what a user configures once and then calls.

It checks every argument before anything starts, hands each call over (`orchestrator.trainer_calls`), and
afterwards holds the result: weights in the user's module, metrics, paths, callback states, the same whether
it ran in this process or on a group. Hooks get the trainer of the process that they run in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator import arguments
from orchestrator.argparse_form import ArgparseForm
from orchestrator.board import Board
from orchestrator.callbacks.callback import Callback
from orchestrator.checkpoint.background import Save
from orchestrator.errors import MisconfigurationError
from orchestrator.goodput import counted
from orchestrator.loggers.logger import Logger
from orchestrator.plugins import parse_plugins
from orchestrator.precision import module_creation
from orchestrator.predictions import returns_predictions
from orchestrator.preemption import check_notice
from orchestrator.profilers.profiler import Profiler
from orchestrator.profilers.selection import make_profiler
from orchestrator.ray_objects import check_ray_objects
from orchestrator.run_config import apply_run_config
from orchestrator.saving import LastFit, content_to_save, save
from orchestrator.settings import Settings
from orchestrator.state import TrainState
from orchestrator.strategies.specs import Spec
from orchestrator.trainer_calls import TrainerCalls, current_trial

if TYPE_CHECKING:
    from orchestrator.sweep.trial import Trial

_NO_ARGUMENTS = ("self", "unknown")


class Trainer(TrainerCalls, ArgparseForm):
    """Trains, validates, tests and predicts with a LightningModule.

    Args:
        accelerator: ``"cpu"``, ``"gpu"``, ``"mps"``, or ``"auto"``: GPUs when torch sees any.
        strategy: ``"auto"``, ``"single"``, ``"ddp"``, ``"ddp_find_unused_parameters_true"`` for modules that
            do not use all parameters in every step, ``"fsdp"``, ``"deepspeed"`` (an extra), ``"elastic"``
            (the same bits on any number of processes), or an instance of one of `orchestrator.strategies`.
        devices: Processes on each node, or ``"auto"``: one on CPU, this machine's GPUs otherwise; or a list
            of GPUs' numbers. More than one run on Ray.
        num_nodes: Distinct nodes.
        precision: 64, 32, ``"bf16-mixed"`` or ``"16-mixed"``, with weights in fp32; ``"bf16-true"`` or
            ``"16-true"``, with weights and inputs in that type; ``"fp8-mixed"`` on GPUs that have it.
        logger: True for TensorBoard, False for none, or one's own, or a list.
        callbacks: One or a list.
        fast_dev_run: Run this many batches of everything, without checkpoints and logs.
        max_epochs: Epochs; -1 for no limit. 1000 when neither it nor `max_steps` is given.
        min_epochs: Do not stop early before this many epochs.
        max_steps: Optimizer steps; -1 for no limit.
        min_steps: Do not stop early before this many steps.
        max_time: Stop after this time of training: a timedelta, a dictionary of its arguments such as
            ``{"hours": 2}``, or ``"DD:HH:MM:SS"``. On a group rank 0's clock decides.
        limit_train_batches: A number of batches (int) or a share of them (float); likewise for val, test,
            predict.
        limit_val_batches: See above.
        limit_test_batches: See above.
        limit_predict_batches: See above.
        overfit_batches: Train and validate on this number (int) or share (float) of batches only, the same
            in every epoch: sets both limits and turns shuffling off. Validation keeps its own data. 0 is off.
        val_check_interval: Validate after this share of an epoch (float), number of batches (int), or time
            since the last validation (a timedelta, keyword arguments of one, or ``"DD:HH:MM:SS"``). On a
            group rank 0's clock decides, at the log points.
        check_val_every_n_epoch: Validate in every n-th epoch only. None counts batches over epochs.
        reload_dataloaders_every_n_epochs: Ask for training and validation loaders anew before every n-th
            epoch, counted from 0, also in a resumed run. 0 never does.
        num_sanity_val_steps: Validation batches tried before training; -1 for all.
        log_every_n_steps: Steps between log points.
        enable_checkpointing: Add a ModelCheckpoint when there is none.
        enable_progress_bar: Show progress: a RichProgressBar, unless the callbacks have another.
        enable_model_summary: Show the module's layers and sizes when fit starts: a ModelSummary.
        enable_autolog_hparams: Send the hyperparameters of module and data module to the loggers.
        profiler: ``"simple"``, ``"advanced"``, ``"pytorch"`` or a profiler: times what a run does.
        barebones: Train with nothing around: no checkpoints, logs, progress, summary, sanity check, profiler.
            `log` does nothing.
        accumulate_grad_batches: Batches whose gradients make one step.
        gradient_clip_val: Clip gradients at this.
        gradient_clip_algorithm: ``"norm"`` (default) or ``"value"``.
        inference_mode: Evaluate in ``torch.inference_mode`` outside of fit and without a group; within fit,
            on a group, and with False it is ``torch.no_grad``.
        use_distributed_sampler: Deal the data to ranks.
        sync_batchnorm: Normalise batches over all ranks in training.
        deterministic: Use algorithms that give the same bits each time, and fail where there is none; with
            ``"warn"`` only say so. Random numbers that a data set draws for a sample then depend on seed,
            epoch and sample alone.
        benchmark: Let cuDNN time its algorithms and take the quickest.
        detect_anomaly: Find the operation whose gradient is not a number, at a cost.
        compile: Compile the module's steps with ``torch.compile``: True, or its keyword arguments.
        plugins: A `orchestrator.plugins.CheckpointIO`, or where the processes come from, or a list.
        resume: ``"auto"`` lets `fit` go on from the newest whole checkpoint in the run's directory, where
            there is one and no `ckpt_path` is given: the same command again just goes on.
        ledger: Write down in ``default_root_dir/ledger`` which samples each training batch was made of;
            ``orchestrator audit`` proves from it that each was used exactly once an epoch.
        default_root_dir: Where logs and checkpoints go; the working directory when None.
        scaling_config: A `ray.train.ScalingConfig`, instead of `devices` and `num_nodes`; runs on Ray even
            with one worker.
        run_config: A `ray.train.RunConfig`: its ``storage_path`` and ``name`` say where logs and checkpoints
            go, instead of `default_root_dir`, its ``failure_config`` what `max_failures` does.
        placement_group: A Ray placement group to run in.
        resources_per_worker: What each worker reserves, like ``{"CPU": 2}``. 1 CPU, and with GPUs 1 GPU, when
            None. With a `scaling_config`, that says it.
        threads_per_worker: Intra-op threads of each worker; as many as reserved CPUs when None.
        spares: Workers that stand by, started and on as many nodes as there are, to take the place of lost
            ones at once.
        max_failures: Lost workers that a run survives: 3 when None, -1 for any number. They are replaced
            while the others stay; see docs/guarantees.md.
        replacement_timeout_s: Seconds to wait for a replacement: a spare, or room for a new worker.
        start_timeout_s: Seconds to wait for the workers to start.
        collective_timeout_s: Seconds that a worker waits for another before it fails; ``prepare_data``, in
            which one works and the others wait, must end within them.
        autopsy_after_s: Seconds in which no rank of a group gets on, after which it is looked for which rank
            the others wait for, and at which line that is; the run goes on. None: never. See docs/doctor.md.
        pad_uneven: Repeat training samples until all ranks have equally many, as torch's DistributedSampler
            does.
        join_uneven: Where lengths are not known, go on until the last rank's data ends, not the first's.
        preemption_notice: A function that is asked once a second during fit, in a thread of the driver:
            None while all is well, the seconds that are left once the run must go (True: 30). It then saves
            and stops, as at SIGTERM.

    Attributes:
        callbacks: All callbacks, those that save checkpoints last.
        loggers: All loggers.
        should_stop: Set it to True to end training; on a group all ranks end at the next log point or
            validation.

    Raises:
        MisconfigurationError: An argument or a combination cannot work.
        TypeError: There is no such argument; the message says which one was meant.
    """

    @arguments.as_written
    def __init__(
        self,
        *,
        accelerator: str = "auto",
        strategy: str | Spec = "auto",
        devices: int | str | Sequence[int] = "auto",
        num_nodes: int = 1,
        precision: int | str | None = None,
        logger: bool | Logger | Sequence[Logger] | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        fast_dev_run: bool | int = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | dict[str, int] | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        check_val_every_n_epoch: int | None = 1,
        reload_dataloaders_every_n_epochs: int = 0,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        enable_autolog_hparams: bool = True,
        profiler: Profiler | str | None = None,
        barebones: bool = False,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        sync_batchnorm: bool = False,
        deterministic: bool | str | None = None,
        benchmark: bool | None = None,
        detect_anomaly: bool = False,
        compile: bool | dict[str, Any] | None = None,
        plugins: Any = None,
        resume: str | None = None,
        ledger: bool = False,
        default_root_dir: str | os.PathLike[str] | None = None,
        scaling_config: Any = None,
        run_config: Any = None,
        placement_group: Any = None,
        resources_per_worker: dict[str, float] | None = None,
        threads_per_worker: int | None = None,
        spares: int = 0,
        max_failures: int | None = None,
        replacement_timeout_s: float = 300.0,
        start_timeout_s: float = 60.0,
        collective_timeout_s: float = 1800.0,
        autopsy_after_s: float | None = 10.0,
        pad_uneven: bool = False,
        join_uneven: bool = False,
        preemption_notice: Callable[[], float | bool | None] | None = None,
        **unknown: Any,
    ) -> None:
        given = dict(locals())
        if unknown:
            arguments.refuse_unknown(
                next(iter(unknown)), [name for name in given if name not in _NO_ARGUMENTS]
            )
        trial = current_trial()
        if trial is not None:
            given["default_root_dir"] = trial.directory if default_root_dir is None else default_root_dir
            given["enable_checkpointing"] = False if enable_checkpointing is None else enable_checkpointing
            given["enable_model_summary"] = False if enable_model_summary is None else enable_model_summary
        apply_run_config(run_config, given)
        names = [field.name for field in fields(Settings) if field.name in given]
        self.settings = Settings.create(**{name: given[name] for name in names})
        self.plugins = parse_plugins(plugins)
        self.preemption_notice = check_notice(preemption_notice)
        check_ray_objects(scaling_config, placement_group)
        self._scaling_config = scaling_config
        self._placement_group = placement_group
        self.plan = self._make_plan(trial)
        self.state = TrainState()
        self.board = Board()
        self.should_stop = False
        self.batch_counts = {}
        self.engine = None
        self.trial: Trial | None = None
        self.record = None
        self.goodput = None
        self.loggers = arguments.loggers_of(logger, self.settings)
        self.callbacks = arguments.callbacks_of(
            callbacks, self.settings, enable_checkpointing, enable_progress_bar, enable_model_summary
        )
        self.profiler = make_profiler(profiler, self.settings)
        self._module = None
        self._datamodule = None
        self._ckpt_path = None
        self._keeps_ckpt_path = False
        self.fit_from: str | os.PathLike[str] | None = None
        self._last_fit = LastFit()
        self._verified = set()

    # ---------------------------------------------------------------- entry points

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train `model`; afterwards it holds the trained weights.

        Args:
            model: The module.
            train_dataloaders: A loader, an iterable of batches, or a data module. Of a dictionary or list of
                loaders, a batch has one of each; the shorter ones begin again. See `CombinedLoader`.
            val_dataloaders: A loader, or a list or dictionary of loaders, which run one after the other.
            datamodule: A data module, instead of loaders.
            ckpt_path: A checkpoint to go on from: a path or URI, ``"best"``, or ``"last"``: the newest that a
                ModelCheckpoint has written as such, in this run or an earlier one; the weights as they are,
                and a warning, when there is none.
            weights_only: Has no effect: a checkpoint is always read without running code from it.

        Raises:
            MisconfigurationError: Something cannot work.
            ClusterError: The workers could not be had, or one died.
            Exception: Whatever the module or a callback raised, on any rank.
            KeyboardInterrupt: Ctrl-C, behind a checkpoint; `trainer.interrupted` is True then.
            Preempted: The run was told to go, behind a checkpoint; the script ends with status 143.
        """
        self._call(
            "fit",
            model,
            datamodule,
            ckpt_path,
            weights_only,
            train=train_dataloaders,
            val=val_dataloaders,
        )

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Run the validation set once and return one dictionary of metrics a loader.

        Args:
            model: The module; that of the last call when None.
            dataloaders: A loader, a list of loaders, or a data module.
            ckpt_path: Weights to use: a path, ``"best"`` or ``"last"``. Without a `model`, the best, where
                one was saved.
            verbose: Print the metrics.
            datamodule: A data module, instead of loaders.
            weights_only: As for `fit`.
        """
        result: list[dict[str, float]] = self._call(
            "validate", model, datamodule, ckpt_path, weights_only, verbose=verbose, val=dataloaders
        )
        return result

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Run the test set once and return a dictionary of metrics a loader; else as `validate`."""
        result: list[dict[str, float]] = self._call(
            "test", model, datamodule, ckpt_path, weights_only, verbose=verbose, test=dataloaders
        )
        return result

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Return what ``predict_step`` returns for each batch, in the order of the data; a list a loader when
        there are several.

        Args:
            model: The module; that of the last call when None.
            dataloaders: A loader, a list of loaders, or a data module.
            datamodule: A data module, instead of loaders.
            return_predictions: False returns None. By default predictions are returned unless a
                `BasePredictionWriter` writes them.
            ckpt_path: As for `validate`.
            weights_only: As for `fit`.
        """
        keep = returns_predictions(return_predictions, self.callbacks)
        outputs = self._call(
            "predict",
            model,
            datamodule,
            ckpt_path,
            weights_only,
            return_predictions=keep,
            predict=dataloaders,
        )
        if not keep:
            return None
        return outputs[0] if len(outputs) == 1 else outputs

    @counted("checkpoint")
    def save_checkpoint(
        self,
        filepath: str | os.PathLike[str],
        weights_only: bool | None = None,
        storage_options: Any = None,
        *,
        on_written: Callable[[], None] | None = None,
    ) -> Save | None:
        """Write a checkpoint of the run as it stands, or of the last fit. On a group, call it on all ranks;
        rank 0 writes, or, where it is sharded, each rank its part.

        After a fit on a group the optimizer's state is gone with the workers; then only ``weights_only=True``
        works, in the driver.

        Args:
            filepath: Where to: a path, or a URI of another file system.
            weights_only: Leave out all that only training needs.
            storage_options: Refused: other file systems take their options from the URI and the environment.
            on_written: Within `fit`, return once the state is copied, write behind training, and call this on
                rank 0, from another thread, when the checkpoint is complete. A save waits for the one
                before; `fit` does not end before the last.

        Returns:
            With `on_written`, within `fit`, the save that is on its way: it has `wait` and `error`. Else
            None.

        Raises:
            MisconfigurationError: There are storage options.
            RuntimeError: There is no module yet, or the state is not in this process.
            OSError: The file cannot be written.
        """
        caller = f"save_checkpoint({os.fspath(filepath)!r})"
        if storage_options is not None:
            raise MisconfigurationError(
                f"{caller[:-1]}, storage_options={storage_options!r}): checkpoints are written through "
                "pyarrow.fs, which takes options from the URI and the environment. Leave it out."
            )
        path = os.fspath(filepath)
        begun = save(self, self._last_fit, path, bool(weights_only), on_written, caller)
        if self.engine is not None:
            self.engine.untold = True
            self.engine.telling.note("checkpoint", path=path)
        return begun

    def dump_checkpoint(self, weights_only: bool = False) -> dict[str, Any]:
        """Return what `save_checkpoint` would write. On a group, call it on all ranks.

        Raises:
            RuntimeError: There is no module yet, or the state is not in this process.
        """
        return content_to_save(self, self._last_fit, weights_only, "dump_checkpoint()")

    @contextmanager
    def init_module(self, empty_init: bool | None = None) -> Iterator[None]:
        """A context in which to build a module as the run needs it: in the precision's type, and for a run in
        this process on its device.

        Args:
            empty_init: Leave weights unfilled, because a checkpoint will fill them.
        """
        with module_creation(self.settings.precision, self.plan.device, empty_init):
            yield

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0 only."""
        if self.is_global_zero:
            bar = self.progress_bar_callback
            (print if bar is None else bar.print)(*args, **kwargs)
