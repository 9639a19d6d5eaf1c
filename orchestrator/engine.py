"""What a process runs for one call of the trainer: builds the pieces once, then calls a loop.

The same in the driver's process and on a worker; only `Place` differs. After a failure the hooks for it are
called, everything is torn down, and the exception goes on to the caller unchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from cluster.errors import RunLost
from modules import rng
from modules.combined_reading import Reader
from modules.datamodule import LightningDataModule
from modules.loader import RankLoader
from modules.module import LightningModule
from orchestrator import compile as compilation
from orchestrator import device, foreign
from orchestrator.bare_log import BareLog
from orchestrator.board import Board
from orchestrator.checkpoint import contents
from orchestrator.checkpoint.background import BackgroundSaves
from orchestrator.epoch_outputs import collectors
from orchestrator.evaluate import evaluate, gradient_context
from orchestrator.feed import Feed
from orchestrator.goodput import Account, counted
from orchestrator.hooks import HookTable, overrides
from orchestrator.hyperparameter_log import logged_hyperparameters
from orchestrator.job import Job
from orchestrator.ledger import Ledger
from orchestrator.lightning_optimizer import LightningOptimizer
from orchestrator.loaders import Loaders
from orchestrator.log_slots import LogSlots
from orchestrator.loggers.dummy import DummyLogger
from orchestrator.loggers.logger import Logger
from orchestrator.logical_ranks import LogicalRanks, logical_ranks_of
from orchestrator.manual import ManualOptimization
from orchestrator.metric_objects import MetricObjects
from orchestrator.optimizer_setup import set_up_optimizers
from orchestrator.optimizers import SchedulerConfig
from orchestrator.place import Place
from orchestrator.precision import Precision
from orchestrator.predictions import predictions_for
from orchestrator.profilers.instruments import instruments_for
from orchestrator.progress import ProgressRecord, as_shown
from orchestrator.reporting import Reporting
from orchestrator.run_fit import run_fit
from orchestrator.stop_agreement import GatheredStop, RankStop
from orchestrator.stops import AgreedStop
from orchestrator.strategies.elastic import Elastic
from orchestrator.strategies.making import make_strategy
from orchestrator.strategies.strategy import Strategy
from orchestrator.sweep.stopped import TrialStopped
from orchestrator.telling import Telling
from orchestrator.torch_modes import torch_modes
from orchestrator.transfer import build_transfer
from orchestrator.validation_schedule import ValidationClock
from orchestrator.vitals import Vitals

if TYPE_CHECKING:
    from orchestrator.requeue import Requeue
    from orchestrator.trainer import Trainer


class Engine:
    """The pieces of one call.

    Args:
        trainer: Whose settings, callbacks, loggers and state; also what hooks get as ``trainer``.
        job: What to run.
        place: Where this process stands.
        show: Takes progress records; None on ranks that show nothing.

    Attributes:
        rng_to_resume: The random state that a checkpoint keeps, where it is not the present one: within a
            validation, which is then run again.
        reporting: Brings what was logged to loggers, callbacks and the display.
        order_seed: The seed of the order of training samples; a resumed run keeps the one it began with.
        data: The loaders.
        validation_clock: Says when validation is due that goes by the time; None where it does not.
        manual: Runs the module's own optimization; None where optimization is automatic.
        accumulate: Batches that make one step in the running epoch.
        requeue: Asked at log points whether the job goes back into its queue; None where there is no queue.
        stopping: Where this rank is, and whether it was told to stop there.
        logical: The logical ranks of this process; None where ranks are processes.
        gathered_stop: Asked at log points where ranks have no driver; else None.
        stoppable: The training loop runs, so it will stop soon when told to.
        predictions: What a run of predict keeps.
        saves: Writes checkpoints behind training.
        ledger: Writes down the samples of each batch; None where nobody asked for it.
        untold: A checkpoint was written since the driver last heard where this run stands.
        account: Where this rank's time goes.
        telling: Tells the driver what belongs into the run's record.
        vitals: How the run is doing, for the display.
    """

    progress_interval_s = 0.2

    def __init__(
        self, trainer: Trainer, job: Job, place: Place, show: Callable[[ProgressRecord], None] | None
    ) -> None:
        self.account = Account()
        self.telling = Telling(self)
        self.vitals = Vitals(self)
        self.trainer = trainer
        self.job = job
        self.settings = trainer.settings
        logical_ranks = logical_ranks_of(self.settings, trainer.plan.num_workers)
        if logical_ranks is not None and job.fn != "predict":
            grouped = trainer.plan.on_group or trainer.plan.launched is not None
            place = replace(place, world_size=logical_ranks, logical_ranks=logical_ranks, grouped=grouped)
        self.place = place
        self._loggers = trainer.loggers
        if place.rank > 0:
            trainer.loggers = [DummyLogger(logger) for logger in trainer.loggers]
        self.state = trainer.state
        self.board: Board = trainer.board
        self.module: LightningModule = job.module
        self.datamodule: LightningDataModule | None = job.datamodule
        self.precision = Precision.create(self.settings.precision, place.device)
        self.strategy: Strategy = make_strategy(self.settings, place, self.precision)
        objects = MetricObjects(self.module, place.world_size)
        self.logical: LogicalRanks | None = None
        if isinstance(self.strategy, Elastic):
            self.logical = LogicalRanks(self, self.strategy)
        self.train_slots = LogSlots(objects) if self.logical is None else self.logical.make_slots(objects)
        self.slots = self.train_slots
        self.optimizers: list[Optimizer] = []
        self.lightning_optimizers: list[LightningOptimizer] = []
        self.manual: ManualOptimization | None = None
        self.accumulate = trainer.accumulate_grad_batches
        self.schedulers: list[SchedulerConfig] = []
        self.feed: Feed | None = None
        self.stop_agreed = False
        self.resumed: contents.Resumed | None = None
        self._to_resume: dict[str, Any] | None = None
        self.rng_to_resume: dict[str, Any] | None = None
        self.reporting = Reporting(self)
        self.order_seed = rng.global_seed() or 0
        self.validation_clock: ValidationClock | None = None
        self.untold = False
        self.requeue: Requeue | None = None
        self.stopping = RankStop(self)
        self.gathered_stop: GatheredStop | None = None
        self.stoppable = False
        self.predictions = predictions_for(trainer.callbacks, returned=job.return_predictions)
        self.saves = BackgroundSaves(self.say)
        self.ledger: Ledger | None = None
        if job.attempt is not None:
            self.ledger = Ledger(
                self.settings.default_root_dir,
                job.attempt,
                place.rank,
                place.world_size,
                place.joins,
                self.say,
            )
        self._torn_down = False
        self._show = show
        self.shows_progress = show is not None
        self._bar = trainer.progress_bar_callback
        self._bare_log = BareLog() if self.settings.barebones else None
        callbacks = [*collectors(self.module), *trainer.callbacks]
        self.hooks = HookTable(trainer, self.module, self.datamodule, callbacks)
        self.transfer: Callable[[Any, int], Any] | None = None
        self.data = Loaders(self)
        self.instruments = instruments_for(trainer.profiler)
        if self.instruments is not None:
            self.hooks = self.instruments.hooks(self.hooks)

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0."""
        return self.place.rank == 0

    # ---------------------------------------------------------------- one call

    def run(self) -> Any:
        """Run the job and return what its entry point returns."""
        fn = self.job.fn
        self.state.fn, self.state.status = fn, "running"
        self.state.stage = "train" if fn == "fit" else fn
        self.board.clear()
        self._attach()
        try:
            with torch_modes(self.settings, fn):
                self._prepare()
                result = None
                if fn == "fit":
                    self._fit()
                else:
                    result = self._evaluate_only(fn)
                self._finish()
            return result
        except TrialStopped:
            self._finish()
            raise
        except BaseException as error:
            self.account.switch("idle")
            self.state.status = "interrupted"
            self.saves.hurry()
            if isinstance(error, AgreedStop) or not (
                isinstance(error, RunLost) or self._comes_of_a_loss(error)
            ):
                self._on_failure(error)
                if isinstance(error, AgreedStop):
                    self.strategy.bring_back(self.module)
                raise
            self._end_loggers("failed")
            with contextlib.suppress(Exception):  # what needs the others cannot be done any more
                self.call_teardown()
            if isinstance(error, RunLost):
                raise
        finally:
            self.saves.end()
            if self.ledger is not None:
                self.ledger.close()
            self.telling.note("end")
            self._detach()
        # Nothing of the failure is kept: it holds the broken process group.
        raise RunLost("Another rank was lost where the run could not go on by itself.")

    def _attach(self) -> None:
        trainer, module = self.trainer, self.module
        trainer.engine = self
        trainer.batch_counts = {}
        foreign.bind(module)
        foreign.tell_rank(self.place.rank)
        module.trainer = self.hooks.trainer_for(module)
        if self.datamodule is not None:
            self.datamodule.trainer = self.hooks.trainer_for(self.datamodule)
        self.attach_slots()

    def _detach(self) -> None:
        if self.instruments is not None:
            self.instruments.remove()
            self.trainer.profiler.teardown(self.job.fn)
            self.trainer.profiler.describe(self.say)
        self.module.__dict__["_log_sink"] = self.module.__dict__["_optimization"] = None
        for optimizer in self.lightning_optimizers:
            optimizer.conductor = None
        for callback in self.trainer.callbacks:
            callback.__dict__.pop("_log_sink", None)
        foreign.release(self.module)
        self.state.stage = ""
        self.train_slots.table = self.train_slots.batch = None
        self.strategy.teardown()
        compilation.remove(self.module)
        self.precision.revert(self.module)
        if self.feed is not None:
            self.feed.close()

    def attach_slots(self) -> None:
        """Send what the module and the callbacks log to `slots`."""
        sink = self.slots.log if self._bare_log is None else self._bare_log
        for owner in (self.module, *self.trainer.callbacks):
            owner.__dict__["_log_sink"] = sink

    def _prepare(self) -> None:
        """Run everything up to the loop that all entry points share."""
        fn = self.job.fn
        if self.instruments is not None:
            rank = self.place.rank if self.place.world_size > 1 else None
            self.trainer.profiler.setup(fn, rank, self.trainer.log_dir)
        self._prepare_data()
        checkpoint = contents.read_for(self) if self.job.ckpt_path is not None else None
        if fn == "fit" and checkpoint is not None:  # for training data that is loaded early
            self.order_seed, self.state.epoch = contents.order_of(checkpoint, self.order_seed)
        self.slots.enter("setup")
        for hook in self.hooks.of_datamodule("setup") + self.hooks["setup"]:
            hook(fn)
        self.slots.enter("configure_model")
        with self.precision.new_tensors():
            self.module.configure_model()
        if checkpoint is not None:
            contents.restore_module(self, checkpoint)
        self.precision.convert(self.module, self.place.device)
        if self.job.compile is not None:
            compilation.install(self.module, fn, self.job.compile)
        if self.instruments is not None:
            self.instruments.watch_steps(self.module)
        self.strategy.setup(self.module, training=fn == "fit")
        self.transfer = build_transfer(self.hooks, self.place.device, self.precision.dtype)
        if fn == "fit":
            if not self.job.only_tunes:  # nothing is trained: no length to plan a schedule by
                self._configure_optimizers()
            self._to_resume = checkpoint
        if self.logical is not None:
            self.logical.check_alike()
        if self.instruments is not None:
            self.instruments.install(self)

    def _fit(self) -> None:
        self.call("on_fit_start")
        if self.place.joins:  # what there is to restore comes from another rank
            self._to_resume = None
        if self._to_resume is not None:  # behind the hook, which may change what is restored
            self.resumed = contents.restore_training(self, self._to_resume)
            self._to_resume = None
        if not self.place.joins:
            self._log_hyperparameters()
        run_fit(self)
        self.call("on_fit_end")

    def _evaluate_only(self, fn: str) -> Any:
        kind = {"validate": "val", "test": "test", "predict": "predict"}[fn]
        self._log_hyperparameters()
        for hook in self.hooks.of_callbacks("before_evaluation_data"):
            hook()
        if getattr(self.settings, f"limit_{kind}_batches") == 0:
            return []
        loaders, limits = self.data.load(kind)
        if not loaders:
            return []
        self.fold_seed()
        return self.evaluate(fn, loaders, limits)

    def _finish(self) -> None:
        self.account.switch("idle")
        for logger in self._own_loggers():
            logger.finalize("success")
        self.strategy.bring_back(self.module)
        self.call_teardown()
        self.state.status = "finished"

    def _comes_of_a_loss(self, error: BaseException) -> bool:
        """Whether the run will be called again, because another rank was lost."""
        return self.place.peers is not None and self.place.peers.is_broken(error)

    def _end_loggers(self, status: str) -> None:
        for logger in self._own_loggers():
            with contextlib.suppress(Exception):
                logger.finalize(status)

    def _on_failure(self, error: BaseException) -> None:
        """Tell everybody about a failure; their own failures are notes of it, and must not hide it."""
        if self.place.world_size > 1 and "Expected to have finished reduction" in str(error):
            error.add_note("Some parameters got no gradient. Use strategy='ddp_find_unused_parameters_true'.")
        for hook in self.hooks.of_callbacks("on_exception"):
            with _noted_in(error):
                hook(error)
        for hook in self.hooks.of_datamodule("on_exception"):
            with _noted_in(error):
                hook(error)
        told = isinstance(error, AgreedStop)
        for logger in self._own_loggers():
            with _noted_in(error):
                logger.finalize("interrupted" if told and isinstance(logger, Logger) else "failed")
        with _noted_in(error):
            self.call_teardown()

    def call(self, name: str) -> None:
        """Call a hook that takes no further arguments, of callbacks and module."""
        for hook in self.hooks[name]:
            self.slots.enter(name)
            hook()
        self.slots.table = None

    def call_teardown(self) -> None:
        """Call the teardown hooks, once: data module, callbacks, module."""
        if self._torn_down:
            return
        self._torn_down = True
        self.slots.enter("teardown")
        for hook in self.hooks.of_datamodule("teardown") + self.hooks["teardown"]:
            hook(self.job.fn)

    # ---------------------------------------------------------------- preparations

    def lead(self) -> None:
        """Be the first process from now on, which logs: the one before is lost."""
        self.trainer.loggers = self._loggers

    def fold_seed(self) -> None:
        """Give every rank but the first its own random stream; rank 0 goes on with the driver's.

        Not before the user's set-up and loaders, which must do the same on all ranks: a random split, say.
        """
        if self.logical is not None:
            self.logical.key_once("begin")
        elif self.place.rank > 0:
            rng.fold_rank(self.place.rank)

    def key_once(self, what: str) -> None:
        """Under logical ranks: set all random generators for what each process does once, alike in all."""
        if self.logical is not None:
            self.logical.key_once(what)

    def take_loader(self, loader: RankLoader, kind: str) -> None:
        """Take note of a loader that was made; a profiler times it."""
        if self.instruments is not None:
            self.instruments.watch_loader(loader, kind)

    def _prepare_data(self) -> None:
        self.slots.enter("prepare_data")
        for owner in (self.hooks.of_datamodule("prepare_data"), self.hooks.of_module("prepare_data")):
            for hook in owner:
                per_node = getattr(getattr(hook, "__self__", None), "prepare_data_per_node", True)
                if self.place.local_rank == 0 if per_node else self.is_global_zero:
                    hook()
                if not self.place.joins:
                    self.strategy.barrier()

    def _configure_optimizers(self) -> None:
        set_up_optimizers(self)

    def rebuild_optimizers(self) -> None:
        """Build optimizers and schedulers anew, before the first step, from what the module says now."""
        self._configure_optimizers()
        if self.instruments is not None:
            self.instruments.watch_optimizers(self.optimizers)

    def _log_hyperparameters(self) -> None:
        wanted = self.settings.enable_autolog_hparams and self.trainer.loggers
        values = logged_hyperparameters(self.module, self.datamodule) if wanted else {}
        for logger in self._own_loggers():
            if values:
                logger.log_hyperparams(values)
            logger.log_graph(self.module)
            logger.save()

    def _own_loggers(self) -> Sequence[Any]:
        return self.trainer.loggers if self.is_global_zero else ()

    # ---------------------------------------------------------------- what the loops call

    @counted("evaluation")
    def evaluate(
        self,
        stage: str,
        loaders: list[Reader],
        limits: list[int | None],
        before_end: Callable[[], None] | None = None,
    ) -> Any:
        """Run an evaluation loop; see `orchestrator.evaluate`."""
        return evaluate(self, stage, loaders, limits, before_end)

    def without_gradients(self, stage: str) -> contextlib.AbstractContextManager[Any]:
        """Return the context of evaluation; inference mode only outside of fit and without a group."""
        alone = self.place.world_size == 1
        return gradient_context(self.settings.inference_mode and alone and self.job.fn != "fit")

    def to_host(self, output: Any) -> Any:
        """Bring what predict_step returned to where it can be kept."""
        return device.move(output, torch.device("cpu"))

    def step_scheduler(self, config: SchedulerConfig, metric: Any) -> None:
        """Step a scheduler through the module's hook, if it has one."""
        if overrides(self.module, "lr_scheduler_step", LightningModule):
            self.slots.enter("lr_scheduler_step")
            self.module.lr_scheduler_step(config.scheduler, metric)
        elif metric is None:
            config.scheduler.step()
        else:
            config.scheduler.step(metric)

    def agree_on_stopping(self) -> None:
        """Make ``should_stop`` of any rank that of all, so that all leave the loop at the same step."""
        if self.place.world_size > 1:
            self.take_agreement(self.strategy.gather(bool(self.trainer.should_stop)))

    def stop_together(self) -> None:
        """End training after this batch. All ranks call it at the same batch."""
        self.take_agreement([True])

    def take_agreement(self, stops: list[bool]) -> None:
        """Take note of every rank's ``should_stop``: any of them stops all."""
        self.stop_agreed = any(stops)
        self.trainer.should_stop = self.stop_agreed

    def take_resumed(self) -> contents.Resumed | None:
        """Return, once, what the loop needs to go on where a checkpoint left off."""
        resumed, self.resumed = self.resumed, None
        return resumed

    def tell_standing(self) -> None:
        """Tell the driver, after a checkpoint, where the run stands: what is left there if it fails later."""
        self.untold = False
        if self.is_global_zero and self.place.standing is not None:
            self.place.emit(self.place.standing(self.trainer, self.job))

    def say(self, text: str) -> None:
        """Tell the user something, from rank 0."""
        if self.is_global_zero:
            self.place.emit(text)

    def show(self, stage: str, batch: int, total: int | None, *, done: bool = False) -> None:
        """Send a progress record to the display."""
        if self._show is None or not self.is_global_zero:
            return
        self._show(
            ProgressRecord(
                stage=stage,
                epoch=self.state.epoch,
                max_epochs=self.settings.max_epochs,
                batch=batch,
                total_batches=total,
                metrics=self._metrics_to_show(),
                step=self.state.global_step,
                done=done,
                **(self.vitals.of_training(batch) if stage == "train" else {}),
            )
        )

    def _metrics_to_show(self) -> dict[str, float | str]:
        """Return what the progress bar wants beside it, as plain values."""
        if self._bar is None:
            return dict(self.board.progress)
        metrics = self._bar.get_metrics(self.trainer, self.module)
        return {name: as_shown(value) for name, value in metrics.items()}


@contextlib.contextmanager
def _noted_in(error: BaseException) -> Iterator[None]:
    """A context whose own exception becomes a note of `error`."""
    try:
        yield
    except Exception as another:
        error.add_note(f"Afterwards a hook failed too: {type(another).__name__}: {another}")
