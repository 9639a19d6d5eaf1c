"""What a process runs for one call of the trainer: builds the pieces once, then calls a loop.

The same in the driver's process and on a worker; only `Place` differs. After a failure the hooks for it are
called, everything is torn down, and the exception goes on to the caller unchanged.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer
from torch.utils.data import Dataset

from modules import rng
from modules.datamodule import LightningDataModule
from modules.loader import RankLoader
from modules.module import LightningModule
from orchestrator import device, foreign
from orchestrator.board import Board
from orchestrator.checkpoint import contents
from orchestrator.epoch_outputs import collectors
from orchestrator.errors import MisconfigurationError
from orchestrator.evaluate import evaluate, gradient_context
from orchestrator.feed import Feed, batch_limit, empty_loader
from orchestrator.fit import run_fit
from orchestrator.hooks import HookTable, overrides
from orchestrator.job import Job
from orchestrator.log_slots import LogSlots, combine
from orchestrator.loggers.dummy import DummyLogger
from orchestrator.optimizers import SchedulerConfig, parse
from orchestrator.place import Place
from orchestrator.precision import Precision
from orchestrator.progress import ProgressRecord
from orchestrator.step import needs_closure
from orchestrator.strategies.ddp import DDPStrategy
from orchestrator.strategies.single import SingleStrategy
from orchestrator.strategies.strategy import Strategy
from orchestrator.sweep.stopped import TrialStopped

if TYPE_CHECKING:
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
        limits: Batches that are run of each loader by a call that only evaluates, by kind: val, test,
            predict.
        eval_batches: Batches that were evaluated in this call, by stage and loader.
        order_seed: The seed of the order of training samples.
        untold: A checkpoint was written since the driver last heard where this run stands.
    """

    progress_interval_s = 0.2

    def __init__(
        self, trainer: Trainer, job: Job, place: Place, show: Callable[[ProgressRecord], None] | None
    ) -> None:
        self.trainer = trainer
        self.job = job
        self.place = place
        self.settings = trainer.settings
        if place.rank > 0:
            trainer.loggers = [DummyLogger(logger) for logger in trainer.loggers]
        self.state = trainer.state
        self.board: Board = trainer.board
        self.module: LightningModule = job.module
        self.datamodule: LightningDataModule | None = job.datamodule
        self.strategy: Strategy = (
            SingleStrategy(place.device)
            if place.world_size == 1
            else DDPStrategy(place.device, **self.settings.ddp_options)
        )
        self.precision = Precision.create(self.settings.precision, place.device)
        self.train_slots = LogSlots()
        self.slots = self.train_slots
        self.optimizers: list[Optimizer] = []
        self.schedulers: list[SchedulerConfig] = []
        self.feed: Feed | None = None
        self.train_loader: RankLoader
        self.val_loaders: list[RankLoader] = []
        self.val_limits: list[int | None] = []
        self.limits: dict[str, list[int | None]] = {}
        self.stop_agreed = False
        self.resumed: contents.Resumed | None = None
        self.rng_to_resume: dict[str, Any] | None = None
        self.eval_batches: dict[tuple[str, int], int] = {}
        self.order_seed = rng.global_seed() or 0
        self.untold = False
        self._torn_down = False
        self._show = show
        self.shows_progress = show is not None
        callbacks = [*collectors(self.module), *trainer.callbacks]
        self.hooks = HookTable(trainer, self.module, self.datamodule, callbacks)
        self.transfer: Callable[[Any, int], Any] | None = None

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
            self.state.status = "interrupted"
            self._on_failure(error)
            raise
        finally:
            self._detach()

    def _attach(self) -> None:
        trainer, module = self.trainer, self.module
        trainer.engine = self
        foreign.bind(module)
        foreign.tell_rank(self.place.rank)
        module.trainer = self.hooks.trainer_for(module)
        if self.datamodule is not None:
            self.datamodule.trainer = self.hooks.trainer_for(self.datamodule)
        self.attach_slots()

    def _detach(self) -> None:
        self.module.__dict__["_log_sink"] = None
        foreign.release(self.module)
        self.state.stage = ""
        self.train_slots.table = self.train_slots.batch = None
        self.strategy.teardown()
        if self.feed is not None:
            self.feed.close()

    def attach_slots(self) -> None:
        """Send what the module logs to `slots`."""
        self.module.__dict__["_log_sink"] = self.slots.log

    def _prepare(self) -> None:
        """Run everything up to the loop that all entry points share."""
        fn = self.job.fn
        self._prepare_data()
        self.slots.enter("setup")
        for hook in self.hooks.of_datamodule("setup") + self.hooks["setup"]:
            hook(fn)
        self.slots.enter("configure_model")
        self.module.configure_model()
        checkpoint = contents.read_for(self) if self.job.ckpt_path is not None else None
        if checkpoint is not None:
            contents.restore_module(self, checkpoint)
        self.strategy.setup(self.module, training=fn == "fit")
        self.transfer = self._build_transfer()
        if fn == "fit":
            self._configure_optimizers()
            if checkpoint is not None:
                self.resumed = contents.restore_training(self, checkpoint)

    def _fit(self) -> None:
        self.call("on_fit_start")
        self._log_hyperparameters()
        run_fit(self)
        self.call("on_fit_end")

    def _evaluate_only(self, fn: str) -> Any:
        kind = {"validate": "val", "test": "test", "predict": "predict"}[fn]
        if self._limit_of(kind) == 0:
            return []
        loaders = self._rank_loaders(kind)
        self.fold_seed()
        self.limits[kind] = self._limits(f"limit_{kind}_batches", loaders)
        return self.evaluate(fn, loaders, self.limits[kind])

    def _finish(self) -> None:
        for logger in self._own_loggers():
            logger.finalize("success")
        self.call_teardown()
        self.state.status = "finished"

    def _on_failure(self, error: BaseException) -> None:
        """Tell everybody about a failure; their own failures must not hide it."""
        if self.place.world_size > 1 and "Expected to have finished reduction" in str(error):
            error.add_note("Some parameters got no gradient. Use strategy='ddp_find_unused_parameters_true'.")
        for hook in self.hooks.of_callbacks("on_exception"):
            with contextlib.suppress(Exception):
                hook(error)
        for hook in self.hooks.of_datamodule("on_exception"):
            with contextlib.suppress(Exception):
                hook(error)
        for logger in self._own_loggers():
            with contextlib.suppress(Exception):
                logger.finalize("failed")
        with contextlib.suppress(Exception):
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

    def fold_seed(self) -> None:
        """Give every rank but the first its own random stream; rank 0 goes on with the driver's.

        Not before the user's set-up and loaders, which must do the same on all ranks: a random split, say.
        """
        if self.place.rank > 0:
            rng.fold_rank(self.place.rank)

    def _prepare_data(self) -> None:
        self.slots.enter("prepare_data")
        for owner in (self.hooks.of_datamodule("prepare_data"), self.hooks.of_module("prepare_data")):
            for hook in owner:
                per_node = getattr(getattr(hook, "__self__", None), "prepare_data_per_node", True)
                if self.place.local_rank == 0 if per_node else self.is_global_zero:
                    hook()
                self.strategy.barrier()

    def _build_transfer(self) -> Callable[[Any, int], Any] | None:
        """Return the function that brings a batch to the device, or None when there is nothing to do."""
        before = self.hooks.data_hook("on_before_batch_transfer")
        move = self.hooks.data_hook("transfer_batch_to_device")
        after = self.hooks.data_hook("on_after_batch_transfer")
        target = self.place.device
        if before is None and move is None and after is None:
            return None if target.type == "cpu" else lambda batch, index: device.move(batch, target)

        def transfer(batch: Any, index: int) -> Any:
            if before is not None:
                batch = before(batch, index)
            batch = device.move(batch, target) if move is None else move(batch, target, index)
            return batch if after is None else after(batch, index)

        return transfer

    def _configure_optimizers(self) -> None:
        self.slots.enter("configure_optimizers")
        self.optimizers, self.schedulers = parse(self.module.configure_optimizers())
        if len(self.optimizers) > 1:
            raise MisconfigurationError(
                f"configure_optimizers returned {len(self.optimizers)} optimizers. Automatic optimization "
                "steps one: "
                "put all parameters into its groups."
            )
        if not self.optimizers and self.is_global_zero:
            warnings.warn(
                f"{type(self.module).__qualname__}.configure_optimizers returned no optimizer: training_step "
                "runs, but nothing is optimised. Return an optimizer, unless this is meant.",
                stacklevel=2,
            )
        if self.place.world_size > 1 and any(needs_closure(optimizer) for optimizer in self.optimizers):
            raise MisconfigurationError(
                f"{type(self.optimizers[0]).__name__} decides by each rank's own loss how often it runs the "
                "forward pass, so ranks would part. Use one process, or another optimizer."
            )
        batches = self.settings.accumulate_grad_batches
        if batches > 1 and any(needs_closure(optimizer) for optimizer in self.optimizers):
            raise MisconfigurationError(
                f"Trainer(accumulate_grad_batches={batches}) and {type(self.optimizers[0]).__name__}: this "
                "optimizer runs the forward pass several times a step, on one batch. Use "
                "accumulate_grad_batches=1 and larger batches."
            )
        for optimizer in self.optimizers:
            device.move_optimizer_state(optimizer, self.place.device)

    def _log_hyperparameters(self) -> None:
        values: dict[str, Any] = {}
        for owner in (self.datamodule, self.module):
            if owner is not None and owner._log_hyperparams:
                values.update(owner.hparams_initial)
        for logger in self._own_loggers():
            if values:
                logger.log_hyperparams(values)
            logger.log_graph(self.module)
            logger.save()

    def _own_loggers(self) -> Sequence[Any]:
        return self.trainer.loggers if self.is_global_zero else ()

    # ---------------------------------------------------------------- loaders

    def _source(self, kind: str) -> Any:
        """Return the loaders of a kind: as given, else the data module's, else the module's."""
        given = self.job.loaders.get(kind)
        if given is not None:
            return given
        name = f"{kind}_dataloader"
        hook = self.hooks.data_hook(name)
        self.slots.enter(name)
        found = hook() if hook is not None else None
        if found is None:
            where = "fit" if kind == "train" else {"val": "validate"}.get(kind, kind)
            raise MisconfigurationError(
                f"There is no {kind} data: {type(self.module).__qualname__} has no {name}(), and none was "
                "given. "
                f"Pass a loader or a datamodule to {where}(), or define {name}()."
            )
        return found

    def _rank_loader(self, source: Any, kind: str) -> RankLoader:
        if isinstance(source, Dataset) or not isinstance(source, Iterable):
            raise MisconfigurationError(
                f"The {kind} data is a {type(source).__qualname__}, not an iterable of batches. "
                "Give a torch.utils.data.DataLoader."
            )
        loader = RankLoader(
            source,
            rank=self.place.rank,
            world_size=self.place.world_size,
            seed=self._order_seed(kind),
            shard=self.settings.use_distributed_sampler,
            pad=kind == "train" and self.settings.pad_uneven,
            whole_batches=kind == "predict",
            pickler=self.place.pickler,
        )
        if loader.num_batches == 0 and self._limit_of(kind) != 0:
            raise empty_loader(source, kind, self.place.world_size)
        return loader

    def _order_seed(self, kind: str) -> int:
        """Return the seed of the order of samples; a resumed run keeps the one that it began with."""
        if kind == "train" and self.resumed is not None:
            self.order_seed = self.resumed.cursor.seed
        return self.order_seed

    def load_training_data(self) -> None:
        """Build the training loader, and check that a resumed run goes on with the data it had."""
        self.train_loader = self._rank_loader(self._source("train"), "train")
        if self.resumed is not None:
            contents.check_data(
                self.resumed, self.train_loader, self.state, self.settings.accumulate_grad_batches
            )

    def has_validation(self) -> bool:
        """Whether fit validates: there is a validation step, data for it, and no limit of 0."""
        given = self.job.loaders.get("val") is not None or self.hooks.data_hook("val_dataloader") is not None
        return (
            given
            and self.settings.limit_val_batches != 0
            and overrides(self.module, "validation_step", LightningModule)
        )

    def load_validation_data(self) -> None:
        """Build the validation loaders of fit, once."""
        if not self.val_loaders and self.has_validation():
            self.val_loaders = self._rank_loaders("val")
            self.val_limits = self._limits("limit_val_batches", self.val_loaders)

    def _rank_loaders(self, kind: str) -> list[RankLoader]:
        source = self._source(kind)
        sources = list(source) if isinstance(source, (list, tuple)) else [source]
        return [self._rank_loader(item, kind) for item in sources]

    def _limit_of(self, kind: str) -> int | float | None:
        limit: int | float | None = getattr(self.settings, f"limit_{kind}_batches")
        return limit

    def _limits(self, name: str, loaders: list[RankLoader]) -> list[int | None]:
        limit = getattr(self.settings, name)
        return [batch_limit(name, limit, loader.num_batches) for loader in loaders]

    # ---------------------------------------------------------------- what the loops call

    def evaluate(
        self,
        stage: str,
        loaders: list[RankLoader],
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

    def log_steps(self) -> None:
        """A log point: read the steps' values with one copy, reduce those that ask for it, hand them on."""
        slots = self.train_slots
        chosen = slots.stepped()
        values = slots.read_steps(chosen)
        if self.place.world_size > 1:
            records = [
                (slot.name, slot.hook, slot.reduce, slot.sync, value, 1.0)
                for slot, value in zip(chosen, values, strict=True)
            ]
            gathered = self.strategy.gather((records, bool(self.trainer.should_stop)))
            self._take_agreement([stop for _, stop in gathered])
            combined = combine([rank_records for rank_records, _ in gathered])
            values = [combined[slot.name, slot.hook] for slot in chosen]
        for slot, value in zip(chosen, values, strict=True):
            self.board.put_step(slot, value)
            slot.stepped = False
        self._send(
            {slot.step_name: value for slot, value in zip(chosen, values, strict=True) if slot.logger},
            self._last_step(),
        )

    def log_evaluation_step(self, slots: LogSlots, stage: str, loader: int) -> None:
        """Hand the values that a batch of an evaluation has logged ``on_step`` to the loggers, with one copy.

        They are this rank's; they stand at the number of the batch among those of the same stage and loader.
        """
        place = self.eval_batches.get((stage, loader), 0)
        self.eval_batches[stage, loader] = place + 1
        chosen = slots.stepped()
        if not chosen or stage == "sanity":
            return
        values = slots.read_steps(chosen)
        for slot, value in zip(chosen, values, strict=True):
            self.board.put_evaluation_step(slot, value)
            slot.stepped = False
        self._send(
            {slot.step_name: value for slot, value in zip(chosen, values, strict=True) if slot.logger}, place
        )

    def reduce(self, slots: LogSlots) -> dict[tuple[str, str], float]:
        """Reduce the epoch's metrics of `slots` over ranks, put them on the board, and return them.
        Communicates.
        """
        slots.dirty = False
        gathered = self.strategy.gather((slots.epoch_records(), slots.describe()))
        for _, descriptions in gathered:
            slots.adopt(descriptions)
        values = combine([records for records, _ in gathered])
        for slot in slots.epoch_slots():
            value = values.get((slot.name, slot.hook))
            if value is not None:
                self.board.put_epoch(slot, value)
        return values

    def log_epoch(self, slots: LogSlots, values: dict[tuple[str, str], float]) -> None:
        """Hand the metrics of an epoch to the loggers."""
        metrics = {
            slot.epoch_name: values[slot.name, slot.hook]
            for slot in slots.epoch_slots()
            if slot.logger and (slot.name, slot.hook) in values
        }
        self._send(metrics, self._last_step())
        for logger in self._own_loggers():
            logger.save()

    def _last_step(self) -> int:
        return max(0, self.state.global_step - 1) if self.job.fn == "fit" else self.state.global_step

    def _send(self, metrics: dict[str, float], step: int) -> None:
        if metrics and self.is_global_zero:
            metrics.setdefault("epoch", self.state.epoch)
            if "step" in metrics:
                step = int(metrics.pop("step"))
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, step)

    def agree_on_stopping(self) -> None:
        """Make ``should_stop`` of any rank that of all, so that all leave the loop at the same step."""
        if self.place.world_size > 1:
            self._take_agreement(self.strategy.gather(bool(self.trainer.should_stop)))

    def _take_agreement(self, stops: list[bool]) -> None:
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

    def say_global_batch(self) -> None:
        """Tell the user how many samples make one optimizer step, where that is known."""
        plan = self.train_loader.plan
        if plan is None or not plan.num_batches:
            return
        ranks, batches = self.place.world_size, self.settings.accumulate_grad_batches
        size = plan.sizes(0)[0]
        self.say(f"Global batch: {size * ranks * batches} = {size} x {ranks} ranks x {batches} accumulated.")

    def show(self, stage: str, batch: int, total: int | None, *, done: bool = False) -> None:
        """Send a progress record to the display."""
        if self._show is None:
            return
        self._show(
            ProgressRecord(
                stage=stage,
                epoch=self.state.epoch,
                max_epochs=self.settings.max_epochs,
                batch=batch,
                total_batches=total,
                metrics=dict(self.board.progress),
                step=self.state.global_step,
                done=done,
            )
        )
