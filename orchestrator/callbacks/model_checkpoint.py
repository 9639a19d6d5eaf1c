"""Save checkpoints while training: each epoch, or as often as asked, keeping the best or the newest.

It runs on every rank and decides the same on each: from metrics that are equal on all ranks at validation
and epoch ends, from counters, and between those from what rank 0 sees. Without a step since the last save
nothing is saved, nor in sanity checks and under `fast_dev_run`. Arguments that cannot work raise
`MisconfigurationError`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from orchestrator import validation_schedule
from orchestrator.callbacks.checkpoint_arguments import check_choice, check_place, check_switches
from orchestrator.callbacks.checkpoint_keeper import CheckpointKeeper
from orchestrator.checkpoint import policy, schedule
from orchestrator.stops import AgreedStop

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer

T = TypeVar("T")


class ModelCheckpoint(CheckpointKeeper):
    """Save a checkpoint at the end of each epoch, or as often as asked, and keep the best or the newest.

    >>> checkpoint = ModelCheckpoint(monitor="val_loss", filename="{epoch:02d}-{val_loss:.2f}", save_top_k=3)
    >>> checkpoint.format_checkpoint_name({"epoch": 2, "val_loss": 0.123})
    'epoch=02-val_loss=0.12.ckpt'

    Args:
        dirpath: Where to save. By default ``checkpoints`` in the first logger's version directory, or in the
            trainer's `default_root_dir` without a logger.
        filename: The files' name without its ending; ``{name}`` or ``{name:.2f}`` stands for a metric,
            `epoch` or `step`. By default ``{epoch}-{step}``.
        monitor: The metric that says which checkpoints are best; None keeps the newest.
        verbose: Print a line about each decision.
        save_last: True gives the newest checkpoint the second name ``last.ckpt``, and saves it there when it
            is not among the best. "link" makes that name a symbolic link to the newest one that was kept.
        save_top_k: How many to keep: -1 all, 0 none. More than 1 needs `monitor`.
        save_on_exception: Also save when training fails. On a group nothing is saved then.
        save_weights_only: Leave out what only resuming needs.
        mode: "min" if a lower `monitor` is better, "max" if a higher one is.
        auto_insert_metric_name: Write ``name=value`` where `filename` has ``{name}``; False writes the value
            alone.
        every_n_train_steps: Save after every so many optimizer steps, instead of epochs.
        train_time_interval: Save after every so much training time, instead of epochs.
        every_n_epochs: Save after every so many epochs; 0 never.
        save_on_train_epoch_end: True saves when a training epoch ends, False when validation ends. By default
            when the epoch ends if the trainer validates once an epoch or never, and when validation ends
            otherwise.
        enable_version_counter: Append ``-v1``, ``-v2``, ... to a name that is taken; False replaces it.

    Attributes:
        best_model_path: Path of the best checkpoint (of the newest without `monitor`); "" before the first.
        best_model_score: Its score, a scalar tensor, or None.
        best_k_models: Score by path of all that are kept by score.
        kth_best_model_path: Path of the worst of them, once there are `save_top_k`.
        kth_value: Its score.
        current_score: The score of the newest checkpoint that was kept.
        last_model_path: The path named ``last``, with `save_last`.

    Raises:
        MisconfigurationError: for an argument that cannot work, or several that contradict each other.
    """

    meets_ranks = True  # saving needs all ranks

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: policy.Mode = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
    ) -> None:
        check_place(dirpath, filename)
        check_choice(monitor, mode, save_top_k, save_last)
        check_switches(
            verbose=verbose,
            save_on_exception=save_on_exception,
            save_weights_only=save_weights_only,
            auto_insert_metric_name=auto_insert_metric_name,
            save_on_train_epoch_end=save_on_train_epoch_end,
            enable_version_counter=enable_version_counter,
        )
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=save_last,
            save_weights_only=save_weights_only,
            auto_insert_metric_name=auto_insert_metric_name,
            enable_version_counter=enable_version_counter,
            verbose=verbose,
        )
        self.save_on_exception = save_on_exception
        self._triggers = schedule.triggers(every_n_train_steps, every_n_epochs, train_time_interval)
        self._save_on_train_epoch_end = save_on_train_epoch_end
        self._clock = schedule.Clock(train_time_interval)
        self._steps_seen = 0
        self._waits_for_validation = False

    @property
    def state_key(self) -> str:
        """The key in a checkpoint; callbacks that differ in what they watch or when they save have
        different ones."""
        return self._generate_state_key(
            monitor=self.monitor,
            mode=self.mode,
            every_n_train_steps=self._triggers.every_n_train_steps,
            every_n_epochs=self._triggers.every_n_epochs,
            train_time_interval=self._triggers.train_time_interval,
        )

    @property
    def every_n_epochs(self) -> int:
        """Epochs from one save to the next; 0 when something else starts saves."""
        return self._triggers.every_n_epochs

    def state_dict(self) -> dict[str, Any]:
        """Return which checkpoints are kept, and which steps were looked at: a rank that takes another's
        place must find the same ones due, since all save together.
        """
        return {
            **super().state_dict(),
            "steps_seen": self._steps_seen,
            "waits_for_validation": self._waits_for_validation,
            "validated": self._validated,
            "clock": self._clock.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; a run that begins starts its count and its clock behind
        that.
        """
        self._steps_seen = state_dict.get("steps_seen", self._steps_seen)
        self._waits_for_validation = state_dict.get("waits_for_validation", self._waits_for_validation)
        self._validated = state_dict.get("validated", self._validated)
        self._clock.load_state_dict(state_dict.get("clock", {}))
        super().load_state_dict(state_dict)

    # ---------------------------------------------------------------- hooks

    def unused_hooks(self) -> frozenset[str]:
        """Leave out the hook of each batch where only epochs or validations save, unless a subclass has its
        own."""
        own = getattr(self.on_train_batch_end, "__func__", None) is ModelCheckpoint.on_train_batch_end
        return frozenset({"on_train_batch_end"} if own and not self._triggers.within_epochs else ())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decide where to save, and remember what is there already."""
        self._settle(trainer, fitting=stage == "fit")
        self._waits_for_validation = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and the count of steps."""
        self._steps_seen = trainer.global_step
        self._clock.start(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when the count of steps or the clock says so."""
        if not self._triggers.within_epochs:
            return
        due = self._reached_steps(trainer)
        due = self._clock.is_up(self._steps_seen, _agree(trainer)) or due
        if due:
            self._save_or_wait(
                trainer, lambda: self._validated and _validation_follows(trainer, batch_idx + 1)
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of validation, or what waited for its metrics."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validated = True
        if self._waits_for_validation:
            self._waits_for_validation = False
            if not self._must_not_save(trainer):
                self._save(trainer, _numbers(trainer))
        elif not self._saves_at_train_epoch_end(trainer):
            self._save_after_epoch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of a training epoch; also for a step that was made after its last batch's hooks, as
        where a stream ends within an accumulation."""
        if self._triggers.within_epochs and self._reached_steps(trainer):
            self._save_or_wait(trainer, lambda: False)
        if self._saves_at_train_epoch_end(trainer):
            self._save_after_epoch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what waited for a validation that did not come; and the last checkpoint, if one is wanted and
        nothing was ever saved."""
        if self._waits_for_validation and not self._must_not_save(trainer):
            metrics = _rank_0s_numbers(trainer)
            if "epoch" not in trainer.callback_metrics:
                metrics["epoch"] = max(0, trainer.current_epoch - 1)  # the one that ran, as in other names
            self._save(trainer, metrics, ending=True)
        self._waits_for_validation = False
        self._finish(trainer)
        if self.save_last and not self._last_saved_path and not self._must_not_save(trainer):
            self._save(trainer, _numbers(trainer), last_only=True)
        self._finish(trainer)
        self._remove_interrupted(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what there is, if that was asked for. On a group nothing where one rank has failed: it cannot
        save alone."""
        self._finish(trainer, alone=True)
        if not self.save_on_exception or self._must_not_save(trainer):
            return
        failure = f"{type(exception).__name__} ended training"
        if trainer.world_size > 1 and not isinstance(exception, AgreedStop):
            warnings.warn(
                f"{failure}, and ModelCheckpoint(save_on_exception=True) saved none: ranks save together, "
                f"but one of {trainer.world_size} failed. The newest is {self._last_saved_path!r}.",
                stacklevel=2,
            )
            return
        metrics = _rank_0s_numbers(trainer)
        with self._undone_on_failure():
            self._write(trainer, metrics, self._free_path(trainer, metrics))
        self._finish(trainer, alone=True)
        self._tell(trainer, f"{failure}: saved {self._last_saved_path!r}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait for a save that is still on its way, where fit ended before `on_train_end`."""
        self._finish(trainer, alone=True)

    # ---------------------------------------------------------------- when

    def _must_not_save(self, trainer: Trainer) -> bool:
        return (
            bool(trainer.fast_dev_run)
            or trainer.sanity_checking
            or trainer.state.fn != "fit"
            or trainer.global_step == self._last_saved_step
        )

    def _saves_at_train_epoch_end(self, trainer: Trainer) -> bool:
        return schedule.saves_at_train_epoch_end(
            self._save_on_train_epoch_end,
            val_check_interval=trainer.val_check_interval,
            check_val_every_n_epoch=trainer.check_val_every_n_epoch,
            validates=_validates(trainer),
        )

    def _save_after_epoch(self, trainer: Trainer) -> None:
        if self._triggers.after_epoch(trainer.current_epoch) and not self._must_not_save(trainer):
            self._save(trainer, _numbers(trainer))

    def _reached_steps(self, trainer: Trainer) -> bool:
        """Whether the count of steps has reached a multiple since this was last asked."""
        before, self._steps_seen = self._steps_seen, trainer.global_step
        return self._triggers.after_steps(before, self._steps_seen)

    def _save_or_wait(self, trainer: Trainer, fresher_soon: Callable[[], bool]) -> None:
        """Save now, or at the next validation: where the monitored metric is not there yet, or
        `fresher_soon` says that it is about to get a new value."""
        if self._must_not_save(trainer):
            return
        metrics = _rank_0s_numbers(trainer)
        if self.monitor is not None and (self.monitor not in metrics or fresher_soon()):
            self._waits_for_validation = True
        else:
            self._save(trainer, metrics)


def _numbers(trainer: Trainer) -> dict[str, float]:
    """Return the metrics that callbacks see, with `epoch` and `step` as whole numbers."""
    metrics: dict[str, float] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics["epoch"] = int(metrics.get("epoch", trainer.current_epoch))
    metrics["step"] = int(metrics.get("step", trainer.global_step))
    return metrics


def _agree(trainer: Trainer) -> Callable[[T], T] | None:
    """Return what gives every rank rank 0's value; None for a single rank."""
    strategy = trainer.strategy
    return None if strategy is None or trainer.world_size == 1 else strategy.broadcast


def _rank_0s_numbers(trainer: Trainer) -> dict[str, float]:
    """Return rank 0's numbers on all ranks, for a moment at which each may have its own."""
    agree = _agree(trainer)
    return _numbers(trainer) if agree is None else agree(_numbers(trainer))


def _validation_follows(trainer: Trainer, batches: int) -> bool:
    """Whether validation runs right after batch number `batches`, from 1, of the running epoch."""
    epochs = trainer.check_val_every_n_epoch
    every = validation_schedule.batches_between(
        val_check_interval=trainer.val_check_interval,
        check_val_every_n_epoch=epochs,
        batches_in_epoch=trainer.num_training_batches,
        validates=_validates(trainer),
    )
    return validation_schedule.validates_in(trainer.current_epoch, epochs) and validation_schedule.is_due(
        every=every,
        batches=batches,
        carried=validation_schedule.batches_carried(trainer.state.past_batches, epochs),
        is_last=_is_last_batch(trainer),
    )


def _is_last_batch(trainer: Trainer) -> bool:
    """Whether the running epoch has no further batch; also known where its length was not."""
    feed = None if trainer.engine is None else trainer.engine.feed
    return feed is not None and feed.is_last


def _validates(trainer: Trainer) -> bool:
    return bool(sum(trainer.num_val_batches) > 0)
