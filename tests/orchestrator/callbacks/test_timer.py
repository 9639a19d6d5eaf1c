"""Timer and Trainer(max_time=...): stopping by the clock, and telling the time."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.callbacks import Timer
from orchestrator.callbacks import timer as timer_module
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Tiny, Validated, loader, quiet_trainer


class Clock:
    """Stands in for the clock: goes on by one second each time it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(timer_module, "time", self)

    def monotonic(self) -> float:
        self.now += 1
        return self.now


def test_training_stops_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The duration ends training after a step, though no other limit was given."""
    Clock(monkeypatch)
    trainer = quiet_trainer(max_epochs=None, max_time=timedelta(seconds=10))
    trainer.fit(Tiny(), loader(16))
    assert trainer.global_step == 9
    assert trainer.should_stop


def test_an_epoch_is_finished_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """With interval='epoch' training stops between epochs only."""
    Clock(monkeypatch)
    trainer = quiet_trainer(Timer({"seconds": 3}, interval="epoch"), max_epochs=-1)
    trainer.fit(Tiny(), loader(16))
    assert (trainer.global_step, trainer.current_epoch) == (4 * trainer.current_epoch, 2)


def test_a_duration_of_nothing_trains_nothing() -> None:
    """Where time is used up before the first batch, none is run."""
    trainer = quiet_trainer(max_time="00:00:00:00")
    trainer.fit(Tiny(), loader(8))
    assert trainer.global_step == 0


def test_the_least_that_was_asked_for_is_trained() -> None:
    """min_steps and min_epochs win over the clock."""
    trainer = quiet_trainer(max_time="00:00:00:00", max_epochs=9, min_epochs=2)
    trainer.fit(Tiny(), loader(8))
    assert trainer.current_epoch == 2


def test_stages_are_measured() -> None:
    """Each stage has its own time; what has not run has none, and the duration is that of training."""
    timer = Timer("00:01:00:00", verbose=False)
    assert (timer.time_elapsed(), timer.start_time(), timer.time_remaining()) == (0, None, 3600)
    trainer = quiet_trainer(timer, num_sanity_val_steps=1)
    trainer.fit(Validated(), loader(8), loader(8))
    trainer.test(dataloaders=loader(8), verbose=False)
    times = [timer.time_elapsed(stage) for stage in ("train", "validate", "test", "sanity_check")]
    assert all(spent > 0 for spent in times) and times[0] > times[1]
    assert timer.time_elapsed("predict") == 0
    start, end, left = timer.start_time("test"), timer.end_time("test"), timer.time_remaining()
    assert start is not None and end is not None and left is not None
    assert start < end <= time.monotonic() and left < 3600
    with pytest.raises(ValueError, match=r"no stage 'training'. Did you mean 'train'"):
        timer.time_elapsed("training")


def test_time_counts_on_over_a_checkpoint(tmp_path: Path) -> None:
    """A resumed run has what the run before it has left."""
    timer = Timer("00:00:00:50")
    trainer = quiet_trainer(timer)
    trainer.fit(Tiny(), loader(8))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    spent = timer.time_elapsed()
    again = Timer("00:00:00:50")
    quiet_trainer(again, max_epochs=2).fit(Tiny(), loader(8), ckpt_path=tmp_path / "a.ckpt")
    assert again.time_elapsed() > spent


def test_no_clock_is_read_in_steps_without_a_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Timer that only measures looks at the clock twice, however many steps there are."""
    clock = Clock(monkeypatch)
    quiet_trainer(Timer()).fit(Tiny(), loader(64))
    assert clock.now == 1002


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Timer("1:00"), r"Timer\(duration='1:00'\) is not a length of time.*'DD:HH:MM:SS'"),
        (lambda: Timer({"hour": 1}), r"Timer\(duration=\{'hour': 1\}\)"),
        (lambda: Timer("00:00:01:00", interval="steps"), "interval='steps'.*Did you mean 'step'"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    """Arguments that cannot work are an error that names them."""
    with pytest.raises(MisconfigurationError, match=message):
        make()


def test_a_timer_wins_over_max_time() -> None:
    """Where both are given, the Trainer's is ignored with a warning."""
    with pytest.warns(UserWarning, match="max_time='0:00:01'"):
        trainer = quiet_trainer(Timer("01:00:00:00"), max_time="00:00:00:01")
    assert [type(item) for item in trainer.callbacks] == [Timer]


@pytest.mark.ray
@pytest.mark.timeout(60)
def test_rank_0s_clock_stops_all(tmp_path: Path) -> None:
    """On a group all ranks stop at one step, between log points too, and the driver knows the time."""

    class Slow(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            time.sleep(0.01 * (1 + self.trainer.global_rank))

    timer = Timer(timedelta(seconds=0.4))
    trainer: pl.Trainer = group_trainer(tmp_path, max_epochs=-1, callbacks=[timer], log_every_n_steps=10**6)
    trainer.fit(Slow(), group_loader(33))
    assert trainer.global_step > 0
    assert timer.time_elapsed() >= 0.4
