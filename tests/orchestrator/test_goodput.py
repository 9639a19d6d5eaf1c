"""Every second of a run belongs to one kind, and which it is holds within what sampling can know."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import orchestrator as pl
from orchestrator.goodput import KINDS, TRAINING, WINDOW, Account, Total, counted, describe, split
from orchestrator.onlookers import Advancing
from tests.orchestrator.tiny import Tiny, Validated, loader, quiet_trainer

SECONDS = st.floats(0, 1e6)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Feed(Advancing):
    """Takes as long for each batch as it was told."""

    def __init__(self, clock: Clock, waits_s: list[float]) -> None:
        super().__init__()
        self.clock, self.waits_s = clock, waits_s

    def advance(self) -> bool:
        if not self.waits_s:
            return False
        self.clock.now_s += self.waits_s.pop(0)
        return True


@given(st.lists(st.tuples(st.sampled_from([*KINDS, "train"]), SECONDS), max_size=20))
def test_the_kinds_sum_up_to_the_whole(changes: list[tuple[str, float]]) -> None:
    """Whatever phases there are, no second is lost and none counts twice."""
    clock = Clock()
    account = Account(clock)
    for phase, seconds in changes:
        account.switch(phase)
        clock.now_s += seconds
    found = account.seconds(0.5, 3)
    assert found.keys() == set(KINDS)
    assert sum(found.values()) == pytest.approx(sum(seconds for _, seconds in changes))
    assert all(value >= 0 for value in found.values())


@given(SECONDS, SECONDS, SECONDS, SECONDS)
def test_training_is_dealt_to_its_three_kinds(
    train: float, waited: float, watched: float, sent: float
) -> None:
    """However odd the samples, data, compute and communication are together what training took."""
    found = split({"train": train}, waited, watched, sent)
    assert sum(found[kind] for kind in TRAINING) == pytest.approx(train)
    assert min(found.values()) >= -1e-6 * train


def test_phases_nest() -> None:
    """What runs within a phase is not the outer one's, also where it fails."""
    clock = Clock()
    account = Account(clock)
    account.switch("compute")
    with pytest.raises(ZeroDivisionError), account.during("checkpoint"):
        clock.now_s += 2
        with account.during("communication"):
            clock.now_s += 3
        raise ZeroDivisionError
    clock.now_s += 5
    found = account.seconds()
    assert (found["checkpoint"], found["communication"], found["compute"]) == (2, 3, 5)


def test_waits_for_data_are_sampled_and_the_first_is_taken_as_it_is() -> None:
    """A fifth of each step is waiting, behind a first batch that takes long; the feed ends as it was."""
    clock = Clock()
    feed = Feed(clock, [60.0, *[0.2] * 199])
    account = Account(clock)
    account.switch("train")
    account.watch(feed, first=True)
    steps = 0
    while feed.advance():
        clock.now_s += 0.8
        steps += 1
        if steps % 50 == 0:
            account.watch(feed)
    assert steps == 200 and "advance" not in feed.__dict__
    found = account.seconds()
    assert found["data"] == pytest.approx(60 + 0.2 * 199, rel=0.02)
    assert found["compute"] == pytest.approx(0.8 * 200, rel=0.02)


def test_what_interrupts_a_window_is_no_training() -> None:
    """An evaluation between two watched batches changes neither share."""
    clock = Clock()
    feed = Feed(clock, [0.5] * (WINDOW + 5))
    account = Account(clock)
    account.switch("train")
    account.watch(feed)
    while feed.advance():
        clock.now_s += 0.5
        with account.during("evaluation"):
            clock.now_s += 10.0
    found = account.seconds()
    assert found["data"] == pytest.approx(found["compute"], rel=0.1)
    assert found["evaluation"] == pytest.approx(10.0 * (WINDOW + 5))


def test_a_window_that_was_left_counts_for_nothing() -> None:
    """An epoch that ends in the middle of one leaves no half of it; the next begins with its first wait."""
    clock = Clock()
    feed = Feed(clock, [0.5] * 20)
    account = Account(clock)
    account.switch("train")
    account.watch(feed)
    feed.advance()
    clock.now_s += 0.5
    account.watch(feed, first=True)
    assert account.seconds()["data"] == 0
    feed.advance()
    clock.now_s += 0.5
    assert account.seconds()["data"] == 0.5


def test_windows_come_no_more_often_than_once_a_second() -> None:
    """At a log point right behind the last window nothing is replaced."""
    clock = Clock()
    feed = Feed(clock, [0.0] * 100)
    account = Account(clock)
    account.switch("train")
    account.watch(feed)
    for _ in range(WINDOW + 1):
        feed.advance()
    account.watch(feed)
    assert "advance" not in feed.__dict__
    clock.now_s += 1.5
    account.watch(feed)
    assert "advance" in feed.__dict__


def test_the_driver_counts_what_is_around_and_between() -> None:
    """Before rank 0 is the start, between two of them recovery, behind the last idle time."""
    clock = Clock()
    total = Total(clock)
    clock.now_s += 3 + 10
    total.take((1, 0), {"compute": 4.0, "data": 6.0})
    clock.now_s += 5
    total.take((1, 0), {"compute": 9.0, "data": 6.0})
    clock.now_s += 7 + 2
    total.take((2, 0), {"compute": 2.0})
    clock.now_s += 1
    found = total.seconds()
    assert sum(found.values()) == pytest.approx(28)
    assert (found["start"], found["recovery"], found["idle"]) == (3, 7, 1)
    assert (found["compute"], found["data"]) == (11, 6)


def test_a_call_that_never_came_to_rank_0_was_all_start() -> None:
    """Waiting for workers that do not come is the start of the run."""
    clock = Clock()
    total = Total(clock)
    clock.now_s += 4
    assert total.seconds() == {**dict.fromkeys(KINDS, 0.0), "start": 4.0}


def test_an_exchange_belongs_to_what_it_is_part_of() -> None:
    """In training it is communication, in a checkpoint the checkpoint's."""
    clock = Clock()
    account = Account(clock)

    def gather(value: int) -> int:
        clock.now_s += 3
        return value

    counted_gather = account.counting("communication", gather)
    with account.during("checkpoint"):
        assert counted_gather(1) == 1
    with account.during("train"):
        assert counted_gather(2) == 2
    found = account.seconds()
    assert (found["communication"], found["checkpoint"]) == (3, 3)


def test_it_is_told_in_one_line() -> None:
    """The share of training comes first; what is less than a hundredth is left out."""
    seconds = {**dict.fromkeys(KINDS, 0.0), "compute": 90.0, "evaluation": 9.5, "checkpoint": 0.5}
    assert describe(seconds) == "Goodput 90%: 1:30 of 1:40 in training steps; evaluation 9.5 s."
    assert describe({}) == "Goodput 0%: 0.00 s of 0.00 s in training steps."


def test_a_method_is_counted_where_there_is_an_account() -> None:
    """The decorator counts for the owner's account, or that of its engine, and does nothing without."""

    class Owner:
        def __init__(self, account: Account | None = None, engine: Any = None) -> None:
            if engine is not None:
                self.engine = engine
            self.account = account

        @counted("checkpoint")
        def save(self, clock: Clock) -> int:
            clock.now_s += 2
            return 7

    clock = Clock()
    account = Account(clock)
    inner = Owner(account)
    assert [inner.save(clock), Owner(engine=inner).save(clock), Owner().save(clock)] == [7, 7, 7]
    assert account.seconds()["checkpoint"] == 4


def test_the_trainer_holds_the_account_of_its_last_call() -> None:
    """Without logger and progress too; training has taken time, and validation when there was one."""
    trainer = quiet_trainer()
    assert trainer.goodput is None
    trainer.fit(Tiny(), loader(16))
    found = dict(trainer.goodput or {})
    assert found["compute"] > 0 and found["start"] > 0 and found["evaluation"] == 0
    trainer = quiet_trainer()
    trainer.fit(Validated(), loader(16), loader(8))
    assert (trainer.goodput or {})["evaluation"] > 0


def test_it_is_said_at_the_end_of_a_fit(caplog: pytest.LogCaptureFixture) -> None:
    """Once for each fit, not for a validation, and not when it failed."""

    class Fails(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise ArithmeticError

    with caplog.at_level("INFO", logger="orchestrator"):
        trainer: pl.Trainer = quiet_trainer()
        trainer.fit(Validated(), loader(8))
        trainer.validate(Validated(), loader(8), verbose=False)
        trainer.fit(Validated(), loader(8))  # nothing is left to train
        with pytest.raises(ArithmeticError):
            quiet_trainer().fit(Fails(), loader(8))
    assert caplog.text.count("Goodput") == 1
