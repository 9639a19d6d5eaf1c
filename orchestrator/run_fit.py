"""What `fit` does around the training loop: tries validation, loads the data, trains to a limit.

The hooks that begin and end training are called once each; neither is called where nothing is left to train.
Whatever fails goes on to the engine, which tells everybody.
"""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import TYPE_CHECKING

from orchestrator.fit import TrainingLoop
from orchestrator.sanity_check import sanity_check
from orchestrator.validation_schedule import ValidationClock

if TYPE_CHECKING:
    from orchestrator.engine import Engine


def run_fit(engine: Engine) -> None:
    """Train until a limit is reached or somebody asks to stop."""
    joins = engine.place.joins
    if not joins:
        sanity_check(engine)
    engine.state.stage = "train"
    if engine.settings.limit_train_batches == 0:
        return
    engine.data.load_for_fit()
    loop = TrainingLoop(engine)
    if not joins:
        engine.agree_on_stopping()
        if loop.feed.num_batches == 0:
            return
        if loop.is_over():
            engine.say(
                f"Nothing is left to train: epoch {engine.state.epoch}, step {engine.state.global_step}."
            )
            return
        loop.validation.interval(loop.feed.num_batches)  # one that cannot be is refused before training
        _say_where_it_goes_on(engine)
        _say_global_batch(engine)
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
    if not joins:
        engine.agree_on_stopping()
    engine.stoppable = True
    engine.telling.begin_training()
    _train(loop)
    engine.account.switch("idle")
    engine.stoppable = False
    engine.call("on_train_end")


def _train(loop: TrainingLoop) -> None:
    """Run epochs to the end, through the loss of other ranks where that is possible."""
    recovery = loop.recovery
    if recovery is None:
        while not loop.is_over():
            loop.run_epoch()
        return
    if loop.engine.place.joins:
        with loop.engine.account.during("recovery"):
            recovery.recover(loop)
        loop.engine.telling.count_steps_from_here()
    while True:
        try:
            while recovery.returns or not loop.is_over():
                loop.run_epoch()
            break
        except Exception as error:
            if not recovery.is_loss(error):
                raise
        with loop.engine.account.during("recovery"):
            recovery.recover(loop)  # outside of the handler: its traceback holds the broken process group
    recovery.end()


def _say_where_it_goes_on(engine: Engine) -> None:
    """Tell the user which checkpoint training goes on from, if any: it may have been looked for."""
    path, state = engine.job.ckpt_path, engine.state
    if path is not None and state.global_step:
        engine.say(f"Goes on from {path}: epoch {state.epoch}, step {state.global_step}.")


def _say_global_batch(engine: Engine) -> None:
    """Tell the user how many samples make one optimizer step, where that is known."""
    plan = engine.data.load_training().plan
    if plan is None or not plan.num_batches:
        return
    ranks, batches = engine.place.world_size, engine.accumulate
    size = plan.sizes(0)[0]
    engine.say(f"Global batch: {size * ranks * batches} = {size} x {ranks} ranks x {batches} accumulated.")
