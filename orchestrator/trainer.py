"""The Trainer: what a user configures once and then calls.

It checks every argument before anything starts, decides where to run, hands the job over, and afterwards
holds the result: weights in the user's module, metrics, paths, callback states, the same whether it ran in
this process or on a group. Reading a property never communicates. Hooks get the trainer of the process that
they run in.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator.board import Board
from orchestrator.callbacks.callback import Callback
from orchestrator.callbacks.early_stopping import EarlyStopping
from orchestrator.callbacks.model_checkpoint import ModelCheckpoint
from orchestrator.checkpoint import contents, writer
from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.hooks import overrides
from orchestrator.job import Job
from orchestrator.launch import run_in_process, run_on_group
from orchestrator.loggers.csv import CSVLogger
from orchestrator.loggers.dummy import DummyLogger
from orchestrator.loggers.logger import Logger
from orchestrator.loggers.tensorboard import TensorBoardLogger
from orchestrator.optimizers import SchedulerConfig
from orchestrator.plan import Plan, make_plan
from orchestrator.progress import Progress
from orchestrator.settings import Settings
from orchestrator.state import TrainState
from orchestrator.strategies.strategy import Strategy

if TYPE_CHECKING:
    from cluster.spec import GroupSpec
    from orchestrator.engine import Engine
    from orchestrator.sweep.trial import Trial

_log = logging.getLogger("orchestrator")
_LOADER_KINDS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class Trainer:
    """Trains, validates, tests and predicts with a LightningModule.

    Args:
        accelerator: ``"cpu"``, ``"gpu"``, or ``"auto"``: GPUs when torch sees any.
        strategy: ``"auto"``, ``"single"``, or ``"ddp"``.
        devices: Processes on each node, or ``"auto"``: one on CPU, this machine's GPUs otherwise. More than
            one run on Ray.
        num_nodes: Distinct nodes.
        precision: 32, ``"bf16-mixed"``, or ``"16-mixed"``.
        logger: True for TensorBoard, False for none, or one's own, or a list.
        callbacks: One or a list.
        fast_dev_run: Run this many batches of everything, without checkpoints and logs.
        max_epochs: Epochs; -1 for no limit. 1000 when neither it nor `max_steps` is given.
        min_epochs: Do not stop early before this many epochs.
        max_steps: Optimizer steps; -1 for no limit.
        min_steps: Do not stop early before this many steps.
        limit_train_batches: A number of batches (int) or a share of them (float); likewise for val, test,
            predict.
        limit_val_batches: See above.
        limit_test_batches: See above.
        limit_predict_batches: See above.
        val_check_interval: Validate after this share of an epoch (float) or number of batches (int).
        check_val_every_n_epoch: Validate in every n-th epoch only. None counts batches over epochs.
        num_sanity_val_steps: Validation batches tried before training; -1 for all.
        log_every_n_steps: Steps between log points.
        enable_checkpointing: Add a ModelCheckpoint when there is none.
        enable_progress_bar: Show progress.
        accumulate_grad_batches: Batches whose gradients make one step.
        gradient_clip_val: Clip gradients at this.
        gradient_clip_algorithm: ``"norm"`` (default) or ``"value"``.
        inference_mode: Evaluate in ``torch.inference_mode`` rather than ``torch.no_grad``.
        use_distributed_sampler: Deal the data to ranks.
        default_root_dir: Where logs and checkpoints go; the working directory when None.
        scaling_config: A `ray.train.ScalingConfig`, instead of `devices` and `num_nodes`; runs on Ray even
            with one worker.
        placement_group: A Ray placement group to run in.
        resources_per_worker: What each worker reserves, like ``{"CPU": 2}``. 1 CPU, and with GPUs 1 GPU, when
            None.
        threads_per_worker: Intra-op threads of each worker; as many as reserved CPUs when None.
        start_timeout_s: Seconds to wait for the workers to start.
        pad_uneven: Repeat training samples until all ranks have equally many, as torch's DistributedSampler
            does.
        join_uneven: Where lengths are not known, go on until the last rank's data ends, not the first's.

    Attributes:
        callbacks: All callbacks, those that save checkpoints last.
        loggers: All loggers.
        should_stop: Set it to True to end training; on a group all ranks end at the next log point or
            validation.

    Raises:
        MisconfigurationError: An argument or a combination cannot work.
        TypeError: There is no such argument; the message says which one was meant.
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        strategy: str = "auto",
        devices: int | str = "auto",
        num_nodes: int = 1,
        precision: int | str | None = None,
        logger: bool | Logger | Sequence[Logger] | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        fast_dev_run: bool | int = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        val_check_interval: int | float | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        default_root_dir: str | os.PathLike[str] | None = None,
        scaling_config: Any = None,
        placement_group: Any = None,
        resources_per_worker: dict[str, float] | None = None,
        threads_per_worker: int | None = None,
        start_timeout_s: float = 60.0,
        pad_uneven: bool = False,
        join_uneven: bool = False,
        **unknown: Any,
    ) -> None:
        if unknown:
            _refuse_unknown(next(iter(unknown)))
        trial = _current_trial()
        if trial is not None:
            default_root_dir = trial.directory if default_root_dir is None else default_root_dir
            enable_checkpointing = False if enable_checkpointing is None else enable_checkpointing
        self.settings = Settings.create(
            accelerator=accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            fast_dev_run=fast_dev_run,
            max_epochs=max_epochs,
            min_epochs=min_epochs,
            max_steps=max_steps,
            min_steps=min_steps,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            val_check_interval=val_check_interval,
            check_val_every_n_epoch=check_val_every_n_epoch,
            num_sanity_val_steps=num_sanity_val_steps,
            log_every_n_steps=log_every_n_steps,
            enable_checkpointing=enable_checkpointing,
            enable_progress_bar=enable_progress_bar,
            accumulate_grad_batches=accumulate_grad_batches,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
            inference_mode=inference_mode,
            use_distributed_sampler=use_distributed_sampler,
            default_root_dir=default_root_dir,
            resources_per_worker=resources_per_worker,
            threads_per_worker=threads_per_worker,
            start_timeout_s=start_timeout_s,
            pad_uneven=pad_uneven,
            join_uneven=join_uneven,
        )
        self._scaling_config = scaling_config
        self._placement_group = placement_group
        self.plan: Plan = make_plan(
            self.settings,
            cuda_devices=torch.cuda.device_count(),
            scaling_config=scaling_config,
            placement_group=placement_group,
        )
        self.state = TrainState()
        self.board = Board()
        self.should_stop = False
        self.engine: Engine | None = None
        self.trial: Trial | None = None
        self.loggers: list[Logger] = _loggers(logger, self.settings)
        self.callbacks: list[Callback] = _callbacks(callbacks, enable_checkpointing, self.settings)
        self._module: LightningModule | None = None
        self._datamodule: LightningDataModule | None = None

    # ---------------------------------------------------------------- entry points

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
    ) -> None:
        """Train `model`; afterwards it holds the trained weights.

        Args:
            model: The module.
            train_dataloaders: A loader, an iterable of batches, or a data module.
            val_dataloaders: A loader or a list of loaders.
            datamodule: A data module, instead of loaders.
            ckpt_path: A checkpoint to go on from: a path, ``"last"`` or ``"best"``.

        Raises:
            MisconfigurationError: Something cannot work.
            ClusterError: The workers could not be had, or one died.
            Exception: Whatever the module or a callback raised, on any rank.
        """
        self._call("fit", model, datamodule, ckpt_path, train=train_dataloaders, val=val_dataloaders)

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
    ) -> list[dict[str, float]]:
        """Run the validation set once and return one dictionary of metrics a loader.

        Args:
            model: The module; that of the last call when None.
            dataloaders: A loader, a list of loaders, or a data module.
            ckpt_path: Weights to use: a path, ``"best"`` or ``"last"``. Without a `model`, the best.
            verbose: Print the metrics.
            datamodule: A data module, instead of loaders.
        """
        result: list[dict[str, float]] = self._call(
            "validate", model, datamodule, ckpt_path, verbose=verbose, val=dataloaders
        )
        return result

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
    ) -> list[dict[str, float]]:
        """Run the test set once and return a dictionary of metrics a loader; else as `validate`."""
        result: list[dict[str, float]] = self._call(
            "test", model, datamodule, ckpt_path, verbose=verbose, test=dataloaders
        )
        return result

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
    ) -> Any:
        """Return what ``predict_step`` returns for each batch, in the order of the data; a list a loader when
        there are several.

        Args:
            model: The module; that of the last call when None.
            dataloaders: A loader, a list of loaders, or a data module.
            datamodule: A data module, instead of loaders.
            return_predictions: False keeps nothing and returns None.
            ckpt_path: As for `validate`.
        """
        keep = return_predictions is not False
        outputs = self._call(
            "predict", model, datamodule, ckpt_path, return_predictions=keep, predict=dataloaders
        )
        if not keep:
            return None
        return outputs[0] if len(outputs) == 1 else outputs

    def save_checkpoint(self, filepath: str | os.PathLike[str], weights_only: bool = False) -> None:
        """Write a checkpoint of the run as it stands. On a group, call it on all ranks; rank 0 writes.

        After a fit on a group the optimizer's state is gone with the workers; then only ``weights_only=True``
        works.

        Raises:
            RuntimeError: There is no module yet, or the state is not in this process.
            OSError: The file cannot be written.
        """
        engine = self.engine
        if engine is None:
            raise RuntimeError(
                f"save_checkpoint({os.fspath(filepath)!r}): this trainer has no run in this process. "
                "Call it from a hook, or after a fit in this process, or use a ModelCheckpoint callback."
            )
        content = contents.build(engine, weights_only)
        if self.is_global_zero:
            writer.write(content, filepath)
        engine.untold = True

    def dump_checkpoint(self, weights_only: bool = False) -> dict[str, Any]:
        """Return what `save_checkpoint` would write. On a group, call it on all ranks.

        Raises:
            RuntimeError: There is no run in this process.
        """
        if self.engine is None:
            raise RuntimeError(
                "dump_checkpoint(): this trainer has no run in this process. Call it from a hook."
            )
        return contents.build(self.engine, weights_only)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0 only."""
        if self.is_global_zero:
            print(*args, **kwargs)

    # ---------------------------------------------------------------- how a call runs

    def _call(
        self,
        fn: str,
        model: LightningModule | None,
        datamodule: LightningDataModule | None,
        ckpt_path: str | os.PathLike[str] | None,
        *,
        return_predictions: bool = True,
        verbose: bool = True,
        **loaders: Any,
    ) -> Any:
        module = self._module if model is None else model
        first = _LOADER_KINDS[fn][0]
        if isinstance(loaders[first], LightningDataModule):
            if datamodule is not None:
                raise MisconfigurationError(f"{fn}() got two data modules. Give one.")
            datamodule, loaders[first] = loaders[first], None
        if datamodule is None and model is None and all(item is None for item in loaders.values()):
            datamodule = self._datamodule
        job = Job(
            fn=fn,
            module=_check_module(module, fn),
            datamodule=_check_datamodule(datamodule, fn, loaders),
            loaders={kind: item for kind, item in loaders.items() if item is not None},
            ckpt_path=self._resolve_checkpoint(fn, model, ckpt_path),
            return_predictions=return_predictions,
            verbose=verbose,
        )
        _check_steps(job)
        self._module, self._datamodule = job.module, job.datamodule
        self._add_module_callbacks(job.module)
        self.should_stop = False
        self._enter_trial()
        for logger in self.loggers:
            logger.claim()
        return self._run(job)

    def _run(self, job: Job) -> Any:
        plan = self.plan
        trial = self.trial
        progress = Progress() if self.settings.enable_progress_bar and trial is None else None
        show = progress.update if progress is not None else None
        _install_log_handler()
        _log.info(plan.describe())
        try:
            if plan.on_group:
                result = run_on_group(self, job, self._group_spec(), show)
            else:
                result = run_in_process(self, job, plan, show)
        finally:
            if progress is not None:
                progress.close()
        if job.fn in ("validate", "test") and job.verbose and trial is None:
            _print_results(job.fn, result)
        return result

    def _group_spec(self) -> GroupSpec:
        from cluster.spec import GroupSpec

        settings = self.settings
        options: dict[str, Any] = {
            "start_timeout_s": settings.start_timeout_s,
            "threads": settings.threads_per_worker,
        }
        if self._placement_group is not None:
            options["placement_group"] = self._placement_group
        elif self.trial is not None:
            return self.trial.group_spec(self.plan.num_workers, **options)
        if self._scaling_config is not None:
            return GroupSpec.from_scaling_config(self._scaling_config, **options)
        resources = None if settings.resources_per_worker is None else dict(settings.resources_per_worker)
        return GroupSpec.create(
            self.plan.num_workers,
            num_nodes=self.plan.num_nodes,
            use_gpu=self.plan.use_gpu,
            resources_per_worker=resources,
            **options,
        )

    def _enter_trial(self) -> None:
        """When this process runs a trial of a sweep, report to it and run where it has reserved."""
        trial = _current_trial()
        if trial is None or self.trial is trial:
            return
        self.trial = trial
        self.callbacks = _checkpoints_last([*self.callbacks, trial.reporter()])
        self.plan = make_plan(
            self.settings,
            cuda_devices=torch.cuda.device_count(),
            scaling_config=self._scaling_config,
            placement_group=self._placement_group,
            trial_workers=trial.num_workers,
        )

    def _add_module_callbacks(self, module: LightningModule) -> None:
        if not overrides(module, "configure_callbacks", LightningModule):
            return
        found = module.configure_callbacks() or []
        added = [found] if isinstance(found, Callback) else list(found)
        replaced = {type(item) for item in added}
        self.callbacks = _checkpoints_last(
            [item for item in self.callbacks if type(item) not in replaced] + added
        )

    def _resolve_checkpoint(
        self, fn: str, model: Any, ckpt_path: str | os.PathLike[str] | None
    ) -> str | None:
        if ckpt_path is None:
            if model is not None or fn == "fit":
                return None
            best = getattr(self.checkpoint_callback, "best_model_path", "")
            return best or None
        if ckpt_path == "best":
            best = getattr(self.checkpoint_callback, "best_model_path", "")
            if not best:
                raise MisconfigurationError(
                    f"{fn}(ckpt_path='best'): no checkpoint was saved yet. Fit with a ModelCheckpoint "
                    "first, or give a path."
                )
            return str(best)
        if ckpt_path == "last":
            last = [getattr(item, "last_model_path", "") for item in self.checkpoint_callbacks]
            paths = [path for path in last if path and os.path.exists(path)]
            if not paths:
                raise MisconfigurationError(
                    f"{fn}(ckpt_path='last'): there is no last checkpoint. Use "
                    "ModelCheckpoint(save_last=True), or give a path."
                )
            return max(paths, key=os.path.getmtime)
        path = os.path.abspath(os.path.expanduser(os.fspath(ckpt_path)))
        if not os.path.exists(path):
            raise FileNotFoundError(f"{fn}(ckpt_path={os.fspath(ckpt_path)!r}): there is no file {path}.")
        return path

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "engine": None,
            "trial": None,
            "_placement_group": None,
            "_scaling_config": None,
        }

    # ---------------------------------------------------------------- what users read

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
        """Validation batches of each loader on this rank that fit runs; infinite when not known, empty
        without validation.
        """
        return [] if self.engine is None else _counts(self.engine.val_limits)

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Validation batches of each loader that are tried before training."""
        steps = self.settings.num_sanity_val_steps
        return [count if steps < 0 else min(steps, count) for count in self.num_val_batches]

    @property
    def ckpt_path(self) -> str | None:
        """The checkpoint that the call of this process started from, or None."""
        return None if self.engine is None else self.engine.job.ckpt_path

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
        """All callbacks that save checkpoints."""
        return [item for item in self.callbacks if isinstance(item, ModelCheckpoint)]

    @property
    def checkpoint_callback(self) -> ModelCheckpoint | None:
        """The first callback that saves checkpoints."""
        found = self.checkpoint_callbacks
        return found[0] if found else None

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """All callbacks that stop early."""
        return [item for item in self.callbacks if isinstance(item, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first callback that stops early."""
        found = self.early_stopping_callbacks
        return found[0] if found else None


def _current_trial() -> Trial | None:
    """Return the trial of a sweep that this process runs; outside of one nothing is imported."""
    module = sys.modules.get("orchestrator.sweep.trial")
    return None if module is None else cast("Trial | None", module.current())


def _refuse_unknown(name: str) -> NoReturn:
    import inspect

    known = [
        item for item in inspect.signature(Trainer.__init__).parameters if item not in ("self", "unknown")
    ]
    hint = suggest(name, known)
    raise TypeError(
        f"Trainer has no argument {name!r}.{hint}" + ("" if hint else f" It has {', '.join(known)}.")
    )


def _loggers(given: Any, settings: Settings) -> list[Logger]:
    if settings.fast_dev_run:
        return [DummyLogger()] if given not in (False, []) else []
    if given is None or given is True:
        return [TensorBoardLogger(settings.default_root_dir)]
    if given is False:
        return []
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    for item in found:
        if not isinstance(item, Logger):
            raise MisconfigurationError(
                f"Trainer(logger={item!r}) is a {type(item).__name__}. Use True, False, a Logger such as "
                f"{CSVLogger.__name__}, or a list."
            )
    return found


def _callbacks(given: Any, enable_checkpointing: bool | None, settings: Settings) -> list[Callback]:
    found = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    for item in found:
        if not isinstance(item, Callback):
            hint = (
                "Give an instance, not the class."
                if isinstance(item, type)
                else "Subclass orchestrator.Callback."
            )
            raise MisconfigurationError(
                f"Trainer(callbacks=...) has {item!r}, which is not a callback. {hint}"
            )
    keys = [item.state_key for item in found if type(item).state_dict is not Callback.state_dict]
    doubled = sorted({key for key in keys if keys.count(key) > 1})
    if doubled:
        raise MisconfigurationError(
            f"Trainer(callbacks=...) has several callbacks with the state key {doubled[0]!r}, so their "
            "states cannot be told apart. "
            "Give them different arguments, or override state_key."
        )
    saves = any(isinstance(item, ModelCheckpoint) for item in found)
    if saves and enable_checkpointing is False and _current_trial() is None:
        raise MisconfigurationError(
            "Trainer(enable_checkpointing=False) has a ModelCheckpoint among its callbacks. Leave one of "
            "them out."
        )
    if settings.enable_checkpointing and not saves:
        found.append(ModelCheckpoint())
    return _checkpoints_last(found)


def _checkpoints_last(callbacks: list[Callback]) -> list[Callback]:
    return sorted(callbacks, key=lambda item: isinstance(item, ModelCheckpoint))


def _check_module(module: Any, fn: str) -> LightningModule:
    if module is None:
        raise MisconfigurationError(
            f"{fn}() needs a module: this trainer has not seen one yet. Call {fn}(model)."
        )
    if not isinstance(module, LightningModule):
        hint = (
            "Give an instance, not the class."
            if isinstance(module, type)
            else "Subclass orchestrator.LightningModule."
        )
        raise MisconfigurationError(
            f"{fn}() got a {type(module).__name__}, which is not a LightningModule. {hint}"
        )
    return module


def _check_datamodule(datamodule: Any, fn: str, loaders: dict[str, Any]) -> LightningDataModule | None:
    if datamodule is None:
        return None
    if not isinstance(datamodule, LightningDataModule):
        raise MisconfigurationError(
            f"{fn}(datamodule=...) got a {type(datamodule).__name__}. Subclass "
            "orchestrator.LightningDataModule, "
            "or pass loaders by position."
        )
    given = [f"{kind}_dataloaders" for kind, item in loaders.items() if item is not None]
    if given:
        raise MisconfigurationError(f"{fn}() got a datamodule and {', '.join(given)}. Give one or the other.")
    return datamodule


def _check_steps(job: Job) -> None:
    """Refuse a module that lacks what the call needs."""
    module, name = job.module, type(job.module).__qualname__
    needed = {
        "fit": ("training_step", "configure_optimizers"),
        "validate": ("validation_step",),
        "test": ("test_step",),
    }
    for method in needed.get(job.fn, ()):
        if not overrides(module, method, LightningModule):
            raise MisconfigurationError(
                f"{job.fn}() needs {name}.{method}(), which is not defined. Define it."
            )
    if job.fn == "fit" and not module.automatic_optimization:
        raise MisconfigurationError(
            f"{name}.automatic_optimization is False: manual optimization is not supported yet. "
            "Return the loss from training_step instead."
        )
    if (
        job.fn == "fit"
        and job.loaders.get("val") is not None
        and not overrides(module, "validation_step", LightningModule)
    ):
        raise MisconfigurationError(
            f"fit() got val_dataloaders, but {name} has no validation_step(). Define it, or leave the "
            "loaders out."
        )
    for kind in _LOADER_KINDS[job.fn][:1]:
        source = job.datamodule if job.datamodule is not None else module
        base = LightningDataModule if job.datamodule is not None else LightningModule
        method = f"{kind}_dataloader"
        if (
            kind not in job.loaders
            and not overrides(source, method, base)
            and not overrides(module, method, LightningModule)
        ):
            raise MisconfigurationError(
                f"{job.fn}() has no {kind} data: none was given, and {type(source).__qualname__} has no "
                f"{method}(). "
                f"Pass a loader or a datamodule to {job.fn}(), or define {method}()."
            )


def _counts(limits: list[int | None]) -> list[int | float]:
    return [float("inf") if limit is None else limit for limit in limits]


def _print_results(fn: str, results: list[dict[str, float]]) -> None:
    for index, metrics in enumerate(results):
        title = f"{fn} metrics" + (f" of loader {index}" if len(results) > 1 else "")
        width = max([len(name) for name in metrics] + [len(title)])
        lines = [f"{name:<{width}}  {value:.6g}" for name, value in sorted(metrics.items())]
        print("\n".join([title, "-" * width, *lines]))


def _install_log_handler() -> None:
    """Show what the Trainer says on stderr, unless the program has set up logging itself."""
    if not _log.handlers and not logging.getLogger().handlers:
        _log.addHandler(logging.StreamHandler())
        _log.setLevel(logging.INFO)
