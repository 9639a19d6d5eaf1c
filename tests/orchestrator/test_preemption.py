"""Told to stop in this process: Ctrl-C, SIGTERM and the user's notice save, stop, and lose nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from orchestrator.preemption import read_notice
from orchestrator.stops import Interrupted, Preempted
from tests.orchestrator.tiny import Tiny, Validated, assert_equal_weights, loader, quiet_trainer

WAIT_S = 20.0


class Signals(pl.Callback):
    """Sends this process a signal at a moment, and waits until it was heard."""

    def __init__(self, number: signal.Signals, step: int = 3, hook: str = "on_train_batch_end") -> None:
        self.number = number
        self.step = step
        self.sent = 0
        self.hook = hook

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if self.hook == "on_train_batch_end":
            self.send(trainer)

    def on_validation_batch_end(self, trainer: Any, *rest: Any) -> None:
        if self.hook == "on_validation_batch_end":
            self.send(trainer)

    def on_train_epoch_end(self, trainer: Any, *rest: Any) -> None:
        if self.hook == "on_train_epoch_end":
            self.send(trainer)

    def send(self, trainer: Any) -> None:
        if trainer.global_step == self.step and not self.sent and not trainer.sanity_checking:
            self.sent += 1
            os.kill(os.getpid(), self.number)
            until = time.monotonic() + WAIT_S
            while not trainer.engine.stopping.told and time.monotonic() < until:
                time.sleep(0.001)


class Ends(pl.Callback):
    """Notes which hooks of the end are called."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.seen.append(type(exception))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append("on_train_end")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.seen.append("teardown")


class Draws(Validated):
    """Draws random numbers in steps and in validation, and logs, so that nothing lost goes unseen."""

    def __init__(self) -> None:
        super().__init__(lambda parameters: torch.optim.Adam(parameters, lr=0.01), dropout=0.2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("noise", torch.rand(()))


def quiet(*callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
    """A Trainer in this process that may have a ModelCheckpoint."""
    saves = any(isinstance(item, pl.callbacks.Checkpoint) for item in callbacks)
    return quiet_trainer(*callbacks, enable_checkpointing=saves, **arguments)


def saver(folder: Path, **arguments: Any) -> pl.callbacks.ModelCheckpoint:
    return pl.callbacks.ModelCheckpoint(dirpath=folder / "kept", **arguments)


def fit(trainer: pl.Trainer, module: pl.LightningModule, **arguments: Any) -> pl.Trainer:
    pl.seed_everything(5)
    trainer.fit(module, loader(24, shuffle=True), loader(12), **arguments)
    return trainer


@pytest.mark.parametrize(
    ("number", "expected", "seen"),
    [(signal.SIGINT, KeyboardInterrupt, Interrupted), (signal.SIGTERM, Preempted, Preempted)],
    ids=["SIGINT", "SIGTERM"],
)
@pytest.mark.parametrize("save_last", [None, True])
def test_a_run_that_was_told_to_stop_goes_on_with_nothing_lost(
    tmp_path: Path, number: signal.Signals, expected: type, seen: type, save_last: bool | None
) -> None:
    """Stopped after step 3 it has saved, the hooks of a failure are called, and going on ends as unbroken."""
    unbroken, broken, resumed = Draws(), Draws(), Draws()
    whole = fit(quiet(max_epochs=2), unbroken)
    before = signal.getsignal(number)
    ends = Ends()
    first = quiet(Signals(number), ends, saver(tmp_path, save_last=save_last), max_epochs=2)
    with pytest.raises(expected, match="training stopped after step 3") as told:
        fit(first, broken)
    path = tmp_path / "kept" / ("last.ckpt" if save_last else "interrupted.ckpt")
    assert f"fit(ckpt_path={str(path)!r})" in str(told.value)
    assert told.type is expected
    assert (first.global_step, first.interrupted) == (3, True)
    assert ends.seen == [seen, "teardown"]
    assert signal.getsignal(number) is before
    again = fit(quiet(saver(tmp_path, save_last=save_last), max_epochs=2), resumed, ckpt_path="last")
    assert again.global_step == whole.global_step == 12
    assert_equal_weights(resumed, unbroken)
    assert dict(again.callback_metrics) == dict(whole.callback_metrics)
    assert not (tmp_path / "kept" / "interrupted.ckpt").exists()


def test_a_validation_is_left_and_run_again(tmp_path: Path) -> None:
    """Ctrl-C in a validation stops behind its batch; going on runs it from its start, to the same numbers."""
    unbroken, broken, resumed = Draws(), Draws(), Draws()
    whole = fit(quiet(max_epochs=2), unbroken)
    sends = Signals(signal.SIGINT, step=6, hook="on_validation_batch_end")
    first = quiet(sends, saver(tmp_path), max_epochs=2)
    with pytest.raises(KeyboardInterrupt):
        fit(first, broken)
    assert (first.global_step, dict(first.callback_metrics)) == (6, {})
    again = fit(quiet(saver(tmp_path), max_epochs=2), resumed, ckpt_path="last")
    assert_equal_weights(resumed, unbroken)
    assert dict(again.callback_metrics) == dict(whole.callback_metrics)


def test_a_stop_within_an_accumulation_waits_for_its_step(tmp_path: Path) -> None:
    """A window of accumulated batches is finished, so that a step is never torn."""

    class WithinAWindow(Signals):
        def send(self, trainer: Any) -> None:
            if trainer.state.epoch_batches == 5:
                super().send(trainer)

    trainer = quiet(WithinAWindow(signal.SIGTERM, step=1), saver(tmp_path), accumulate_grad_batches=4)
    with pytest.raises(Preempted, match="stopped after step 2"):
        trainer.fit(Tiny(), loader(48))
    assert trainer.state.epoch_batches == 8


class Twice(pl.Callback):
    """Sends the same signal again before the step ends."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 2:
            for _ in range(2):
                os.kill(os.getpid(), self.number)
                time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_the_second_signal_ends_at_once(tmp_path: Path, number: signal.Signals, expected: type) -> None:
    """Nothing is saved then, and the exception is not that of a run that has stopped in order."""
    with pytest.raises(expected) as ended:
        quiet(Twice(number), saver(tmp_path)).fit(Tiny(), loader(24))
    assert ended.type is expected
    assert not (tmp_path / "kept").exists()


def test_ctrl_c_in_a_terminal_leaves_loader_processes_at_work(tmp_path: Path) -> None:
    """A terminal's Ctrl-C reaches a DataLoader's processes too; the step that they feed is still finished."""

    others = set(psutil.Process().children())  # of earlier tests: Ray's

    class ToAll(Signals):
        def send(self, trainer: Any) -> None:
            children = set(psutil.Process().children()) - others
            if trainer.state.epoch_batches == 1:
                assert len(children) == 2
                for child in children:
                    child.send_signal(self.number)
                time.sleep(0.1)
                super().send(trainer)

    data = loader(480, num_workers=2, multiprocessing_context="fork", prefetch_factor=1)
    trainer = quiet(ToAll(signal.SIGINT, step=0), saver(tmp_path), accumulate_grad_batches=8)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1"):
        trainer.fit(Tiny(), data)


@pytest.mark.parametrize("hook", ["setup", "on_train_end"])
def test_outside_of_the_loop_ctrl_c_ends_at_once(hook: str) -> None:
    """Where there is no step to wait for, Ctrl-C is what it always is."""

    def press(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

    presses = pl.callbacks.LambdaCallback(**{hook: press})
    with pytest.raises(KeyboardInterrupt) as ended:
        quiet(presses).fit(Tiny(), loader(8))
    assert ended.type is KeyboardInterrupt


def test_handlers_of_the_program_stay(tmp_path: Path) -> None:
    """Where the program has a handler of its own, the signal is its business."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))

    class Kills(pl.Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        quiet(Kills()).fit(Tiny(), loader(8))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM] * 2


class Waits(pl.Callback):
    """Lets time pass in each batch until something has happened."""

    def __init__(self, happened: Callable[[Any], bool]) -> None:
        self.happened = happened

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        until = time.monotonic() + WAIT_S
        while not self.happened(trainer) and time.monotonic() < until:
            time.sleep(0.001)


def test_the_users_notice_stops_the_run(tmp_path: Path) -> None:
    """`preemption_notice` is asked in a thread; a number of seconds stops the run, and a failure does not."""
    answers: list[Any] = [ValueError("no network"), 60]
    asked_in: list[bool] = []

    def notice() -> float | None:
        asked_in.append(threading.current_thread() is threading.main_thread())
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return float(answer)

    waits = Waits(lambda trainer: bool(trainer.engine.stopping.told))
    trainer = quiet(waits, saver(tmp_path), preemption_notice=notice)
    with pytest.raises(Preempted, match="preemption_notice said that 60 s are left") as told:
        trainer.fit(Tiny(), loader(24))
    assert told.value.code == 143
    assert (trainer.global_step, asked_in) == (1, [False, False])


def test_what_a_notice_may_be() -> None:
    """It must be callable, and True stands for the usual grace."""
    with pytest.raises(MisconfigurationError, match=r"Trainer\(preemption_notice=30\)"):
        quiet(preemption_notice=30)
    assert [read_notice(value) for value in (None, False, True, 5)] == [None, None, 30.0, 5.0]


def test_without_a_place_to_save_in_it_says_so() -> None:
    """A run without a ModelCheckpoint stops all the same, and says that nothing was saved."""
    with pytest.raises(Preempted, match="No checkpoint was saved") as told:
        quiet(Signals(signal.SIGTERM)).fit(Tiny(), loader(24))
    assert told.value.path is None


def test_a_run_that_hangs_is_ended_when_its_time_is_up(tmp_path: Path) -> None:
    """A step that does not end by the deadline is broken off, without saving."""

    def forever(trainer: Any) -> bool:
        return False

    trainer = quiet(Waits(forever), saver(tmp_path), preemption_notice=lambda: 0.2)
    with pytest.raises(Preempted, match="did not come to the end of a step"):
        trainer.fit(Tiny(), loader(24))
    assert not (tmp_path / "kept").exists()


def test_an_order_that_comes_too_late_is_still_obeyed(tmp_path: Path) -> None:
    """A run that had come to its end by itself is left by the exception too: lines after fit do not run."""
    trainer = quiet(Signals(signal.SIGTERM, step=6, hook="on_train_epoch_end"))
    with pytest.raises(Preempted, match=r"after step 6\. It had come to its end"):
        trainer.fit(Tiny(), loader(24))
