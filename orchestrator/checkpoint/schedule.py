"""When a checkpoint is saved: after steps, epochs, validations, or an interval of time.

The decisions are pure functions of counters that all ranks share. Only the clock differs between ranks:
`Clock` asks rank 0's, at few steps that all ranks know. Arguments that cannot work raise
`MisconfigurationError`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from orchestrator.errors import MisconfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggers:
    """What starts a save; at most one of the three is set.

    Attributes:
        every_n_train_steps: Each time the count of optimizer steps reaches a multiple of this; 0 for never.
        every_n_epochs: At the end of each epoch whose number, from 1, is a multiple of this; 0 for never.
        train_time_interval: Each time this much of training time has passed; None for never.
    """

    every_n_train_steps: int
    every_n_epochs: int
    train_time_interval: timedelta | None

    @property
    def within_epochs(self) -> bool:
        """Whether saves may start between the ends of epochs: then each batch must be looked at."""
        return self.every_n_train_steps >= 1 or self.train_time_interval is not None

    def after_epoch(self, epoch: int) -> bool:
        """Whether epoch `epoch`, counted from 0, ends with a save."""
        return self.every_n_epochs >= 1 and (epoch + 1) % self.every_n_epochs == 0

    def after_steps(self, before: int, now: int) -> bool:
        """Whether a multiple of `every_n_train_steps` lies in the steps after `before`, up to and with `now`.

        A batch may make several optimizer steps, or none.
        """
        every = self.every_n_train_steps
        return every >= 1 and now // every > before // every


def triggers(
    every_n_train_steps: int | None, every_n_epochs: int | None, train_time_interval: timedelta | None
) -> Triggers:
    """Return what the three arguments of `ModelCheckpoint` mean together: each epoch when none is given.

    Raises:
        MisconfigurationError: for a negative number, an interval of no length, or more than one trigger.
    """
    given = {
        "every_n_train_steps": every_n_train_steps,
        "every_n_epochs": every_n_epochs,
        "train_time_interval": train_time_interval,
    }
    for name, number in (("every_n_train_steps", every_n_train_steps), ("every_n_epochs", every_n_epochs)):
        if number is not None and (not _is_int(number) or number < 0):
            raise MisconfigurationError(
                f"ModelCheckpoint({name}={number!r}) is not a count. Write 1 or more, or 0 for never."
            )
    if train_time_interval is not None and not _is_duration(train_time_interval):
        raise MisconfigurationError(
            f"ModelCheckpoint(train_time_interval={train_time_interval!r}) is not a time. "
            "Write a datetime.timedelta, such as timedelta(minutes=30)."
        )
    active = [f"{name}={value!r}" for name, value in given.items() if value is not None and value != 0]
    if len(active) > 1:
        raise MisconfigurationError(
            f"ModelCheckpoint({', '.join(active)}) has more than one trigger. "
            "Give one, and a ModelCheckpoint of its own for each other."
        )
    if all(value is None for value in given.values()):
        every_n_epochs = 1
    return Triggers(
        every_n_train_steps=every_n_train_steps or 0,
        every_n_epochs=every_n_epochs or 0,
        train_time_interval=train_time_interval,
    )


def saves_at_train_epoch_end(
    asked: bool | None,
    *,
    val_check_interval: object,
    check_val_every_n_epoch: int | None,
    validates: bool,
) -> bool:
    """Whether saves happen when a training epoch ends, rather than when validation does.

    Args:
        asked: What the user wrote; None lets the rest decide.
        val_check_interval: The trainer's: 1.0 for once at the end of an epoch.
        check_val_every_n_epoch: The trainer's.
        validates: Whether there are validation batches at all.
    """
    if asked is not None:
        return asked
    if not isinstance(val_check_interval, int | float) or check_val_every_n_epoch != 1:
        return False
    if not validates:
        return True
    # The int 1 is "after every batch"; only the float 1.0 is "once an epoch".
    return isinstance(val_check_interval, float) and val_check_interval == 1.0


def steps_to_next_look(remaining_s: float, step_s: float) -> int:
    """Return after how many steps to look at the clock again: half of the way to the due time, at least one.

    Looking costs a message between ranks, and their clocks differ: so all look at the same steps, and few
    times.

    >>> steps_to_next_look(remaining_s=60.0, step_s=0.1)
    300
    """
    if remaining_s <= 0 or step_s <= 0:
        return 1
    return max(1, min(int(remaining_s / step_s / 2), 100_000))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_duration(value: object) -> bool:
    return isinstance(value, timedelta) and value >= timedelta(0)


class Clock:
    """Says when an interval of training time is over, on all ranks at the same step.

    Args:
        interval: The time between two saves; None for never.
        now_s: Reads the time, in seconds.
    """

    def __init__(self, interval: timedelta | None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = None if interval is None else interval.total_seconds()
        self._now_s = now_s
        self._began_at = self._saved_at = 0.0
        self._first_step = self._next_look = 0

    def start(self, step: int) -> None:
        """Begin the first interval, at `step`."""
        self._began_at = self._saved_at = self._now_s()
        self._first_step, self._next_look = step, step + 1

    def state_dict(self) -> dict[str, int]:
        """Return the steps by which all ranks know when to look, but no times, which are a rank's own."""
        return {"first_step": self._first_step, "next_look": self._next_look}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take back what `state_dict` returned, here or on another rank; nothing of an empty one."""
        self._first_step = state.get("first_step", self._first_step)
        self._next_look = state.get("next_look", self._next_look)

    def is_up(self, step: int, agree: Callable[[tuple[bool, int]], tuple[bool, int]] | None) -> bool:
        """Whether the interval is over at `step`; then the next one begins.

        Args:
            step: Optimizer steps so far, the same on all ranks.
            agree: Returns rank 0's value on every rank; None for a single rank, which looks at every step.
        """
        if self._interval_s is None or step < self._next_look:
            return False
        now = self._now_s()
        remaining_s = self._interval_s - (now - self._saved_at)
        is_up, wait = remaining_s <= 0, 1
        if agree is not None:
            step_s = (now - self._began_at) / max(1, step - self._first_step)
            is_up, wait = agree((is_up, steps_to_next_look(remaining_s, step_s)))
        self._next_look = step + wait
        if is_up:
            self._saved_at = now
        return is_up
