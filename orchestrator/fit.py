"""The training loop: epochs of batches, evaluation in between, an end when one of the limits is reached.

Plain functions over an engine. Everything that a batch needs is looked up once before the first. A rank
whose data ends before another's goes on without samples, so nobody waits for it; `Feed` knows how many
samples each rank has.
"""

from __future__ import annotations

import time
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from modules import rng
from orchestrator import validation_schedule as validation
from orchestrator.callbacks.timer import has_timer
from orchestrator.errors import MisconfigurationError
from orchestrator.feed import Feed, make_feed
from orchestrator.foreign import meets_ranks, watches_metrics
from orchestrator.optimizers import SchedulerConfig
from orchestrator.settings import DEFAULT_MAX_EPOCHS
from orchestrator.step import build_empty_step, build_step
from orchestrator.step_parts import EmptyStep, Step, StepParts, Window
from orchestrator.validation_schedule import ValidationClock

if TYPE_CHECKING:
    from orchestrator.checkpoint.contents import Resumed
    from orchestrator.engine import Engine


def run_fit(engine: Engine) -> None:
    """Train until a limit is reached or somebody asks to stop."""
    sanity_check(engine)
    engine.state.stage = "train"
    if engine.settings.limit_train_batches == 0:
        return
    engine.data.load_for_fit()
    loop = _Loop(engine)
    engine.agree_on_stopping()
    if loop.feed.num_batches == 0:
        return
    if loop.is_over():
        engine.say(f"Nothing is left to train: epoch {engine.state.epoch}, step {engine.state.global_step}.")
        return
    engine.say_global_batch()
    engine.fold_seed()
    if not engine.module.training:
        warnings.warn(
            f"{type(engine.module).__qualname__} is in eval mode and is trained in it: dropout is off, and "
            "batch statistics stay. Call module.train() before fit, unless this is meant.",
            stacklevel=2,
        )
    interval = engine.settings.val_check_interval
    if isinstance(interval, timedelta):
        engine.validation_clock = ValidationClock(interval, alone=engine.place.world_size == 1)
    engine.call("on_train_start")
    engine.agree_on_stopping()
    engine.stoppable = True
    while not loop.is_over():
        loop.run_epoch()
    engine.stoppable = False
    engine.call("on_train_end")


def sanity_check(engine: Engine) -> None:
    """Try some validation batches before training, leaving no trace in metrics and random streams."""
    batches = engine.settings.num_sanity_val_steps
    if not batches or engine.job.ckpt_path is not None or not engine.data.has_validation():
        return
    with rng.isolated():
        engine.state.stage = "sanity"
        engine.call("on_sanity_check_start")
        engine.data.load_validation()
        limits = [
            min(batches, limit) if batches > 0 and limit is not None else batches if batches > 0 else limit
            for limit in engine.data.val_limits
        ]
        if limits:
            engine.evaluate("sanity", engine.data.val, limits)
        engine.call("on_sanity_check_end")
    engine.board.clear()


class _Loop:
    """The training loop's own state: what is looked up once, and where the running epoch stands."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.state = engine.state
        self.settings = engine.settings
        self.feed = engine.feed = self.make_feed()
        self.loaded_for = engine.state.epoch
        self.manual = engine.manual
        self.schedulers = engine.schedulers if self.manual is None else []
        self.window = Window()
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
            clip_val=self.settings.gradient_clip_val,
            clip_algorithm=self.settings.gradient_clip_algorithm,
        )
        self.parts = parts
        self.step: Step
        self.empty_step: EmptyStep
        self.build_steps()
        self.take_schedulers()
        self.max_epochs = self.settings.max_epochs
        if (
            self.max_epochs is None
            and self.settings.max_steps == -1
            and not has_timer(engine.trainer.callbacks)
        ):
            self.max_epochs = DEFAULT_MAX_EPOCHS
            if engine.is_global_zero:
                warnings.warn(
                    f"Trainer(max_epochs=None) trains for {DEFAULT_MAX_EPOCHS} epochs. Set max_epochs, "
                    "or -1 for no limit.",
                    stacklevel=2,
                )
        self.val_every = 0

    def build_steps(self) -> None:
        """Build what runs a batch, from the strategy's training step as it is now."""
        if self.manual is None:
            self.step, self.empty_step = build_step(self.parts), build_empty_step(self.parts)
        else:
            self.step, self.empty_step = self.manual.build_steps(self.window)

    def make_feed(self) -> Feed:
        """Return the stream of the training data as it is loaded now."""
        engine, settings = self.engine, self.settings
        feed = make_feed(
            engine.data.load_training(),
            engine.strategy,
            settings.limit_train_batches,
            settings.join_uneven,
        )
        feed.lends = engine.manual is not None
        return feed

    def reload(self) -> None:
        """Ask for the data anew where this epoch is one for that, and it was not loaded just for it."""
        epoch = self.state.epoch
        if epoch == self.loaded_for or not self.engine.data.is_reloaded_in(epoch):
            return
        self.loaded_for = epoch
        self.engine.data.reload()
        self.feed = self.engine.feed = self.make_feed()

    def take_schedulers(self) -> None:
        """Look up which schedulers step when: a callback may have replaced one."""
        self.schedulers = self.engine.schedulers if self.manual is None else []
        by_step = [config for config in self.schedulers if config.interval == "step"]
        self.step_schedulers = [config for config in by_step if not config.reduce_on_plateau]
        self.plateau_step_schedulers = [config for config in by_step if config.reduce_on_plateau]

    # ---------------------------------------------------------------- ends

    def is_over(self) -> bool:
        """Whether training has reached a limit or was asked to stop."""
        state = self.state
        if self.max_epochs is not None and self.max_epochs != -1 and state.epoch >= self.max_epochs:
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
        self.reload()
        engine, state, feed = self.engine, self.state, self.feed
        resumed = engine.take_resumed()
        if resumed is not None:
            self.restore_gradients(resumed)
        if resumed is not None and state.epoch_batches:
            engine.train_slots.restore(resumed.metrics)
            feed.start(state.epoch, state.epoch_batches, resumed.reading, resumed.totals)
            self.val_every = _validation_interval(engine, feed.num_batches)
            self.window.last = self.manual is not None or not resumed.gradients
            feed.is_over = feed.is_over or state.exhausted
            if not state.validated and self.is_validation_due():
                self.validate()
        else:
            if resumed is not None:
                feed.restore(resumed.reading)
            state.epoch_batches = 0
            state.validated = state.epoch_ended = state.exhausted = False
            engine.call("on_train_epoch_start")
            engine.accumulate = engine.trainer.accumulate_grad_batches
            feed.start(state.epoch)
            self.val_every = _validation_interval(engine, feed.num_batches)
        self.take_schedulers()
        if engine.strategy.follow(engine.module):
            self.build_steps()
        complete = self.run_batches()
        if feed.is_used_up:
            self.stop_used_up()
        self.end_epoch(complete)

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
        trainer, step = engine.trainer, self.step
        told = engine.stopping.told
        batch_start = engine.hooks.of_callbacks("on_train_batch_start")
        module_batch_start = engine.hooks.of_module("on_train_batch_start")
        batch_end = engine.hooks["on_train_batch_end"]
        meeting = engine.hooks.of_callbacks("on_train_batch_end", meets_ranks)
        transfer = engine.transfer
        accumulate = engine.accumulate
        log_every = self.settings.log_every_n_steps
        alone = engine.strategy.world_size == 1
        step_schedulers = self.step_schedulers
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
                if step_schedulers:
                    self.step_by_steps(step_schedulers)
            if feed.is_last:
                self.exhaust()
            if batch_end and feed.has_batch:
                seen = _visible(outputs)
                slots.enter("on_train_batch_end")
                for hook in batch_end:
                    hook(seen, batch, batch_idx)
                if engine.untold:
                    engine.tell_standing()
            elif not feed.has_batch:  # what needs all ranks needs those without a batch
                for hook in meeting:
                    hook(None, None, batch_idx)
            if window.last and state.windows % log_every == 0:
                engine.reporting.log_steps(outputs)
                if engine.requeue is not None:
                    engine.requeue.check(engine)
                if engine.gathered_stop is not None:
                    engine.gathered_stop.check(engine)
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
                if val_every and not state.validated:
                    self.validate()
                break
        if feed.is_over and not state.exhausted:
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
            if self.step_schedulers:
                self.step_by_steps(self.step_schedulers)
            if state.windows % self.settings.log_every_n_steps == 0:
                self.engine.reporting.log_steps()
        self.exhaust()
        if self.val_every == validation.AT_EPOCH_END and not state.validated and state.epoch_batches:
            self.validate()

    def exhaust(self) -> None:
        """Note that the epoch's batches are used up, and step the schedulers that count epochs."""
        self.state.exhausted = True
        self.step_by_epochs()

    def is_validation_due(self) -> bool:
        """Whether validation belongs after the batches that were run."""
        done = self.state.epoch_batches
        return done > 0 and validation.is_due(
            every=self.val_every, batches=done, carried=self.carried_batches(), is_last=self.feed.is_over
        )

    def carried_batches(self) -> int:
        """Return the batches of earlier epochs that count towards the next validation."""
        return validation.batches_carried(self.state.past_batches, self.settings.check_val_every_n_epoch)

    def validate(self) -> None:
        """Run validation, unless this epoch is one without."""
        if not validation.validates_in(self.state.epoch, self.settings.check_val_every_n_epoch):
            return
        engine = self.engine
        if self.window.last:
            for hook in engine.hooks.of_module("on_validation_model_zero_grad"):
                hook()
        engine.rng_to_resume = rng.capture()
        engine.evaluate("validate", engine.data.val, engine.data.val_limits, before_end=self.after_metrics)
        if engine.validation_clock is not None:
            engine.validation_clock.restart()
        engine.agree_on_stopping()
        if engine.untold:
            engine.tell_standing()

    def after_metrics(self) -> None:
        """Take note that validation has run: a checkpoint written from here on goes on behind it."""
        self.engine.rng_to_resume = None
        for config in self.plateau_step_schedulers:
            self.step_plateau(config)
        self.state.validated = True

    def end_epoch(self, complete: bool) -> None:
        """Reduce the epoch's metrics, call the hooks, step plateau schedulers, save."""
        engine, state = self.engine, self.state
        slots = engine.train_slots
        reduced = self.reduce_epoch()
        others = engine.hooks.of_callbacks("on_train_epoch_end", lambda item: not watches_metrics(item))
        own = engine.hooks.of_module("on_train_epoch_end")
        for hook in others + own:
            slots.enter("on_train_epoch_end")
            hook()
        if others or own:
            reduced = self.reduce_epoch()
        if complete:
            for config in self.schedulers:
                due = (state.epoch + 1) % config.frequency == 0
                if config.interval == "epoch" and config.reduce_on_plateau and due:
                    self.step_plateau(config)
        state.epoch_ended = complete
        for hook in engine.hooks.of_callbacks("on_train_epoch_end", watches_metrics):
            slots.enter("on_train_epoch_end")
            hook()
        engine.agree_on_stopping()
        engine.reporting.log_epoch(slots, reduced)
        engine.show("train", state.epoch_batches, self.feed.num_batches, done=True)
        slots.clear()
        slots.table = slots.batch = None
        state.end_epoch(*self.feed.totals(state.epoch_batches))
        if engine.untold:
            engine.tell_standing()
        self.feed.close()

    def reduce_epoch(self) -> dict[tuple[str, str], float]:
        """Put the epoch's metrics on the board, reduced over ranks."""
        return self.engine.reporting.reduce(self.engine.train_slots, steps=True)

    # ---------------------------------------------------------------- schedulers

    def step_by_steps(self, configs: list[SchedulerConfig]) -> None:
        """Step the schedulers that count optimizer steps."""
        for config in configs:
            if self.state.global_step % config.frequency == 0:
                self.engine.step_scheduler(config, None)

    def step_by_epochs(self) -> None:
        """Step the schedulers that count epochs; before validation, like Lightning."""
        for config in self.schedulers:
            due = (self.state.epoch + 1) % config.frequency == 0
            if config.interval == "epoch" and not config.reduce_on_plateau and due:
                self.engine.step_scheduler(config, None)

    def step_plateau(self, config: SchedulerConfig) -> None:
        """Step a scheduler that watches a metric."""
        metrics = self.engine.trainer.callback_metrics
        value = metrics.get(config.monitor or "")
        if value is None:
            text = (
                f"The scheduler watches {config.monitor!r}, which was not logged. There are "
                f"{sorted(metrics)}. "
                "Log it, or set 'strict': False to skip the scheduler until it appears."
            )
            if config.strict:
                raise MisconfigurationError(text)
            warnings.warn(text, stacklevel=2)
            return
        self.engine.step_scheduler(config, value)


def _validation_interval(engine: Engine, num_batches: int | None) -> int:
    """Return after how many batches validation runs: -1 at the epoch's end, 0 never."""
    return validation.batches_between(
        val_check_interval=engine.settings.val_check_interval,
        check_val_every_n_epoch=engine.settings.check_val_every_n_epoch,
        batches_in_epoch=num_batches,
        validates=any(limit != 0 for limit in engine.data.val_limits),
    )


def _visible(outputs: Any) -> Any:
    """Return what hooks see of a step's outputs: a dictionary with the detached loss, empty without one; what
    is neither (manual optimization allows anything) as it is.
    """
    if isinstance(outputs, torch.Tensor):
        return {"loss": outputs.detach()}
    if isinstance(outputs, dict):
        return {
            name: item.detach() if isinstance(item, torch.Tensor) else item for name, item in outputs.items()
        }
    return {} if outputs is None else outputs
