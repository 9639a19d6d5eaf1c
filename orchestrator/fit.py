"""The training loop: epochs of batches, evaluation in between, an end when one of the limits is reached.

What a fit does before and after it is in `orchestrator.run_fit`. Everything that a batch needs is looked up
once before the first. A rank whose data ends before another's goes on without samples, so nobody waits for
it; `Feed` knows how many samples each rank has.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

from orchestrator import validation_schedule as validation
from orchestrator.callbacks.timer import has_timer
from orchestrator.elastic_recovery import ElasticRecovery
from orchestrator.feed import Feed, ReadingState, make_feed
from orchestrator.fit_validation import FitValidation
from orchestrator.foreign import meets_ranks, watches_metrics
from orchestrator.logical_feed import LogicalFeed
from orchestrator.logical_step import build_logical_steps
from orchestrator.recovery import BatchEnd, Recovery, can_recover
from orchestrator.scheduler_steps import SchedulerSteps
from orchestrator.settings import DEFAULT_MAX_EPOCHS, Settings
from orchestrator.step import build_empty_step, build_step
from orchestrator.step_parts import EmptyStep, Step, StepParts, Window, visible

if TYPE_CHECKING:
    from orchestrator.checkpoint.contents import Resumed
    from orchestrator.engine import Engine


class TrainingLoop:
    """The training loop's own state: what is looked up once, and where the running epoch stands."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.state = engine.state
        self.recovers = can_recover(engine)
        self.feed = engine.feed = self.make_feed()
        self.recovery: Recovery | None = None
        if self.recovers:
            self.recovery = Recovery(engine) if engine.logical is None else ElasticRecovery(engine)
        self.loaded_for = engine.state.epoch
        self.samples_before = 0  # of this epoch, in the call that this one goes on from
        self.manual = engine.manual
        self.schedulers = SchedulerSteps(engine)
        self.window = Window()
        self.validation = FitValidation(engine, self.window, self.schedulers)
        parts = StepParts(
            module=engine.module,
            strategy=engine.strategy,
            precision=engine.precision,
            hooks=engine.hooks,
            slots=engine.train_slots,
            state=engine.state,
            optimizer=engine.optimizers[0] if engine.optimizers else None,
            wrapped=engine.lightning_optimizers[0] if engine.optimizers else None,
            window=self.window,
            clip_val=None if engine.strategy.clips else self.settings.gradient_clip_val,
            clip_algorithm=self.settings.gradient_clip_algorithm,
            before_commit=None if self.recovery is None else self.recovery.before_commit,
        )
        self.parts = parts
        self.step: Step
        self.empty_step: EmptyStep
        self.build_steps()
        self.default_epochs: int | None = None
        if (
            self.settings.max_epochs is None
            and self.settings.max_steps == -1
            and not has_timer(engine.trainer.callbacks)
        ):
            self.default_epochs = DEFAULT_MAX_EPOCHS
            if engine.is_global_zero:
                warnings.warn(
                    f"Trainer(max_epochs=None) trains for {DEFAULT_MAX_EPOCHS} epochs. Set max_epochs, "
                    "or -1 for no limit.",
                    stacklevel=2,
                )
        self.val_every = 0

    @property
    def settings(self) -> Settings:
        """The arguments as they are now: a hook may have set some."""
        return self.engine.settings

    def build_steps(self) -> None:
        """Build what runs a batch, from the strategy's training step as it is now."""
        if self.engine.logical is not None:
            self.step, self.empty_step = build_logical_steps(self.parts, self.engine, self.engine.logical)
        elif self.manual is None:
            self.step, self.empty_step = build_step(self.parts), build_empty_step(self.parts)
        else:
            self.step, self.empty_step = self.manual.build_steps(self.window)

    def make_feed(self) -> Feed:
        """Return the stream of the training data as it is loaded now."""
        engine, settings = self.engine, self.settings
        if engine.logical is not None:
            logical = LogicalFeed(engine, engine.logical, settings.limit_train_batches)
            if engine.ledger is not None:
                engine.ledger.watch_logical(logical)
            return logical
        feed = make_feed(
            engine.data.load_training(),
            engine.strategy,
            settings.limit_train_batches,
            settings.join_uneven,
        )
        feed.lends = engine.manual is not None
        feed.keeps = self.recovers
        if engine.ledger is not None:
            engine.ledger.watch(feed)
        return feed

    def reload(self) -> None:
        """Ask for the data anew where this epoch is one for that, and it was not loaded just for it."""
        epoch = self.state.epoch
        if epoch == self.loaded_for or not self.engine.data.is_reloaded_in(epoch):
            return
        self.loaded_for = epoch
        self.engine.data.reload()
        self.feed = self.engine.feed = self.make_feed()

    # ---------------------------------------------------------------- ends

    def is_over(self) -> bool:
        """Whether training has reached a limit or was asked to stop."""
        epochs = self.settings.max_epochs
        epochs = self.default_epochs if epochs is None else epochs
        if epochs is not None and epochs != -1 and self.state.epoch >= epochs:
            return True
        return self.steps_are_over() or self.should_stop()

    def steps_are_over(self) -> bool:
        """Whether ``max_steps`` optimizer steps were made."""
        return self.settings.max_steps != -1 and self.state.global_step >= self.settings.max_steps

    def should_stop(self) -> bool:
        """Whether somebody asked to stop, and the minimal numbers of epochs and steps were reached."""
        if not self.engine.trainer.should_stop:
            return False
        return self.state.epoch >= (self.settings.min_epochs or 0) and self.state.global_step >= (
            self.settings.min_steps or 0
        )

    # ---------------------------------------------------------------- one epoch

    def run_epoch(self) -> None:
        """Train on the batches that are left of the epoch, and end it."""
        if self.recovery is not None and self.recovery.returns:
            self.return_to_epoch(self.recovery)
            return
        self.reload()
        engine, state, feed = self.engine, self.state, self.feed
        resumed = engine.take_resumed()
        if resumed is not None:
            self.restore_gradients(resumed)
        if resumed is not None and state.epoch_batches:
            engine.train_slots.restore(resumed.metrics)
            feed.start(state.epoch, state.epoch_batches, resumed.reading, resumed.totals)
            self.samples_before = feed.totals(state.epoch_batches)[1]
            self.val_every = self.validation.interval(feed.num_batches)
            self.window.last = self.manual is not None or not resumed.gradients
            feed.is_over = feed.is_over or state.exhausted
        else:
            if resumed is not None:
                feed.restore(resumed.reading)
            state.epoch_batches = 0
            state.validated = state.epoch_ended = state.exhausted = False
            engine.key_once("epoch begins")
            engine.call("on_train_epoch_start")
            if engine.hooks["on_train_epoch_start"]:
                engine.agree_on_stopping()
            engine.accumulate = engine.trainer.accumulate_grad_batches
            feed.start(state.epoch)
            self.val_every = self.validation.interval(feed.num_batches)
        self.schedulers.take()
        if engine.strategy.follow(engine.module):
            self.build_steps()
        if self.recovery is not None and (resumed is None or not resumed.gradients):
            self.recovery.meet()
        if resumed is not None and not state.validated and self.is_validation_due():
            self.validate()
        engine.account.watch(self.feed, first=True)
        self.finish_epoch(not self.should_stop() and self.run_batches())

    def finish_epoch(self, complete: bool) -> None:
        """End the epoch behind its batches."""
        if self.feed.is_used_up:
            self.stop_used_up()
        self.end_epoch(complete)

    def validate(self) -> None:
        """Run validation; one behind a commit is run again where a rank is lost in it."""
        recovery = self.recovery
        if recovery is None or not recovery.stands:
            self.validation.run()
            return
        recovery.about_to_meet()
        self.validation.run()
        recovery.meet()

    def log_steps(self, outputs: Any) -> None:
        """Do what belongs to a log point."""
        self.engine.reporting.log_steps(outputs)
        self.engine.account.watch(self.feed)
        if self.engine.requeue is not None:
            self.engine.requeue.check(self.engine)
        if self.engine.gathered_stop is not None:
            self.engine.gathered_stop.check(self.engine)
        if self.recovery is not None and self.recovery.stands:
            self.recovery.meet()

    # ---------------------------------------------------------------- after a loss

    def drop_steps(self) -> None:
        """Let go of what holds the broken process group."""
        self.step, self.empty_step = _no_step, _no_step

    def read_again(self, epoch: int, batches: int, reading: ReadingState, totals: tuple[int, int]) -> Any:
        """Stand after so many batches of the epoch, and return the last of them on the device."""
        batch = self.feed.read_again(epoch, batches, reading, totals)
        transfer = self.engine.transfer
        return batch if batch is None or transfer is None else transfer(batch, 0)

    def return_to_epoch(self, recovery: Recovery) -> None:
        """Go on in an epoch where all ranks stand again after a loss."""
        recovery.returns = False
        engine, state, feed = self.engine, self.state, self.feed
        self.val_every = self.validation.interval(feed.num_batches)
        self.window.last = True
        feed.is_over = feed.is_over or state.exhausted
        self.schedulers.take()
        end, recovery.left = recovery.left, None
        if end is not None:
            hooks = engine.hooks["on_train_batch_end"]
            recovery.end_batch(hooks, end)
            if state.windows % self.settings.log_every_n_steps == 0:
                self.log_steps(end.outputs)
        if not state.validated and self.is_validation_due():
            self.validate()
        if engine.stop_agreed and self.should_stop():
            if self.val_every and not state.validated:
                self.validate()
            self.finish_epoch(feed.is_over)
        else:
            self.finish_epoch(self.run_batches())

    # ---------------------------------------------------------------- going on from a checkpoint

    def stop_used_up(self) -> None:
        """End training over data that can be read once and was, rather than run empty epochs."""
        engine = self.engine
        engine.trainer.should_stop = True
        if engine.is_global_zero:
            warnings.warn(
                f"The training data is a {type(self.feed.loader.source).__qualname__}, which can be read "
                f"once: epoch {self.state.epoch} has no batches, and training ends. Give a DataLoader, or an "
                "object whose __iter__ begins anew; or train for one epoch.",
                stacklevel=2,
            )

    def restore_gradients(self, resumed: Resumed) -> None:
        """Give the parameters the gradients that they had where a checkpoint was written."""
        for name, parameter in self.engine.module.named_parameters():
            if name in resumed.gradients:
                parameter.grad = resumed.gradients[name].to(parameter.device)
        if self.manual is not None:
            self.manual.load_state_dict(resumed.manual)

    def run_batches(self) -> bool:
        """Run the hot loop; return whether the epoch is complete, rather than left because training ends."""
        engine, state, feed, window, slots = (
            self.engine,
            self.state,
            self.feed,
            self.window,
            self.engine.train_slots,
        )
        trainer, step, recovery = engine.trainer, self.step, self.recovery
        told = engine.stopping.told
        batch_start = engine.hooks.of_callbacks("on_train_batch_start")
        module_batch_start = engine.hooks.of_module("on_train_batch_start")
        batch_end = engine.hooks["on_train_batch_end"]
        meeting = engine.hooks.of_callbacks("on_train_batch_end", meets_ranks)
        transfer = engine.transfer
        accumulate = engine.accumulate
        log_every = self.settings.log_every_n_steps
        alone = engine.strategy.world_size == 1
        step_schedulers = self.schedulers.step_by_steps if self.schedulers.by_step else None
        max_steps = self.settings.max_steps
        val_every = self.val_every
        clock_decides = None if engine.validation_clock is None else engine.validation_clock.is_due
        clock, due = time.monotonic, 0.0
        shows_progress, interval_s = engine.shows_progress, engine.progress_interval_s
        val_at = validation.next_validation(
            every=val_every, batches=state.epoch_batches, carried=self.carried_batches()
        )
        place = state.epoch_batches % accumulate
        if place:
            window.size, window.rescale = feed.window_size(state.epoch_batches - place, accumulate), 1.0

        outputs: Any = None
        while not -1 < max_steps <= state.global_step and feed.advance():
            batch_idx = state.epoch_batches
            window.first = place == 0
            if window.first:
                window.size = feed.window_size(batch_idx, accumulate)
                window.rescale = 1.0
                if recovery is not None:
                    recovery.open_window()
            place += 1
            window.last = place == window.size or feed.is_last
            if window.last and place != window.size:
                window.rescale = window.size / place
            window.by_hand, window.scale = feed.by_hand, feed.scale
            batch = feed.batch
            if feed.has_batch:
                if transfer is not None:
                    slots.table, slots.where = None, "a batch transfer hook"
                    batch = transfer(batch, 0)
                slots.batch = batch
                slots.batch_size = 0
                if batch_start:
                    slots.enter("on_train_batch_start")
                    for hook in batch_start:
                        hook(batch, batch_idx)
                if module_batch_start:
                    slots.enter("on_train_batch_start")
                    if module_batch_start[0](batch, batch_idx) == -1:
                        self.exhaust()
                        return True
                outputs = step(batch, batch_idx)
            else:
                self.empty_step(batch, batch_idx)
            state.epoch_batches = batch_idx + 1
            state.validated = False
            if window.last:
                place = 0
                state.windows += 1
                if step_schedulers is not None:
                    step_schedulers()
            if feed.is_last:
                self.exhaust()
            if recovery is not None and window.last:
                seen = visible(outputs) if batch_end and feed.has_batch else None
                slots.enter("on_train_batch_end")
                end = BatchEnd(
                    outputs=outputs, seen=seen, batch=batch, has_batch=feed.has_batch, index=batch_idx
                )
                recovery.end_batch(batch_end, end)
                if engine.untold:
                    engine.tell_standing()
            elif batch_end and feed.has_batch:
                seen = visible(outputs)
                slots.enter("on_train_batch_end")
                for hook in batch_end:
                    hook(seen, batch, batch_idx)
                if engine.untold:
                    engine.tell_standing()
            elif not feed.has_batch:  # what needs all ranks needs those without a batch
                for hook in meeting:
                    hook(None, None, batch_idx)
            if window.last and state.windows % log_every == 0:
                self.log_steps(outputs)
            if told and window.last:
                engine.stopping.check()
            if shows_progress and clock() >= due:
                due = clock() + interval_s
                engine.show("train", batch_idx + 1, feed.num_batches)
            if val_every and (
                state.epoch_batches == val_at
                if val_every > 0
                else feed.is_last
                if clock_decides is None
                else clock_decides()
            ):
                self.validate()
                val_at += val_every
            if (trainer.should_stop if alone else engine.stop_agreed) and self.should_stop():
                if alone and window.last and not state.validated and state.windows % log_every:
                    engine.reporting.log_steps(outputs)
                if val_every and not state.validated:
                    self.validate()
                break
        if feed.is_over and not state.exhausted:
            if recovery is not None and not place:
                recovery.meet()  # that the data has ended is known on all ranks
            self.end_late(place)
        return feed.is_last or feed.is_over

    def end_late(self, place: int) -> None:
        """Do what belongs to an epoch's last batch, where only the one that did not come has shown it was."""
        window, state = self.window, self.state
        if place:
            window.first, window.last, window.scale = False, True, 1.0
            window.rescale = window.size / place
            window.by_hand = self.engine.strategy.world_size > 1  # its backward did not reduce
            self.empty_step(None, state.epoch_batches)
            state.windows += 1
            self.schedulers.step_by_steps()
            self.exhaust()
            if self.recovery is not None:
                self.recovery.end_batch((), BatchEnd(has_batch=False, index=state.epoch_batches))
            if state.windows % self.settings.log_every_n_steps == 0:
                self.log_steps(None)
        else:
            self.exhaust()
        if self.val_every == validation.AT_EPOCH_END and not state.validated and state.epoch_batches:
            self.validate()

    def exhaust(self) -> None:
        """Note that the epoch's batches are used up, and step the schedulers that count epochs."""
        self.state.exhausted = True
        self.schedulers.step_by_epochs()

    def is_validation_due(self) -> bool:
        """Whether validation belongs after the batches that were run."""
        done = self.state.epoch_batches
        return done > 0 and validation.is_due(
            every=self.val_every, batches=done, carried=self.carried_batches(), is_last=self.feed.is_over
        )

    def carried_batches(self) -> int:
        """Return the batches of earlier epochs that count towards the next validation."""
        return validation.batches_carried(self.state.past_batches, self.settings.check_val_every_n_epoch)

    def end_epoch(self, complete: bool) -> None:
        """Reduce the epoch's metrics, call the hooks, step plateau schedulers, save."""
        engine, state, recovery = self.engine, self.state, self.recovery
        slots = engine.train_slots
        if recovery is not None:
            recovery.about_to_meet()
        engine.key_once("epoch ends")
        reduced = self.reduce_epoch()
        others = engine.hooks.of_callbacks("on_train_epoch_end", lambda item: not watches_metrics(item))
        own = engine.hooks.of_module("on_train_epoch_end")
        for hook in others + own:
            slots.enter("on_train_epoch_end")
            hook()
        if others or own:
            reduced = self.reduce_epoch()
        if complete:
            self.schedulers.step_on_epoch_end()
        state.epoch_ended = complete
        for hook in engine.hooks.of_callbacks("on_train_epoch_end", watches_metrics):
            slots.enter("on_train_epoch_end")
            hook()
        engine.agree_on_stopping()
        engine.reporting.log_epoch(slots, reduced)
        engine.show("train", state.epoch_batches, self.feed.num_batches, done=True)
        slots.clear()
        slots.table = slots.batch = None
        batches, samples = self.feed.totals(state.epoch_batches)
        engine.telling.note(
            "epoch",
            metrics=True,
            batches=batches,
            samples=samples,
            samples_before=self.samples_before,
            **engine.vitals.in_words(),
        )
        self.samples_before = 0
        state.end_epoch(batches, samples)
        if engine.untold:
            engine.tell_standing()
        self.feed.close()
        if recovery is not None:
            recovery.meet(begun=False)

    def reduce_epoch(self) -> dict[tuple[str, str], float]:
        """Put the epoch's metrics on the board, reduced over ranks."""
        return self.engine.reporting.reduce(self.engine.train_slots, steps=True)


def _no_step(batch: Any, batch_idx: int) -> Any:
    """Stands for a step between two process groups."""
    raise AssertionError("steps are built anew before the next batch")
