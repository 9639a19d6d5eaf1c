"""When checkpoints are saved: pure decisions, and a clock that ranks share."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.schedule import (
    Clock,
    saves_at_train_epoch_end,
    steps_to_next_look,
    triggers,
)
from orchestrator.errors import MisconfigurationError

NEVER: dict[str, Any] = {"every_n_train_steps": None, "every_n_epochs": None, "train_time_interval": None}


def test_every_epoch_is_the_default() -> None:
    """Without a trigger each epoch ends with a save."""
    found = triggers(**NEVER)
    assert (found.every_n_epochs, found.every_n_train_steps, found.train_time_interval) == (1, 0, None)


@pytest.mark.parametrize(
    "given_trigger", [{"every_n_train_steps": 5}, {"train_time_interval": timedelta(minutes=1)}]
)
def test_another_trigger_replaces_epochs(given_trigger: dict[str, Any]) -> None:
    """With steps or time, epochs do not save."""
    assert not triggers(**{**NEVER, **given_trigger}).after_epoch(0)


@pytest.mark.parametrize(
    "pair",
    [
        {"every_n_train_steps": 5, "every_n_epochs": 1},
        {"every_n_train_steps": 5, "train_time_interval": timedelta(minutes=1)},
        {"every_n_epochs": 5, "train_time_interval": timedelta(0)},
    ],
)
def test_triggers_exclude_each_other(pair: dict[str, Any]) -> None:
    """Two triggers are refused, and the error names both with their values."""
    with pytest.raises(MisconfigurationError) as caught:
        triggers(**{**NEVER, **pair})
    for name, value in pair.items():
        assert f"{name}={value!r}" in str(caught.value)


def test_zero_beside_a_trigger_is_no_trigger() -> None:
    """An explicit 0 means never and contradicts nothing."""
    assert triggers(every_n_train_steps=0, every_n_epochs=2, train_time_interval=None).every_n_epochs == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("every_n_train_steps", -1),
        ("every_n_epochs", 1.5),
        ("every_n_epochs", True),
        ("train_time_interval", 30),
        ("train_time_interval", timedelta(seconds=-1)),
    ],
)
def test_triggers_check_their_values(name: str, value: Any) -> None:
    """The error repeats the argument with its value."""
    with pytest.raises(MisconfigurationError, match=f"{name}="):
        triggers(**{**NEVER, name: value})


@pytest.mark.parametrize(
    ("given_trigger", "expected"),
    [
        ({}, False),
        ({"every_n_epochs": 2}, False),
        ({"every_n_epochs": 0, "every_n_train_steps": 0}, False),
        ({"every_n_train_steps": 1}, True),
        ({"train_time_interval": timedelta(0)}, True),
    ],
)
def test_only_steps_and_time_save_within_epochs(given_trigger: dict[str, Any], expected: bool) -> None:
    """Batches need a look only where a count of steps or an interval of time starts saves."""
    assert triggers(**{**NEVER, **given_trigger}).within_epochs is expected


@given(st.integers(1, 7), st.lists(st.integers(0, 3), max_size=30))
def test_each_multiple_of_steps_starts_one_save(every: int, steps_of_batches: list[int]) -> None:
    """Over batches that make no, one or several steps, there is a save for each batch that reached a
    multiple."""
    trigger = triggers(every_n_train_steps=every, every_n_epochs=None, train_time_interval=None)
    step, saves, reached = 0, 0, 0
    for made in steps_of_batches:
        saves += trigger.after_steps(step, step + made)
        reached += any(number % every == 0 for number in range(step + 1, step + made + 1))
        step += made
    assert saves == reached


@pytest.mark.parametrize(
    ("asked", "interval", "epochs", "validates", "expected"),
    [
        (None, 1.0, 1, True, True),
        (None, 1.0, 1, False, True),
        (None, 0.5, 1, True, False),
        (None, 10, 1, True, False),
        (None, 1, 1, True, False),
        (None, 1.0, 2, True, False),
        (None, 5, None, True, False),
        (None, 0.5, 1, False, True),
        (None, timedelta(minutes=5), 1, True, False),
        (True, 0.5, 2, True, True),
        (False, 1.0, 1, False, False),
    ],
)
def test_where_epochs_save(
    asked: bool | None, interval: Any, epochs: int | None, validates: bool, expected: bool
) -> None:
    """The training epoch's end saves unless validation is more or less frequent than epochs, or the user
    decides."""
    found = saves_at_train_epoch_end(
        asked, val_check_interval=interval, check_val_every_n_epoch=epochs, validates=validates
    )
    assert found is expected


# ---------------------------------------------------------------- the clock


class FakeTime:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(st.floats(0.001, 1e6), st.floats(0.001, 1e3))
def test_the_next_look_is_not_after_the_due_time(remaining_s: float, step_s: float) -> None:
    """At the present pace the next look comes before the interval ends, or at the very next step."""
    wait = steps_to_next_look(remaining_s, step_s)
    assert wait == 1 or wait * step_s <= remaining_s


def test_one_rank_saves_at_the_first_step_after_the_interval() -> None:
    """A single rank looks at each step, and the next interval begins with a save."""
    time = FakeTime()
    clock = Clock(timedelta(seconds=10), time)
    clock.start(0)
    saves = []
    for step in range(1, 61):
        time.now_s += 0.75
        if clock.is_up(step, None):
            saves.append(step)
    assert saves == [14, 28, 42, 56]


def test_a_clock_without_interval_never_saves() -> None:
    """None means never."""
    clock = Clock(None, FakeTime())
    clock.start(0)
    assert not any(clock.is_up(step, None) for step in range(1, 100))


def test_ranks_with_different_clocks_save_at_the_same_steps() -> None:
    """Rank 0's clock decides, at steps that all ranks know, and few messages are needed."""
    times = [FakeTime(), FakeTime()]
    clocks = [Clock(timedelta(seconds=60), time) for time in times]
    for clock in clocks:
        clock.start(0)
    saves: list[list[int]] = [[], []]
    looks: list[list[int]] = [[], []]
    for step in range(1, 3001):
        times[0].now_s += 0.1
        times[1].now_s += 0.13
        word: list[tuple[bool, int]] = []

        def tell(value: tuple[bool, int], word: list[tuple[bool, int]] = word) -> tuple[bool, int]:
            word.append(value)
            return word[0]

        for rank, clock in enumerate(clocks):
            before = len(word)
            if clock.is_up(step, tell):
                saves[rank].append(step)
            if len(word) > before:
                looks[rank].append(step)
    assert looks[0] == looks[1]
    assert saves[0] == saves[1]
    assert len(saves[0]) == 4
    assert len(looks[0]) < 100


INTERVAL = timedelta(seconds=7)


class Asked:
    """Rank 0's answers, and how often another rank has asked for one."""

    def __init__(self) -> None:
        self.told: list[tuple[bool, int]] = []
        self.asked = 0

    def tell(self, value: tuple[bool, int]) -> tuple[bool, int]:
        self.told.append(value)
        return value

    def ask(self, value: tuple[bool, int]) -> tuple[bool, int]:
        self.asked += 1
        return self.told[-1]


@given(st.lists(st.floats(0.01, 5.0), min_size=1, max_size=60), st.integers(0, 59))
def test_a_rank_that_comes_later_looks_at_the_clock_when_others_do(steps_s: list[float], comes: int) -> None:
    """From another rank's state, whatever its own time: else one would ask, and nobody answer."""
    now, link = [0.0], Asked()
    first, other = Clock(INTERVAL, lambda: now[0]), Clock(INTERVAL, lambda: now[0] + 100.0)
    first.start(0)
    for step, taken_s in enumerate(steps_s, start=1):
        if step - 1 == comes:
            other.start(0)
            other.load_state_dict(first.state_dict())
            link = Asked()
        now[0] += taken_s
        due = first.is_up(step, link.tell)
        if step > comes:
            assert other.is_up(step, link.ask) == due
            assert link.asked == len(link.told)
